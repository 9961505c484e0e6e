"""The spatial transformer: the identity at init, known maps, gradients, and a net with it wherever nets go."""

from functools import partial

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax.test_util import check_grads

from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.data import batches
from resjax.data.dataset import load
from resjax.models import parameters
from resjax.models.build import build
from resjax.models.frozen import frozen
from resjax.models.merges import MERGES
from resjax.models.transformer import SpatialTransformer, resample
from resjax.ntk.empirical import empirical_ntk
from resjax.probes.blocks.propagation import propagation
from resjax.training import loop, step

pytestmark = pytest.mark.usefixtures("each_key_once")

IDENTITY = np.eye(2, 3)
compiled = jax.jit(resample)


def config_of(**changes):
    config = config_lib.base()
    tiny = {"model.name": "mlp", "model.depth": 4, "model.width": 8, "model.front": "stn"}
    config.update_from_flattened_dict(tiny | changes)
    config_lib.check(config)
    return config


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def mapped(x, theta):
    """One map for all images."""
    return np.asarray(compiled(x, np.broadcast_to(np.float32(theta), (len(x), 2, 3))))


@pytest.fixture(scope="module")
def net():
    return build(config_of().model, 10)


@pytest.fixture(scope="module")
def variables(net):
    return jax.jit(net.init)(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))


@pytest.fixture(scope="module")
def moved(variables):
    """Maps that differ from image to image, and are not the identity."""
    kernel = 3 * jax.random.normal(jax.random.key(2), variables["params"]["transformer"]["theta"]["kernel"].shape)
    bias = jnp.array([0.5, 1.0, 2.0, -1.0, 0.3, -0.7])
    own = variables["params"]["transformer"] | {"theta": {"kernel": kernel, "bias": bias}}
    return variables | {"params": variables["params"] | {"transformer": own}}


# --- The map ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 5, 7, 3)])
def test_the_identity_leaves_every_bit(shape):
    x = images(*shape)
    np.testing.assert_array_equal(mapped(x, IDENTITY), x)


def test_whole_pixels_flips_and_quarter_turns_are_exact():
    x = images(3, 8, 8, 2)
    down = mapped(x, [[1, 0, -2 / 4], [0, 1, 0]])  # in units of half the height; what comes from outside is the edge
    np.testing.assert_array_equal(down, np.concatenate([x[:, :1], x[:, :1], x[:, :6]], 1))
    left = mapped(x, [[1, 0, 0], [0, 1, 1 / 4]])
    np.testing.assert_array_equal(left, np.concatenate([x[:, :, 1:], x[:, :, -1:]], 2))
    np.testing.assert_array_equal(mapped(x, [[1, 0, 0], [0, -1, 0]]), x[:, :, ::-1])
    np.testing.assert_array_equal(mapped(x, [[0, 1, 0], [-1, 0, 0]]), np.rot90(x, 1, (1, 2)))
    wide = images(3, 4, 6, 1)
    np.testing.assert_array_equal(mapped(wide, [[-1, 0, 0], [0, -1, 0]]), np.rot90(wide, 2, (1, 2)))


def test_any_map_is_that_of_the_library():
    x, (H, W) = images(6, 6, 9, 2), (6, 9)
    theta = IDENTITY + 0.5 * np.random.default_rng(1).normal(size=(6, 2, 3))
    half, middle = np.array([H, W]) / 2, (np.array([H, W]) - 1) / 2
    matrices = np.tile(np.eye(3, 4), (6, 1, 1))
    matrices[:, :2, :2] = theta[:, :, :2] * half[None, :, None] / half[None, None, :]
    matrices[:, :2, 3] = middle[None] - matrices[:, :2, :2] @ middle + theta[:, :, 2] * half[None]
    library = jax.jit(jax.vmap(partial(dm_pix.affine_transform, mode="nearest")))
    np.testing.assert_allclose(compiled(x, np.float32(theta)), library(x, np.float32(matrices)), atol=1e-4)


def test_gradients_by_map_and_image_against_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        x = jnp.asarray(rng.normal(size=(2, 4, 5, 2)))
        theta = jnp.asarray(IDENTITY + 0.3 * rng.normal(size=(2, 2, 3)))
        check_grads(compiled, (x, theta), order=1, modes=["rev"], eps=1e-6, rtol=1e-6, atol=1e-6)


def test_the_identity_can_be_left():
    # A library that interpolates between floor and ceil has the derivative 0 here.
    x = images(1, 8, 8, 1)
    by_theta = jax.jit(jax.jacrev(resample, argnums=1))(x, np.float32(IDENTITY)[None])
    by_shift = by_theta[0, :, :, 0, 0, 1, 2]  # to the next pixel, times half the width
    np.testing.assert_allclose(by_shift[:, 1:-1], 4 * (x[0, :, 2:, 0] - x[0, :, 1:-1, 0]), rtol=1e-5, atol=1e-6)


# --- The net ----------------------------------------------------------------------------------------------------
def test_at_init_the_net_is_the_one_without(net, variables):
    x = jnp.asarray(images(6, 8, 8, 1))
    plain = build(config_of(**{"model.front": "none"}).model, 10)
    own = jax.jit(plain.init)(jax.random.key(1), x[:1])
    params = dict(variables["params"])
    assert set(params.pop("transformer")) == {"Linear_0", "theta"}
    jax.tree.map(np.testing.assert_array_equal, params, own["params"])
    np.testing.assert_array_equal(jax.jit(net.apply)(variables, x), jax.jit(plain.apply)(own, x))


def test_images_come_out_as_their_maps_say(moved):
    x = jnp.asarray(images(6, 8, 8, 1))
    own = {"params": moved["params"]["transformer"]}
    keep = {"capture_intermediates": lambda module, _: module.name == "theta"}
    y, state = jax.jit(partial(SpatialTransformer().apply, **keep))(own, x)
    (change,) = state["intermediates"]["theta"]["__call__"]
    assert np.std(change, 0).min() > 0.1  # a map for every image
    theta = jnp.asarray(IDENTITY, jnp.float32)[None] + 0.1 * change.reshape(-1, 2, 3)
    np.testing.assert_allclose(y, compiled(x, theta), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "convolutions", "inputs"),
    [((8, 8, 1), 9 * 16, 256), ((28, 28, 1), 9 * 16 + 2 * 9 * 256, 256), ((20, 12, 3), 3 * 9 * 16 + 2 * 9 * 256, 96)],
)
def test_parameter_count(image, convolutions, inputs):
    shapes = jax.eval_shape(SpatialTransformer().init, jax.random.key(0), jnp.zeros((1, *image)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == convolutions + 6 * inputs + 6


def test_resnet_8_on_digits_has_79_440_parameters():
    model = config_of(**{"model.name": "resnet", "model.depth": 8, "model.width": 16}).model
    shapes = jax.eval_shape(build(model, 10).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 77_754 + 144 + 256 * 6 + 6


def test_bfloat16_rounds_pixels_not_places():
    x = images(4, 8, 8, 1)
    theta = [[0.9, 0.1, 0.1], [-0.1, 0.9, 0.2]]
    with_map = jax.jit(SpatialTransformer(jnp.bfloat16).init_with_output)(jax.random.key(0), x)[0]
    assert with_map.dtype == jnp.bfloat16
    np.testing.assert_array_equal(with_map, x.astype(jnp.bfloat16))
    low = mapped(x.astype(jnp.bfloat16), theta)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), mapped(x, theta), atol=0.06)


# --- Where nets go ----------------------------------------------------------------------------------------------
def test_its_kernel_is_that_of_plain_jacobians(net, moved):
    x = jnp.asarray(images(5, 8, 8, 1))
    apply_fn, params = frozen(net, moved)
    got = empirical_ntk(apply_fn, params, x)
    jacobian = jax.jit(jax.jacrev(lambda p: net.apply(moved | {"params": p}, x)))(params)
    J = np.concatenate([np.asarray(leaf, float).reshape(5, 10, -1) for leaf in jax.tree.leaves(jacobian)], 2)
    want = np.einsum("icp,jdp->ijcd", J, J)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    of_transformer = jax.tree.leaves(jacobian["transformer"])
    assert all(np.abs(leaf).max() > 0 for leaf in of_transformer)


def test_its_merge_points_are_seen(net, variables):
    x = jnp.asarray(images(16, 8, 8, 1))
    plain = build(config_of(**{"model.front": "none"}).model, 10)
    params = {name: value for name, value in variables["params"].items() if name != "transformer"}
    want = propagation(plain, variables | {"params": params}, x, jax.random.key(3))
    pd.testing.assert_frame_equal(propagation(net, variables, x, jax.random.key(3)), want, rtol=1e-4)


@pytest.mark.parametrize("merge", ["mul_bn1", "highway"])
def test_of_its_parameters_the_kernels_decay_and_none_is_a_gates(variables, merge):
    params = variables["params"]["transformer"]
    paths = [("transformer", *(k.key for k in path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert [path[1:] for path in paths if parameters.is_kernel(path)] == [("Linear_0", "kernel"), ("theta", "kernel")]
    rules = (partial(rule, MERGES[merge]) for rule in (parameters.is_gate, parameters.is_gate_bias))
    assert not any(rule(path) for rule in rules for path in paths)


def test_training_moves_the_maps():
    config = config_of(**{"epochs": 1, "batch_size": 32, "dataset.train_size": 96})
    data = load(config.dataset)
    task = loop.make_task(config, data)
    x = batches.normalize(jnp.asarray(data.train.images_NxHxWxC[:32]), task.mean_C, task.std_C)
    targets = jax.nn.one_hot(data.train.labels_N[:32], 10)
    state = jax.jit(partial(step.init, task))(x, jnp.array(0, jnp.int32))
    train_step = jax.jit(partial(step.train_step, task))
    for _ in range(3):
        state, sums = train_step(state, x, targets)
    assert state.active and state.step == 3 and np.isfinite(sums.loss)
    theta = state.params["transformer"]["theta"]
    assert all(1e-4 < np.abs(leaf).max() < 1 for leaf in theta.values())


# --- The config -------------------------------------------------------------------------------------------------
def test_what_is_no_image_is_refused_before_anything_is_written(tmp_path):
    config = config_of(**{"dataset.name": "cube4_degree2", "dataset.augment": "none", "dataset.crop_padding": 0})
    with pytest.raises(ConfigError, match=r"config.model.front='stn' transforms images.*\[12, 4, 1, 1\] are none"):
        loop.train(config, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_vectors_are_refused(net):
    with pytest.raises(ConfigError, match=r"config.model.front='stn' transforms images.*\[2, 64\] are none"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, 64)))


def test_other_words_are_refused():
    with pytest.raises(ConfigError, match="config.model.front='dream': choose from none, stn"):
        config_of(**{"model.front": "dream"})


def test_runs_without_it_keep_their_names():
    assert config_lib.hash8(config_lib.base()) == "7680364e"  # as before there was a front: must not move
    assert config_lib.hash8(config_of()) != config_lib.hash8(config_of(**{"model.front": "none"}))
