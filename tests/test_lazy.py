"""Kernel regression, linearised and lazy training: against each other, neural-tangents, and a linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.ntk.empirical import empirical_ntk
from resjax.ntk.neural_tangents import nt
from resjax.regression import lazy

N, M, D, C = 12, 5, 20, 2


@pytest.fixture(scope="module")
def problem():
    """Inputs of N + M samples, targets of the first N, and the kernel x.x' of a linear model."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N + M, D)), rng.normal(size=(N, C))
    kernel = np.einsum("ij,cd->ijcd", x @ x.T, np.eye(C))
    return x, y, lazy.Kernels.of(kernel, N)


def linear(w, x):
    return x @ w["kernel"]


def test_pairs_are_ordered_by_sample_then_logit():
    kernel = np.arange(3 * 3 * C * C).reshape(3, 3, C, C)
    found = lazy.Kernels.of(kernel, 2)
    assert found.train.shape == (2 * C, 2 * C) and found.test.shape == (C, 2 * C)
    assert found.train[1 * C + 1, 0 * C + 0] == kernel[1, 0, 1, 0]
    assert found.test[1, 1 * C] == kernel[2, 1, 1, 0]


def test_regression_is_the_end_of_linearised_training(problem):
    x, y, kernels = problem
    rate = N / np.linalg.eigvalsh(kernels.train)[-1]
    train, test = lazy.linearised(kernels, y, rate=rate, momentum=0.9, steps=3000)
    np.testing.assert_allclose(train, y, atol=1e-9)
    want = lazy.regress(kernels, y)
    np.testing.assert_allclose(test, want, atol=1e-9)
    np.testing.assert_allclose(want, x[N:] @ np.linalg.pinv(x[:N]) @ y, atol=1e-9)
    of_samples = lazy.Kernels(x[:N] @ x[:N].T, x[N:] @ x[:N].T)
    np.testing.assert_allclose(lazy.regress(of_samples, y), want, atol=1e-9)


def test_linearised_training_agrees_with_neural_tangents(problem):
    """Many small steps without momentum are its gradient flow."""
    x, y, kernels = problem
    rate, steps = 1e-3, 5000
    with jax.enable_x64():
        predict = nt.predict.gradient_descent_mse(x[:N] @ x[:N].T, y)
        want = predict(rate * steps * C, 0.0, 0.0, x[N:] @ x[:N].T)  # its loss is a mean over logits, too
    train, test = lazy.linearised(kernels, y, rate=rate, momentum=0.0, steps=steps)
    np.testing.assert_allclose(train, want[0], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(test, want[1], rtol=1e-2, atol=1e-3)
    assert np.abs(train - y).max() > 0.05  # not at the end


@pytest.mark.parametrize("alpha", [0.5, 8.0])
def test_a_linear_model_is_lazy_at_every_scale(problem, alpha):
    x, y, kernels = problem
    w = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(2, D, C)), jnp.float32)}
    both = jnp.asarray(np.stack([x, x]), jnp.float32)
    rate = N / np.linalg.eigvalsh(kernels.train)[-1]
    kwargs = {"alpha_S": np.full(2, alpha), "rate_S": np.array([rate, rate / 2]), "momentum": 0.9, "chunk": 7}
    targets = jnp.asarray(np.stack([y, y]), jnp.float32)
    got = lazy.train(Partial(linear), w, both[:, :N], targets, both[:, N:], threshold_S=np.zeros(2), most=20, **kwargs)
    assert list(got.steps) == [20, 20]
    for replica, slower in enumerate((1, 2)):
        train, test = lazy.linearised(kernels, y, rate=rate / slower, momentum=0.9, steps=20)
        np.testing.assert_allclose(got.test[replica], test, rtol=1e-3, atol=1e-3)
        assert got.train_loss[replica] == pytest.approx(np.mean((train - y) ** 2), rel=0.3)  # a step before
    early = lazy.train(
        Partial(linear), w, both[:, :N], targets, both[:, N:], threshold_S=np.full(2, 0.5), most=200, **kwargs
    )
    assert np.all(early.steps < 200) and np.all(early.train_loss <= 0.5)
    for replica, slower in enumerate((1, 2)):
        kwargs = {"rate": rate / slower, "momentum": 0.9}
        losses = [lazy.linearised(kernels, y, steps=k, **kwargs)[0] - y for k in range(early.steps[replica] + 1)]
        assert [np.mean(loss**2) <= 0.5 for loss in losses] == [False] * early.steps[replica] + [True]
        test = lazy.linearised(kernels, y, steps=int(early.steps[replica]), **kwargs)[1]
        np.testing.assert_allclose(early.test[replica], test, rtol=1e-3, atol=1e-3)


def test_a_lazy_net_does_what_its_kernel_says():
    model = config_lib.base().model
    model.update({"name": "mlp", "merge": "mul", "depth": 4, "width": 48, "norm": "ln"})
    net = build(model, 1)
    x = jax.random.normal(jax.random.key(0), (N + M, 6))
    variables = net.init(jax.random.key(1), x)
    apply_fn, w = lazy.ntk_parametrised(net, variables)
    np.testing.assert_allclose(apply_fn(w, x), net.apply(variables, x), rtol=1e-5, atol=1e-6)
    matrices = jax.tree.leaves(w)
    assert {leaf.ndim for leaf in matrices} == {2}  # norms are not trained
    assert all(abs(leaf.std() - 1) < 0.15 for leaf in matrices if leaf.size > 500)
    y = np.random.default_rng(2).normal(size=(N, 1))
    kernels = lazy.Kernels.of(empirical_ntk(apply_fn, w, x), N)
    rate = N / np.linalg.eigvalsh(kernels.train)[-1]
    stack = jax.tree.map(lambda leaf: leaf[None], (apply_fn, w, x[:N], jnp.asarray(y, jnp.float32), x[N:]))
    kwargs = {"rate_S": np.array([rate]), "momentum": 0.9, "threshold_S": np.array([0.05]), "most": 1000}
    errors = {}
    for alpha in (1.0, 300.0):
        got = lazy.train(*stack, alpha_S=np.array([alpha]), **kwargs)
        want = lazy.linearised(kernels, y, rate=rate, momentum=0.9, steps=int(got.steps[0]))[1]
        errors[alpha] = np.sqrt(np.mean((got.test[0] - want) ** 2) / np.mean(want**2))
        assert got.train_loss[0] <= 0.05
    assert errors[300.0] < 0.03 < errors[1.0]


def test_a_singular_kernel_is_one_line():
    kernels = lazy.Kernels(np.ones((3, 3)), np.ones((1, 3)))
    with pytest.raises(ConfigError, match="the kernel of 3 pairs is singular: add a ridge"):
        lazy.regress(kernels, np.ones((3, 1)))
