"""A net between its tangent kernel and itself: regression by the kernel, its linearised training, and lazy training.

All three learn targets y [n, C] from the same net in the NTK parametrisation (Jacot et al. 2018, 1806.07572): weights
are `std * w` with w ~ N(0, 1), so that at infinite width every matrix has its share in the kernel; norms stay as they
are. They minimise the mean over samples of |F(x) - y|^2 / 2 for

    F = alpha (f(w) - f(w0)),   divided by alpha^2   (Chizat, Oyallon & Bach 2019, 1812.07956, eq. 3)

by heavy-ball steps `v <- momentum v - rate gradient, w <- w + v` on the whole training set. For large alpha the weights
stay where they are and F follows the kernel at w0; alpha = 1 is the net itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import lax
from jax.tree_util import Partial

from resjax.config import ConfigError
from resjax.ntk.empirical import flat


def ntk_parametrised(net: nn.Module, variables: dict[str, Any]) -> tuple[Partial, Any]:
    """(apply_fn, w) with `apply_fn(w, x [n, ...]) -> [n, C]` the frozen net, and w its matrices over their initial std.

    The std is that of `resjax.models`: He's, and sqrt(1 / fan_in) for the head.
    """
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    is_matrix = jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)
    w = jax.tree.map_with_path(lambda path, leaf: leaf / _std(path, leaf) if path[-1].key == "kernel" else None, params)
    fixed = jax.tree.map(lambda leaf, chosen: None if chosen else leaf, params, is_matrix)
    return Partial(_apply, Partial(net.apply), fixed, rest), w


def _apply(apply: Callable, fixed: Any, rest: dict[str, Any], w: Any, x: jax.Array) -> jax.Array:
    params = jax.tree.map_with_path(
        lambda path, leaf, kept: kept if leaf is None else leaf * _std(path, leaf),
        w,
        fixed,
        is_leaf=lambda leaf: leaf is None,
    )
    return apply({"params": params, **rest}, x)


def _std(path: tuple, leaf: jax.Array) -> float:
    fan_in = np.prod(leaf.shape[:-1])
    return float(np.sqrt((1 if path[0].key == "head" else 2) / fan_in))


class Kernels(NamedTuple):
    """A kernel between n training samples, and from m test samples to them, as matrices of (sample, logit) pairs."""

    train: np.ndarray  # [n C, n C]
    test: np.ndarray  # [m C, n C]

    @classmethod
    def of(cls, kernel: np.ndarray, n: int) -> "Kernels":
        """From [n + m, n + m, C, C] (or [n + m, n + m]) of the training samples, then the test samples."""
        kernel = kernel[..., None, None] if kernel.ndim == 2 else kernel
        C = kernel.shape[-1]
        matrix = flat(np.asarray(kernel, np.float64))
        return cls(matrix[: n * C, : n * C], matrix[n * C :, : n * C])


def regress(kernels: Kernels, y_NxC: np.ndarray, *, ridge: float = 0.0) -> np.ndarray:
    """Kernel regression's F at the test samples, [m, C]; a kernel of samples alone is that of every logit.

    `ridge` is added to the diagonal, in units of its mean. Raises ConfigError where the kernel is singular.
    """
    K = kernels.train + ridge * np.mean(np.diag(kernels.train)) * np.eye(len(kernels.train))
    try:
        weights = scipy.linalg.cho_solve(scipy.linalg.cho_factor(K), y_NxC.reshape(len(K), -1))
    except np.linalg.LinAlgError:
        raise ConfigError(f"the kernel of {len(K)} pairs is singular: add a ridge") from None
    return (kernels.test @ weights).reshape(-1, y_NxC.shape[1])


def linearised(
    kernels: Kernels, y_NxC: np.ndarray, *, rate: float, momentum: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """F of the linearised net at training and test samples after so many steps, in closed form: mode by mode."""
    n, C = y_NxC.shape
    eigenvalues, modes = np.linalg.eigh(kernels.train)
    target = modes.T @ y_NxC.reshape(-1)
    # w - w0 = J' a: the steps of a, in the eigenbasis, are those of scalar quadratics. F = K a.
    a = velocity = np.zeros_like(target)
    for _ in range(steps):
        velocity = momentum * velocity - rate / n * (eigenvalues * a - target)
        a = a + velocity
    a = modes @ a
    return (kernels.train @ a).reshape(n, C), (kernels.test @ a).reshape(-1, C)


class Learned(NamedTuple):
    """What `train` has reached, of each replica [S].

    Attributes:
      test: F at the test samples, [S, m, C].
      train_loss: mean of (F - y)^2 over training samples and logits.
      steps: done when that fell to the threshold, or in all.
      moved: |w - w0| / |w0|.
    """

    test: np.ndarray
    train_loss: np.ndarray
    steps: np.ndarray
    moved: np.ndarray


def train(
    apply_fn: Partial,
    w: Any,
    x: jax.Array,
    y_SxNxC: jax.Array,
    test_x: jax.Array,
    *,
    alpha_S: np.ndarray,
    rate_S: np.ndarray,
    momentum: float,
    threshold_S: np.ndarray,
    most: int,
    chunk: int = 20,
) -> Learned:
    """Lazy training of S replicas, each until its training loss falls to its threshold, or for `most` steps.

    Args:
      apply_fn: its leaves, `w`, `x` [S, n, ...] and `test_x` [S, m, ...] have a leading axis of replicas.
      w: initial matrices.
      x: training inputs.
      y_SxNxC: targets.
      test_x: test inputs.
      alpha_S: scales.
      rate_S: learning rates; stable below 2 (1 + momentum) n / (largest eigenvalue of the kernel) at large alpha.
      momentum: of the heavy ball.
      threshold_S: of the mean squared error; a replica stays where it first reaches it.
      most: steps.
      chunk: steps between two looks at whether all have ended.
    """
    state = _start(apply_fn, w, x, y_SxNxC)
    alpha_S, rate_S, threshold_S = (jnp.asarray(a, jnp.float32) for a in (alpha_S, rate_S, threshold_S))
    for _ in range(0, most, chunk):
        state = _steps(apply_fn, w, x, y_SxNxC, rate_S, threshold_S, alpha_S, state, momentum, most, chunk)
        if not np.any(state.going):
            break
    test, moved = _read(apply_fn, w, test_x, state, alpha_S)
    return Learned(*(np.asarray(a) for a in (test, state.loss, state.steps, moved)))


class _State(NamedTuple):
    w: Any
    velocity: Any
    loss: jax.Array
    steps: jax.Array
    going: jax.Array


@jax.jit
def _start(apply_fn, w, x, y_SxNxC) -> _State:
    def start(w, y_NxC):
        zeros = jax.tree.map(jnp.zeros_like, w)
        return _State(w, zeros, jnp.mean(y_NxC**2), jnp.zeros((), jnp.int32), jnp.ones((), bool))

    return jax.vmap(start)(w, y_SxNxC)


@partial(jax.jit, static_argnames="chunk")
def _steps(apply_fn, w0, x, y_SxNxC, rate_S, threshold_S, alpha_S, state, momentum, most, chunk) -> _State:
    def of_replica(apply_fn, w0, x, y_NxC, rate, threshold, alpha, state):
        f0_NxC = apply_fn(w0, x)

        def objective(w):
            error_NxC = alpha * (apply_fn(w, x) - f0_NxC) - y_NxC
            return jnp.sum(error_NxC**2) / (2 * len(x) * alpha**2), jnp.mean(error_NxC**2)

        def step(_, state):
            (_, loss), gradient = jax.value_and_grad(objective, has_aux=True)(state.w)
            velocity = jax.tree.map(lambda v, g: momentum * v - rate * g, state.velocity, gradient)
            moved = jax.tree.map(jnp.add, state.w, velocity)
            going = state.going & (loss > threshold) & (state.steps < most) & jnp.isfinite(loss)
            new = _State(moved, velocity, loss, state.steps + 1, going)
            stay = state._replace(loss=jnp.where(state.going, loss, state.loss), going=going)
            return jax.tree.map(partial(jnp.where, going), new, stay)

        return lax.fori_loop(0, chunk, step, state)

    return jax.vmap(of_replica)(apply_fn, w0, x, y_SxNxC, rate_S, threshold_S, alpha_S, state)


@jax.jit
def _read(apply_fn, w0, test_x, state, alpha_S):
    def of_replica(apply_fn, w0, test_x, state, alpha):
        test = alpha * (apply_fn(state.w, test_x) - apply_fn(w0, test_x))
        distance = jnp.sqrt(sum(jnp.sum((a - b) ** 2) for a, b in _pairs(state.w, w0)))
        return test, distance / jnp.sqrt(sum(jnp.sum(b**2) for _, b in _pairs(state.w, w0)))

    return jax.vmap(of_replica)(apply_fn, w0, test_x, state, alpha_S)


def _pairs(a, b):
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
