"""Hessians, sharpness and slices against dense matrices, by hand, and on losses known in closed form."""

import math
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from experiments.landscape.tables import MASS_ERROR
from resjax import config
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.models.frozen import calibrated
from resjax.models.merges import with_backward_of
from resjax.probes.loss import objective
from resjax.probes.loss.curvature import EPS, LENGTHS, curvature, density, escape, krylov
from resjax.probes.loss.objective import Objective
from resjax.probes.loss.sharpness import sharpness
from resjax.probes.loss.slices import filter_normalised, interpolation, loss_surface
from resjax.probes.subject import Subject


def subject(net, x, classes, loss=optax.softmax_cross_entropy, seed=0):
    labels = jax.random.randint(jax.random.key(1), (len(x),), 0, classes)
    variables = jax.jit(net.init)(jax.random.key(seed), x)
    return Subject(net, variables, x, jax.nn.one_hot(labels, classes, dtype=x.dtype), loss, jax.random.key(2))


def output(logits_BxK, targets_BxK):
    return logits_BxK[:, 0]


# --- Against the dense Hessian ----------------------------------------------------------------------------------
class Gated(nn.Module):
    """An mlp with a block s * sig(f): 91 parameters."""

    @nn.compact
    def __call__(self, x, train=False):
        s = jnp.tanh(nn.Dense(4, param_dtype=x.dtype)(x))
        return nn.Dense(3, param_dtype=x.dtype)(s * nn.sigmoid(nn.Dense(4, param_dtype=x.dtype)(s)))


@cache
def dense():
    """A replica in double precision, its loss, and the loss's dense gradient and Hessian."""
    at = subject(Gated(), jax.random.normal(jax.random.key(3), (13, 6), float), 3)
    w, unravel = ravel_pytree(at.variables["params"])

    def loss(w):
        return jnp.mean(at.loss(at.net.apply({"params": unravel(w)}, at.x_BxHxWxC), at.targets_BxK))

    return at, *jax.device_get(jax.jit(lambda w: (loss(w), jax.grad(loss)(w), jax.hessian(loss)(w)))(w))


@pytest.fixture
def small():
    with jax.enable_x64(True):
        yield dense()


@pytest.fixture
def chunked(monkeypatch):
    monkeypatch.setattr(objective.batches, "at_once", lambda shape: 5)  # 13 images: the last chunk is not full


def test_all_directions_and_steps_give_the_exact_hessian(small, chunked):
    at, loss, gradient, H = small
    P, values = len(H), np.linalg.eigvalsh(H)
    assert P < 500
    row = curvature(at, probes=P, steps=P, samples=P).iloc[0]
    radius = np.abs(values).max()
    want = {
        "loss": loss, "grad_norm": np.linalg.norm(gradient), "lambda_max": values[-1], "lambda_min": values[0],
        "trace": np.trace(H), "trace_se": 0, "eps": EPS * radius, "negative_se": 0, "parameters": P,
        "negative": np.mean(values < -EPS * radius), "lambda_max_error": 0, "lambda_min_error": 0,
        "negative_mass": -values[values < 0].sum() / np.abs(values).sum(),
    }  # fmt: skip
    assert 0.05 < want["negative"] < 0.95
    for name, value in want.items():
        assert row[name] == pytest.approx(value, abs=1e-6 * max(radius, 1)), name


def test_few_steps_integrate_polynomials_exactly(small, chunked):
    at, _, _, H = small
    found = krylov(Objective.of(at), jax.random.key(5), probes=2, steps=6, samples=4)
    directions = np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(5), (len(H), 4), float)))[0].T
    np.testing.assert_allclose(found.forms_k, np.einsum("ki,ij,kj->k", directions, H, directions), atol=1e-8)
    for v, values, weights in zip(directions, found.values_nxm, found.weights_nxm, strict=False):
        for power in range(12):  # Gauss quadrature with 6 nodes: up to degree 11
            want = v @ np.linalg.matrix_power(H, power) @ v
            assert weights @ values**power == pytest.approx(want, rel=1e-6)


def test_the_error_of_a_ritz_value_is_the_norm_of_its_residual(small):
    at, _, _, H = small
    found = krylov(Objective.of(at), jax.random.key(5), probes=1, steps=6)
    u, value = found.lowest_nxP[0], found.values_nxm[0, 0]
    assert np.linalg.norm(u) == pytest.approx(1, abs=1e-8)
    assert u @ H @ u == pytest.approx(value, abs=1e-8)
    assert np.linalg.norm(H @ u - value * u) == pytest.approx(found.errors_nxm[0, 0], abs=1e-8)
    assert np.abs(np.linalg.eigvalsh(H) - value).min() <= found.errors_nxm[0, 0]


def test_nodes_of_the_density(small):
    at, _, _, H = small
    nodes = density(at, probes=3, steps=7)
    assert len(nodes) == 21 and list(nodes["probe"].unique()) == [0, 1, 2]
    np.testing.assert_allclose(nodes.groupby("probe")["weight"].sum(), 1)
    values = np.linalg.eigvalsh(H)
    assert nodes["eigenvalue"].between(values[0] - 1e-9, values[-1] + 1e-9).all()


def test_the_negative_mass_of_few_steps_is_right_within_its_error(small):
    at, _, _, H = small
    values = np.linalg.eigvalsh(H)
    row = curvature(at, probes=12, steps=24, samples=12).iloc[0]
    assert abs(row["negative_mass"] + values[values < 0].sum() / np.abs(values).sum()) < MASS_ERROR


# Quantiles of the eigenvalues of a trained ResNet-8 of width 4, over the largest; its Hessian was formed.
SHARES = (0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.45, 0.6, 0.75, 0.9, 0.95, 0.99, 0.995, 0.998, 0.9995, 1)
QUANTILES = (-4.2e-3, -2.9e-3, -1.3e-3, -4.4e-4, -1.9e-4, -1.6e-5, 0, 0, 3.2e-5, 2.8e-4, 6.6e-4, 3.6e-3, 8.3e-3,
             2.6e-2, 0.15, 1)  # fmt: skip


class Quadratic(nn.Module):
    """The sum of l w^2 / 2 with 1000 eigenvalues l whose quantiles are QUANTILES."""

    eigenvalues = np.interp((np.arange(1000) + 0.5) / 1000, SHARES, QUANTILES)

    @nn.compact
    def __call__(self, x, train=False):
        w = self.param("w", nn.initializers.ones, (1000,), x.dtype)
        return jnp.zeros_like(x) + jnp.sum(jnp.asarray(self.eigenvalues, x.dtype) * w**2) / 2


def test_of_a_trained_nets_spectrum_few_steps_tell_the_mass_and_not_the_share():
    with jax.enable_x64(True):
        at = subject(Quadratic(), jnp.zeros((2, 1), float), 1, output)
        row = curvature(at, probes=12, steps=24, samples=12).iloc[0]
    values = Quadratic.eigenvalues
    assert abs(row["negative_mass"] + values[values < 0].sum() / np.abs(values).sum()) < MASS_ERROR
    share = np.mean(values < -row["eps"])
    assert abs(row["negative"] - share) > 5 * row["negative_se"]  # why the study does not publish it


# --- Steps off a saddle -----------------------------------------------------------------------------------------
class Saddle(nn.Module):
    """(a^2 - b^2)/2 + c^2 whatever the input."""

    @nn.compact
    def __call__(self, x, train=False):
        a, b, c = self.param("abc", nn.initializers.zeros, (3,))
        return jnp.zeros_like(x) + (a**2 - b**2) / 2 + c**2


def test_a_step_off_a_toy_saddle():
    at = subject(Saddle(), jnp.zeros((2, 1)), 1, output)
    found = escape(at, steps=3, lengths=(0.5, 2)).pivot(index="length", columns="direction", values="loss")
    np.testing.assert_allclose(found[["+", "-"]], [[-0.125] * 2, [-2] * 2], rtol=1e-5)
    np.testing.assert_array_equal(found["gradient"], 0)  # which is none
    row = curvature(at, probes=3, steps=3, samples=3).iloc[0]
    assert row[["loss", "grad_norm"]].eq(0).all()
    want = {"lambda_max": 2, "lambda_min": -1, "trace": 2, "negative": 1 / 3, "negative_mass": 1 / 4}
    for name, value in want.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name
    assert row["escape_length"] == 10 and row["escape_loss"] == pytest.approx(-50, rel=1e-5)
    assert np.isnan(row["escape_even"])  # relative to a loss of 0
    moved = curvature(at._replace(variables={"params": {"abc": jnp.array([1.0, 0, 0])}}), steps=3).iloc[0]
    assert moved["descent_loss"] == pytest.approx(0, abs=0.03)  # by a length near 1
    assert moved["gradient_loss"] == pytest.approx((1 - 10) ** 2 / 2, rel=1e-5)


def test_what_a_step_owes_to_the_gradient_is_odd_and_random_directions_find_it_too():
    """At (a, b, c) = (2, 1, 0) the loss is 3/2; after a step of l along +-b it is 3/2 - l^2/2 -+ l."""
    at = subject(Saddle(), jnp.zeros((2, 1)), 1, output)
    at = at._replace(variables={"params": {"abc": jnp.array([2.0, 1, 0])}})
    row = curvature(at, probes=3, steps=3).iloc[0]
    assert row["escape_loss"] == pytest.approx(1.5 - 50 - 10, rel=1e-5)
    assert row["escape_even"] == pytest.approx(50 / 1.5, rel=1e-5)
    starts = krylov(Objective.of(at), jax.random.fold_in(at.key, 0), 3, 3, 6).starts_nxP
    np.testing.assert_allclose(starts @ starts.T, np.eye(3), atol=1e-5)
    lengths = np.concatenate([LENGTHS, -np.array(LENGTHS)])
    best = []
    for v in starts:
        a, b, c = np.array([2, 1, 0])[:, None] + v[:, None] * lengths
        best.append(((a**2 - b**2) / 2 + c**2).min())
    assert row["random_loss"] == pytest.approx(np.mean(best), rel=1e-4) and row["random_loss"] < 1.5


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        zeros = {"use_bias": False, "kernel_init": nn.initializers.zeros}
        return nn.Dense(2, **zeros)(jnp.tanh(nn.Dense(3, **zeros)(x)))


def squared(logits_BxK, targets_BxK):
    return jnp.sum((logits_BxK - targets_BxK) ** 2, -1) / 2


def test_a_step_off_the_saddle_at_weights_zero():
    """There the gradient is 0, and the eigenvalues are 0 and, once per hidden unit, +-sigma of E x y^T."""
    x = jax.random.normal(jax.random.key(6), (20, 4))
    at = subject(TwoLayers(), x, 2, squared)
    sigma = np.linalg.svd(np.asarray(x).T @ np.asarray(at.targets_BxK) / 20)[1]
    row = curvature(at, probes=18, steps=18, samples=18).iloc[0]
    want = {"grad_norm": 0, "lambda_min": -sigma[0], "lambda_max": sigma[0], "trace": 0, "negative": 6 / 18}
    for name, value in want.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name
    assert row["escape_loss"] < row["loss"] - 0.01 and row["descent_loss"] == row["gradient_loss"] == row["loss"]


def test_nothing_to_escape_from():
    at = subject(Bowl(), jnp.zeros((2, 1)), 1, output)
    assert curvature(at, steps=2).iloc[0][["escape_length", "escape_loss", "escape_even", "random_loss"]].isna().all()


# --- ResNet -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_lanczos_finds_the_extremes_of_a_resnet_within_a_percent():
    model = config.base().model
    model.update({"width": 4, "merge": "mul_bn1", "activation": "gelu"})
    net = build(model, 10)
    net = net.clone(stages=net.stages[:1])  # the others would only take time
    at = subject(net, jax.random.normal(jax.random.key(7), (64, 8, 8, 1)), 10)
    function = Objective.of(at._replace(variables=calibrated(at.net, at.variables, at.x_BxHxWxC)))
    values = krylov(function, jax.random.key(8), probes=1, steps=24).values_nxm
    gradient, w = jax.jit(lambda w: function.value_and_gradient(w)[1]), function.vector()

    def matvec(v):  # by central differences, which see the kinks of a ReLU; autodiff does not
        step = 0.02 * jnp.asarray(v.ravel() / np.linalg.norm(v), jnp.float32)
        return np.asarray(gradient(w + step) - gradient(w - step)) * np.linalg.norm(v) / 0.04

    H = LinearOperator((w.size, w.size), matvec=matvec, dtype=np.float32)
    lowest, highest = np.sort(eigsh(H, k=2, which="BE", tol=1e-3, return_eigenvectors=False))
    assert values.max() == pytest.approx(highest, rel=0.01)
    assert values.min() == pytest.approx(lowest, rel=0.01)


# --- No Hessian -------------------------------------------------------------------------------------------------
class Swapped(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        s, f = nn.Dense(3)(x), nn.Dense(3)(x)
        return with_backward_of(jnp.multiply, jnp.add)(s, f)


def test_a_backward_pass_of_another_merge_has_no_hessian():
    at = subject(Swapped(), jax.random.normal(jax.random.key(3), (13, 4)), 3)
    row = curvature(at, probes=1, steps=3, samples=1).iloc[0]
    assert set(row.index[row.notna()]) == {"loss", "grad_norm", "parameters"}
    logits = at.net.apply(at.variables, at.x_BxHxWxC)
    assert row["loss"] == pytest.approx(float(at.loss(logits, at.targets_BxK).mean()), rel=1e-5)
    assert density(at, probes=1, steps=3)["eigenvalue"].isna().all()


# --- Sharpness --------------------------------------------------------------------------------------------------
class Bowl(nn.Module):
    """a^2/2 + 2 b^2 whatever the input, at (a, b) = (3, 1)."""

    @nn.compact
    def __call__(self, x, train=False):
        a, b = self.param("ab", lambda key: jnp.array([3.0, 1.0]))
        return jnp.zeros_like(x) + a**2 / 2 + 2 * b**2


def test_sharpness_of_a_quadratic_in_closed_form():
    row = sharpness(subject(Bowl(), jnp.zeros((2, 1)), 1, output), ascent=50, radii=(0.1, 0.5, 0.2)).iloc[0]
    loss = 3**2 / 2 + 2
    assert row["loss"] == loss
    corner = 3.4**2 / 2 + 2 * 1.2**2  # |d| <= .1 * (|w| + 1): (.4, .2)
    assert row["box"] == pytest.approx(100 * (corner - loss) / (1 + loss), rel=1e-5)

    def highest(size):  # over the ellipse with these half-axes, by brute force
        angle = np.linspace(0, 2 * np.pi, 200_001)
        return ((3 + size[0] * np.cos(angle)) ** 2 / 2 + 2 * (1 + size[1] * np.sin(angle)) ** 2).max() - loss

    assert row["sam"] == pytest.approx(highest((0.5, 0.5)), rel=1e-5)
    assert row["asam"] == pytest.approx(highest((0.6, 0.2)), rel=1e-5)
    assert row["lambda_max"] == pytest.approx(4, rel=1e-5) and row["trace"] == pytest.approx(5, rel=1e-5)


def test_a_single_ascent_step_is_that_of_sam():
    row = sharpness(subject(Bowl(), jnp.zeros((2, 1)), 1, output), ascent=1, radii=(0.1, 0.5, 0.2)).iloc[0]
    a, b = np.array([3, 1]) + 0.5 * np.array([3, 4]) / 5
    assert row["sam"] == pytest.approx(a**2 / 2 + 2 * b**2 - 6.5, rel=1e-5)


class Normed(nn.Module):
    """A layer whose scale a norm with frozen statistics removes."""

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dense(4, use_bias=False, name="layer")(x)
        h = nn.BatchNorm(use_running_average=not train, epsilon=0, momentum=0.9, name="bn")(h)
        return nn.Dense(3, name="head")(nn.relu(h))


def test_only_adaptive_sharpness_ignores_a_scale_that_a_norm_removes():
    x = jax.random.normal(jax.random.key(8), (30, 5))
    at = subject(Normed(), x, 3)
    params, stats = at.variables["params"], at.variables["batch_stats"]["bn"]
    larger = {
        "params": params | {"layer": {"kernel": 3 * params["layer"]["kernel"]}},
        "batch_stats": {"bn": {"mean": 3 * stats["mean"], "var": 9 * stats["var"]}},
    }
    one, three = (sharpness(at._replace(variables=v), steps=8).iloc[0] for v in (at.variables, larger))
    assert three["asam"] == pytest.approx(one["asam"], rel=1e-3) and three["loss"] == pytest.approx(one["loss"])
    for name in ("sam", "lambda_max", "trace"):
        assert three[name] < 0.99 * one[name], name


# --- Slices -----------------------------------------------------------------------------------------------------
def test_filters_of_a_direction_have_the_norms_of_the_net():
    params = {"conv": jax.random.normal(jax.random.key(9), (3, 3, 2, 5)), "bias": jnp.ones(5)}
    d = filter_normalised(jax.random.key(10), params)
    np.testing.assert_array_equal(d["bias"], 0)
    norms = [np.linalg.norm(np.reshape(a, (18, 5)), axis=0) for a in (d["conv"], params["conv"])]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    assert np.abs(np.corrcoef(np.ravel(d["conv"]), np.ravel(params["conv"]))[0, 1]) < 0.5


@pytest.fixture(scope="module")
def pair():
    """Two replicas of a net with BatchNorm."""
    x = jax.random.normal(jax.random.key(11), (24, 5))
    ats = {seed: subject(Normed(), x, 3, seed=seed) for seed in (4, 7)}
    return {seed: at._replace(variables=calibrated(at.net, at.variables, x)) for seed, at in ats.items()}


def losses_of(at, variables):
    logits = at.net.apply(variables, at.x_BxHxWxC)
    wrong = np.argmax(logits, -1) != np.argmax(at.targets_BxK, -1)
    return float(jnp.mean(at.loss(logits, at.targets_BxK))), wrong.mean()


def test_the_middle_of_a_plane_is_the_net_itself(pair):
    at = pair[4]
    plane = loss_surface(at, points=3, reach=0.5).set_index(["a", "b"])["loss"]
    assert len(plane) == 9 and plane[0, 0] == pytest.approx(losses_of(at, at.variables)[0], rel=1e-5)
    params = at.variables["params"]
    d = filter_normalised(jax.random.split(jax.random.fold_in(at.key, 1))[0], params)
    moved = at.variables | {"params": jax.tree.map(lambda w, d: w - 0.5 * d, params, d)}
    assert plane[-0.5, 0] == pytest.approx(losses_of(at, moved)[0], rel=1e-5)


def test_the_line_between_two_nets(pair):
    found = interpolation(pair, points=3).set_index(["statistics", "alpha"])
    assert set(found["seed"]) == {4} and set(found["other"]) == {7} and len(found) == 6
    for alpha, at in ((0, pair[4]), (1, pair[7])):
        for statistics in ("interpolated", "recomputed"):
            got = found.loc[(statistics, alpha), ["loss", "error"]]
            np.testing.assert_allclose(got.astype(float), losses_of(at, at.variables), rtol=1e-4)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, pair[4].variables, pair[7].variables)
    recomputed = calibrated(pair[4].net, middle, pair[4].x_BxHxWxC)
    for statistics, variables in (("interpolated", middle), ("recomputed", recomputed)):
        assert found.loc[(statistics, 0.5), "loss"] == pytest.approx(losses_of(pair[4], variables)[0], rel=1e-4)
    assert math.isfinite(found["loss"].max())


def test_a_line_needs_two_nets(pair):
    with pytest.raises(ConfigError, match="needs two replicas"):
        interpolation({4: pair[4]})
