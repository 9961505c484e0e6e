"""Schedules at known steps, and which parameters each part of the optimiser touches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resjax import config as config_lib
from resjax.models import parameters
from resjax.models.build import build
from resjax.models.merges import MERGES
from resjax.training import optim

STEPS = 100


def config_with(**changes):
    config = config_lib.base()
    config.update_from_flattened_dict({"schedule.warmup": 0.0, "optimizer.learning_rate": 1.0} | changes)
    config_lib.check(config)
    return config


def rates(**changes):
    rate = optim.schedule(config_with(**changes), STEPS)
    return np.array(jax.jit(jax.vmap(rate))(jnp.arange(STEPS)))


def test_constant():
    np.testing.assert_array_equal(rates(**{"schedule.name": "constant"}), 1)


def test_step_decays_at_the_milestones():
    got = rates(**{"schedule.name": "step", "schedule.milestones": (0.5, 0.75), "schedule.factor": 0.1})
    np.testing.assert_allclose(got[[0, 49, 50, 74, 75, 99]], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_milestones_of_a_short_run_both_count():
    config = config_with(**{"schedule.name": "step", "schedule.milestones": (0.5, 0.52), "schedule.factor": 0.1})
    assert float(optim.schedule(config, 20)(19)) == pytest.approx(0.01)


def test_cosine():
    got = rates()
    np.testing.assert_allclose(got, (1 + np.cos(np.pi * np.arange(STEPS) / STEPS)) / 2, atol=1e-6)


def test_warmup_rises_linearly_and_never_starts_at_zero():
    got = rates(**{"schedule.warmup": 0.1, "schedule.name": "constant"})
    np.testing.assert_allclose(got[:11], np.arange(1, 12) / 11, rtol=1e-6)
    np.testing.assert_allclose(got[10:], 1)


def test_restarts_begin_each_cycle_at_the_peak():
    got = rates(**{"schedule.name": "restarts", "schedule.cycles": 4})
    np.testing.assert_allclose(got[[0, 25, 50, 75]], 1)
    assert got[[24, 49, 74, 99]].max() < 0.01


def test_onecycle_peaks_after_its_warmup():
    got = rates(**{"schedule.name": "onecycle", "schedule.warmup": 0.3})
    assert np.argmax(got) == 30 and got[30] == pytest.approx(1) and got[-1] < 0.01


@pytest.mark.parametrize("total", [2, 49, 98, 103])  # 49 * (1 / 49) is below 1
def test_onecycle_rises_for_a_step_at_least(total):
    config = config_with(**{"schedule.name": "onecycle", "schedule.warmup": 0.001})
    rate = optim.schedule(config, total)
    assert rate(0) == pytest.approx(config.optimizer.learning_rate / 25)
    assert rate(1) == pytest.approx(config.optimizer.learning_rate)


def params_of(merge):
    net = build(config_with(**{"model.merge": merge}).model, 10)
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 1.5, np.float32), params_of("mul_bn1"))


def first_update(params, **changes):
    """The first update for a zero gradient, by path."""
    tx = optim.optimizer(config_with(**{"optimizer.weight_decay": 0.1, "optimizer.name": "sgd"} | changes), STEPS)
    updates = jax.jit(lambda w: tx.update(jax.tree.map(jnp.zeros_like, w), tx.init(w), w)[0])(params)
    return {tuple(k.key for k in path): update for path, update in jax.tree_util.tree_leaves_with_path(updates)}


def paths(params, rule):
    found = (tuple(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return {path for path in found if rule(path)}


def test_only_kernels_are_decayed(params):
    decayed = {path for path, update in first_update(params).items() if np.any(update != 0)}
    assert decayed == paths(params, lambda path: path[-1] == "kernel")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("target", [0, 1])
def test_gate_biases_are_pulled_to_their_target(params, target, name):
    changes = {"optimizer.gate_bias_decay": f"to{target}", "optimizer.name": name, "model.merge": "mul_bn1"}
    updates = first_update(params, **changes)
    pulled = {path: update for path, update in updates.items() if path[-1] == "bias" and np.any(update != 0)}
    assert len(pulled) == 6 and all("out_norm" in path for path in pulled)
    for update in pulled.values():
        np.testing.assert_allclose(update, -0.1 * (1.5 - target), rtol=1e-5)


@pytest.mark.parametrize("merge, feeding", [("mul_bn1", 6), ("mul", 3), ("highway", 3)])
def test_which_biases_feed_a_merge(merge, feeding):
    # Of three blocks: the branch's, and the shortcut's if the merge asks for its norm (a projection's own is none).
    found = paths(params_of(merge), lambda path: parameters.is_gate_bias(MERGES[merge], path))
    assert len(found) == feeding and not any("merge" in path for path in found)


@pytest.mark.parametrize(
    "merge, module", [("mul_bn1", "branch"), ("se", "merge"), ("highway", "merge"), ("simam", "branch")]
)
def test_gate_lr_multiplies_what_computes_the_gate(merge, module):
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params_of(merge))
    plain, scaled = (first_update(params, **{"optimizer.gate_lr": lr, "model.merge": merge}) for lr in (1.0, 3.0))
    for path, update in plain.items():
        np.testing.assert_allclose(scaled[path], update * (3 if module in path else 1), rtol=1e-6)


@pytest.mark.parametrize("name", config_lib.OPTIMIZERS)
def test_every_optimizer_lowers_a_quadratic(name):
    tx = optim.optimizer(config_with(**{"optimizer.name": name, "optimizer.learning_rate": 0.1}), STEPS)
    params = {"kernel": jnp.array([1.0, -2.0])}

    def loss(p):
        return jnp.sum(p["kernel"] ** 2)

    state, before = tx.init(params), loss(params)
    update = jax.jit(tx.update)
    for _ in range(30):
        updates, state = update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < before


def test_adamw_decays_decoupled_from_the_gradient_scale(params):
    # Decay is -lr*wd*w for adamw; coupled decay through Adam's normalisation would give steps of size lr.
    update = first_update(params, **{"optimizer.name": "adamw"})["stem", "kernel"]
    np.testing.assert_allclose(update, -0.1 * params["stem"]["kernel"], rtol=1e-5)


def test_clipping_bounds_the_gradient_norm(params):
    tx = optim.optimizer(
        config_with(**{"optimizer.name": "sgd", "optimizer.weight_decay": 0.0, "optimizer.clip_norm": 0.5}), STEPS
    )

    @jax.jit
    def norm_of_update(params):
        updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        return optax.tree.norm(updates)

    assert float(norm_of_update(params)) == pytest.approx(0.5, rel=1e-5)
