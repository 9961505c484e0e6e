"""Schedules at known steps, and which parameters each part of the optimiser touches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resjax import config as config_lib
from resjax.models.build import build
from resjax.training import optim

STEPS = 100


def config_with(**changes):
    config = config_lib.base()
    config.update_from_flattened_dict({"schedule.warmup": 0.0, "optimizer.learning_rate": 1.0} | changes)
    config_lib.check(config)
    return config


def rates(**changes):
    rate = optim.schedule(config_with(**changes), STEPS)
    return np.array([rate(step) for step in range(STEPS)])


def test_constant():
    np.testing.assert_array_equal(rates(**{"schedule.name": "constant"}), 1)


def test_step_decays_at_the_milestones():
    got = rates(**{"schedule.name": "step", "schedule.milestones": (0.5, 0.75), "schedule.factor": 0.1})
    np.testing.assert_allclose(got[[0, 49, 50, 74, 75, 99]], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


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


@pytest.fixture(scope="module")
def params():
    net = build(config_with(**{"model.merge": "mul_bn1"}).model, 10)
    return net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]


def first_update(params, **changes):
    """The first update for a zero gradient."""
    tx = optim.optimizer(config_with(**{"optimizer.weight_decay": 0.1, "optimizer.name": "sgd"} | changes), STEPS)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    return jax.tree_util.tree_leaves_with_path(updates)


def names(path):
    return tuple(key.key for key in path)


def test_only_kernels_are_decayed(params):
    decayed = {names(path) for path, update in first_update(params) if np.any(update != 0)}
    assert decayed == {names(p) for p, _ in jax.tree_util.tree_leaves_with_path(params) if names(p)[-1] == "kernel"}


@pytest.mark.parametrize("target", [0, 1])
def test_gate_biases_are_pulled_to_their_target(params, target):
    params = jax.tree.map(lambda p: p + 0.5, params)  # gate biases are then 1.5
    pulled = {
        names(path): float(update[0])
        for path, update in first_update(params, **{"optimizer.gate_bias_decay": f"to{target}"})
        if names(path)[-1] == "bias" and np.any(update != 0)
    }
    assert len(pulled) == 6 and all("out_norm" in path for path in pulled)
    assert all(update == pytest.approx(-0.1 * (1.5 - target)) for update in pulled.values())


def test_gate_lr_multiplies_branch_and_merge_parameters_alone(params):
    plain, scaled = ({names(p): u for p, u in first_update(params, **{"optimizer.gate_lr": lr})} for lr in (1.0, 3.0))
    for path, update in plain.items():
        factor = 3 if {"branch", "merge"} & set(path) else 1
        np.testing.assert_allclose(scaled[path], factor * update, rtol=1e-6)


@pytest.mark.parametrize("name", config_lib.OPTIMIZERS)
def test_every_optimizer_lowers_a_quadratic(name):
    tx = optim.optimizer(config_with(**{"optimizer.name": name, "optimizer.learning_rate": 0.1}), STEPS)
    params = {"kernel": jnp.array([1.0, -2.0])}

    def loss(p):
        return jnp.sum(p["kernel"] ** 2)

    state, before = tx.init(params), loss(params)
    for _ in range(30):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < before


def test_adamw_decays_decoupled_from_the_gradient_scale(params):
    # Decay is -lr*wd*w for adamw; coupled decay through Adam's normalisation would give steps of size lr.
    for path, update in first_update(params, **{"optimizer.name": "adamw"}):
        if names(path) == ("stem", "kernel"):
            np.testing.assert_allclose(update, -0.1 * params["stem"]["kernel"], rtol=1e-5)


def test_clipping_bounds_the_gradient_norm(params):
    tx = optim.optimizer(
        config_with(**{"optimizer.name": "sgd", "optimizer.weight_decay": 0.0, "optimizer.clip_norm": 0.5}), STEPS
    )
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5, rel=1e-5)
