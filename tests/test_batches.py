"""Batches against slow NumPy twins, and the promises that resuming and sharding rest on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ml_collections import ConfigDict

from resjax import config as base
from resjax.config import ConfigError
from resjax.data import batches

pytestmark = pytest.mark.usefixtures("each_key_once")

N, H, W, C, K, B = 24, 6, 5, 3, 4, 8
MEAN, STD = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.25])
IMAGES = np.random.default_rng(0).integers(0, 256, (N, H, W, C), dtype=np.uint8)
LABELS = np.arange(N, dtype=np.int32) % K


def section(**values) -> ConfigDict:
    config = base.base().dataset
    config.update({"augment": "none", "crop_padding": 2} | values)
    return config


ALL = {"augment": "crop_flip", "mixup": 0.3, "noise": 0.1}


def plan_of(config: ConfigDict, step: int = 0, seed: int = 0, batch_size: int = B) -> batches.Plan:
    key = jax.random.key(seed)
    epoch = step // batches.steps_per_epoch(N, batch_size)
    return batches.plan(key, step, batches.epoch_order(key, epoch, N), batch_size, config)


def materialize(plan: batches.Plan, config: ConfigDict, dtype=jnp.float32):
    return batches.materialize(plan, jnp.asarray(IMAGES), jnp.asarray(LABELS), K, MEAN, STD, config, dtype)


def twin(plan: batches.Plan, index: np.ndarray) -> np.ndarray:
    """Pads the normalised images, cuts the crops out one by one, and mirrors them."""
    pad, out = 2, []
    for b, i in enumerate(index):
        image = (IMAGES[i].astype(np.float32) / 255 - MEAN) / STD
        if plan.offset_Bx2 is not None:
            top, left = np.asarray(plan.offset_Bx2[b]) + pad
            image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[top : top + H, left : left + W]
        if plan.flip_B is not None and plan.flip_B[b]:
            image = image[:, ::-1]
        out.append(image)
    return np.stack(out)


# --- what a batch contains ---------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_augmentation_equals_its_slow_twin(augment):
    config = section(augment=augment)
    for step in range(5):
        plan = plan_of(config, step)
        x, targets = materialize(plan, config)
        np.testing.assert_allclose(x, twin(plan, plan.index_B), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(targets, np.eye(K)[LABELS[plan.index_B]])


def test_large_images_are_evaluated_in_smaller_batches():
    shapes = [(8, 8, 1), (32, 32, 3), (64, 64, 3), (128, 128, 3), (4000, 4000, 3)]
    assert [batches.at_once(shape) for shape in shapes] == [512, 512, 128, 32, 1]


def test_crops_cover_all_offsets_and_flips_half():
    config = section(augment="crop_flip")
    plans = [plan_of(config, step) for step in range(100)]
    offsets = np.concatenate([plan.offset_Bx2 for plan in plans])
    assert {tuple(offset) for offset in offsets.tolist()} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}
    assert 0.4 < np.mean([plan.flip_B for plan in plans]) < 0.6


def test_a_crop_beyond_the_image_is_the_mean_colour():
    plan = batches.Plan(index_B=jnp.array([3]), offset_Bx2=jnp.array([[0, W]]))
    x, _ = materialize(plan, section())
    np.testing.assert_array_equal(x, np.zeros((1, H, W, C)))


def test_mixup_equals_its_slow_twin():
    config = section(augment="crop_flip", mixup=0.5)
    plan = plan_of(config)
    mix = float(plan.mix)
    x, targets = materialize(plan, config)
    own, other = (twin(plan, index) for index in (plan.index_B, plan.partner_B))
    np.testing.assert_allclose(x, mix * own + (1 - mix) * other, rtol=1e-5, atol=1e-6)
    labels, partners = (np.eye(K)[LABELS[index]] for index in (plan.index_B, plan.partner_B))
    np.testing.assert_allclose(targets, mix * labels + (1 - mix) * partners, rtol=1e-6)
    assert sorted(plan.index_B.tolist()) == sorted(plan.partner_B.tolist())
    assert not np.any(plan.index_B == plan.partner_B)


@pytest.mark.parametrize("alpha, low, high", [(1e-3, 0.99, 1.0), (0.2, 0.5, 1.0), (100.0, 0.5, 0.65)])
def test_mixup_weights_follow_alpha_and_are_at_least_a_half(alpha, low, high):
    mixes = np.array([plan_of(section(mixup=alpha), step).mix for step in range(20)])
    assert np.all((mixes >= low) & (mixes <= high))


def test_noise_has_its_standard_deviation_and_differs_per_example():
    config = section(noise=0.1)
    plan = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *[plan_of(config, step) for step in range(6)])
    noise = np.asarray(materialize(plan, config)[0]) - twin(plan, plan.index_B)
    assert abs(noise.std() - 0.1) < 0.005 and abs(noise.mean()) < 0.005
    assert len(np.unique(noise[:, 0, 0, 0].round(6))) == 6 * B


def test_what_is_off_draws_nothing():
    assert jax.tree.leaves(plan_of(section()))[1:] == []
    assert plan_of(section(augment="crop_flip", crop_padding=0)).offset_Bx2 is None


def test_normalize_gives_unit_statistics_in_any_dtype():
    mean, std = IMAGES.mean((0, 1, 2)) / 255, IMAGES.std((0, 1, 2)) / 255
    x = batches.normalize(jnp.asarray(IMAGES), mean, std)
    np.testing.assert_allclose(x.mean((0, 1, 2)), np.zeros(C), atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), np.ones(C), atol=1e-5)
    assert batches.normalize(jnp.asarray(IMAGES[0]), mean, std, jnp.bfloat16).dtype == jnp.bfloat16
    x, targets = materialize(plan_of(section(**ALL)), section(**ALL), jnp.bfloat16)
    assert x.dtype == jnp.bfloat16 and targets.dtype == jnp.float32


# --- order, resuming, sharding -----------------------------------------------------------------------------


def test_an_epoch_has_every_example_once_and_epochs_differ():
    config = section(**ALL)
    epochs = [np.concatenate([plan_of(config, 3 * epoch + s).index_B for s in range(3)]) for epoch in range(3)]
    for order in epochs:
        np.testing.assert_array_equal(np.sort(order), np.arange(N))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


def test_the_remainder_of_an_epoch_is_dropped():
    seen = np.concatenate([plan_of(section(), step, batch_size=7).index_B for step in range(3)])
    assert len(set(seen.tolist())) == 21


def test_a_batch_is_a_function_of_key_and_step():
    config = section(**ALL)
    jitted = jax.jit(functools.partial(batches.plan, batch_size=B, config=config))
    key = jax.random.key(0)
    drawn = [jitted(key, step, batches.epoch_order(key, 0, N)) for step in (2, 0, 1)]
    again = plan_of(config, 0)
    jax.tree.map(np.testing.assert_array_equal, materialize(drawn[1], config), materialize(again, config))
    for other in (drawn[0], drawn[2], plan_of(config, 0, seed=1)):
        assert not np.array_equal(other.offset_Bx2, again.offset_Bx2)
        assert not np.array_equal(other.index_B, again.index_B)
        assert other.mix != again.mix


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_shards_of_a_plan_make_the_undivided_batch_exactly(count):
    config = section(**ALL)
    plan = plan_of(config, 1)
    parts = [materialize(batches.shard(plan, index, count), config) for index in range(count)]
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    jax.tree.map(np.testing.assert_array_equal, together, materialize(plan, config))


def test_batches_run_inside_a_compiled_loop_under_strict_settings():
    config = section(**ALL)

    @jax.jit
    def total(key, images, labels):
        order = batches.epoch_order(key, 0, N)

        def add(step, sum_BxHxWxC):
            plan = batches.shard(batches.plan(key, step, order, B, config), 0, 1)
            return sum_BxHxWxC + batches.materialize(plan, images, labels, K, MEAN, STD, config)[0]

        return lax.fori_loop(0, 3, add, jnp.zeros((B, H, W, C)))

    arguments = jax.random.key(0), jnp.asarray(IMAGES), jnp.asarray(LABELS)
    with (
        jax.numpy_rank_promotion("raise"),
        jax.debug_key_reuse(True),
        jax.checking_leaks(),
        jax.transfer_guard("disallow"),
    ):
        found = total(*arguments)
    expected = sum(materialize(plan_of(config, step), config)[0] for step in range(3))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sizes_that_do_not_fit_end_in_one_line():
    with pytest.raises(ConfigError, match="only 24 training images, after config.dataset.train_size"):
        batches.steps_per_epoch(N, 25)
    with pytest.raises(ConfigError, match="does not divide over 3 devices"):
        batches.shard(plan_of(section()), 0, 3)
