"""Eigenvalues of a kernel, and how much of the target lies along each eigenvector.

The modes of a full kernel [M, M, C, C] are those of the matrix of its M * C (sample, logit) pairs, and the targets
[M, C] are one vector over these pairs. The modes of a kernel [M, M] are shared by the C targets, which keep their own
coefficients. Either way `points` counts the rows of the matrix, eigenvalues are those of K / points, and coefficients
are u_i . y / sqrt(points): population quantities of the uniform distribution over the points (2110.03922, section 2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.tree_util import Partial
from numpy.typing import ArrayLike

from resjax.config import ConfigError
from resjax.ntk.empirical import flat
from resjax.ntk.lanczos import lanczos
from resjax.theory import eigenlearning

ROUNDING = 1e-5  # relative to the largest eigenvalue or entry: of float32 Jacobians


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and target coefficients of a kernel over a population of labelled points.

    Attributes:
      eigenvalues: [modes], of K / points, largest first; negative ones (rounding) are set to 0.
      coefficients: [modes] or [modes, targets].
      points: rows of the kernel matrix: samples, or (sample, logit) pairs.
      samples: M.
      trace: of K / points; what the modes lack of it is the tail that was cut off.
      power: [] or [targets], mean square of the targets over all points.
      negative: sum of the eigenvalues that were set to 0.
    """

    eigenvalues: np.ndarray
    coefficients: np.ndarray
    points: int
    samples: int
    trace: float
    power: np.ndarray
    negative: float

    @property
    def tail(self) -> float:
        """Trace of the modes that were cut off."""
        return max(self.trace - float(self.eigenvalues.sum()), 0.0) if len(self.eigenvalues) < self.points else 0.0

    def predict(self, n: ArrayLike, *, ridge: ArrayLike = 0.0, noise: ArrayLike = 0.0) -> eigenlearning.Prediction:
        """Eigenlearning for `n` of the samples (an array, or one number); `ridge` is added to K.

        A tail that was cut off acts as ridge, and its share of the target can't be learned: it is noise.
        """
        seen = np.asarray(n) * (self.points / self.samples)
        missing = np.maximum(self.power - np.sum(self.coefficients**2, 0), 0)
        if not self.tail:
            missing = np.zeros_like(missing)
        return eigenlearning.predict(
            self.eigenvalues, self.coefficients, seen, ridge=ridge + self.tail, noise=noise + missing
        )


def spectrum(kernel: np.ndarray, targets_MxC: np.ndarray) -> Spectrum:
    """The spectrum of a full kernel [M, M, C, C], or of a kernel [M, M].

    Raises:
      ConfigError: sizes that do not match, NaN, a kernel that is not symmetric or not positive semi-definite beyond
        rounding.
    """
    matrix, targets_MxC = checked(kernel, targets_MxC)
    eigenvalues, vectors = scipy.linalg.eigh(matrix, driver="evd", check_finite=False)
    points, samples = len(matrix), len(targets_MxC)
    eigenvalues, vectors = eigenvalues[::-1] / points, vectors[:, ::-1]
    if eigenvalues[-1] < -ROUNDING * eigenvalues[0]:
        raise ConfigError(
            f"the kernel {kernel.shape} is not positive semi-definite: eigenvalues of K / {points} from "
            f"{eigenvalues[-1]:.3g} to {eigenvalues[0]:.3g}"
        )
    y = targets_MxC.reshape(-1) if kernel.ndim == 4 else targets_MxC
    return Spectrum(
        eigenvalues=np.maximum(eigenvalues, 0),
        coefficients=vectors.T @ y / math.sqrt(points),
        points=points,
        samples=samples,
        trace=float(np.trace(matrix)) / points,
        power=np.mean(y**2, 0),
        negative=float(np.minimum(eigenvalues, 0).sum()),
    )


def checked(kernel: np.ndarray, targets_MxC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kernel as an exactly symmetric matrix over its points, and targets [M, C], both float64; else ConfigError."""
    kernel, y = np.asarray(kernel, float), np.asarray(targets_MxC, float)
    y = y[:, None] if y.ndim == 1 else y
    M, C = y.shape
    if kernel.shape not in ((M, M), (M, M, C, C)):
        raise ConfigError(f"a kernel {kernel.shape} does not fit targets {y.shape}: want [M, M] or [M, M, C, C]")
    for name, array in (("kernel", kernel), ("targets", y)):
        if bad := array.size - np.isfinite(array).sum():
            raise ConfigError(f"{bad} of {array.size} entries of the {name} {array.shape} are not finite")
    matrix = flat(kernel)
    apart, size = np.abs(matrix - matrix.T).max(), np.abs(matrix).max()
    if apart > ROUNDING * size:
        raise ConfigError(
            f"the kernel {kernel.shape} is not symmetric: entries differ by {apart:.3g}, the largest is {size:.3g}"
        )
    return (matrix + matrix.T) / 2, y


def top_spectrum(
    apply_fn: Callable, params: Any, x: jax.Array, targets_MxC: np.ndarray, modes: int, *, block_size: int = 64
) -> Spectrum:
    """The leading modes of the full kernel without forming it: Lanczos on products K v.

    Memory: that of 2 * modes + 20 vectors of M * C entries, and of one block's backward pass. The trace is exact. Of
    eigenvalues that are equal to rounding only one is found, but for 0: the kernels of trained nets have no others.
    Merges
    without a forward-mode derivative (`swap_*`) are refused by JAX.

    Args:
      apply_fn: as in `empirical_ntk`.
      params: what is differentiated.
      x: [M, ...].
      targets_MxC: centred.
      modes: number of eigenpairs.
      block_size: samples per pass.

    Raises:
      ConfigError: more modes than points, or sizes that do not match.
    """
    y = np.asarray(targets_MxC, float)
    if y.ndim != 2 or not (np.isfinite(y).all() and np.isfinite(x).all()) or block_size < 1:
        raise ConfigError(f"top_spectrum: x {x.shape} and targets {y.shape} [M, C] must be finite, block_size positive")
    f = apply_fn if isinstance(apply_fn, Partial) else Partial(apply_fn)
    points, vectors = y.size, min(y.size, 2 * modes + 20)
    if len(x) != len(y) or not 0 < modes <= points:
        raise ConfigError(f"top_spectrum: {modes} modes of {len(x)} samples x {y.shape} targets")
    count = -(-len(x) // block_size)
    padded = np.concatenate([np.asarray(x), np.repeat(np.asarray(x[-1:]), count * block_size - len(x), axis=0)])
    blocks = jnp.asarray(padded).reshape(count, block_size, *x.shape[1:])
    with jax.default_matmul_precision("highest"):
        values, basis = _lanczos(f, params, blocks, y.shape, vectors)
        trace = float(np.sum(_diagonal(f, params, blocks)[: len(x)], dtype=float)) / points
    keep = np.argsort(values)[::-1][:modes]
    eigenvalues = np.asarray(values, float)[keep] / points
    return Spectrum(
        eigenvalues=np.maximum(eigenvalues, 0),
        coefficients=np.asarray(basis, float)[keep] @ y.reshape(-1) / math.sqrt(points),
        points=points,
        samples=len(x),
        trace=trace,
        power=np.mean(y**2),
        negative=float(np.minimum(eigenvalues, 0).sum()),
    )


@partial(jax.jit, static_argnames=("shape", "vectors"))
def _lanczos(f: Partial, params, blocks, shape: tuple[int, int], vectors: int) -> tuple[jax.Array, jax.Array]:
    """Ritz values [vectors] and Ritz vectors [vectors, M * C] of K."""
    M, C = shape
    padding = blocks.shape[0] * blocks.shape[1] - M

    def kernel_times(v_P):
        """J J^T v: backwards block by block, then forwards."""
        v = jnp.pad(v_P.reshape(M, C), ((0, padding), (0, 0))).reshape(*blocks.shape[:2], C)

        def backwards(total, block):
            x, v = block
            gradient = jax.vjp(lambda p: f(p, x), params)[1](v)[0]
            return jax.tree.map(jnp.add, total, gradient), None

        zero = jax.tree.map(jnp.zeros_like, params)
        gradient, _ = jax.lax.scan(backwards, zero, (blocks, v))
        out = jax.lax.map(lambda x: jax.jvp(lambda p: f(p, x), (params,), (gradient,))[1], blocks)
        return out.reshape(-1, C)[:M].reshape(-1)

    start = jax.random.normal(jax.random.key(0), (M * C,))
    found = lanczos(kernel_times, start, vectors)
    values, coordinates = found.eigh()
    return values, coordinates.T @ found.basis_mxP


@jax.jit
def _diagonal(f: Partial, params, blocks) -> jax.Array:
    """sum_c K[i, i, c, c] of every sample, [count * block]."""

    def of_sample(x):
        jacobian = jax.jacrev(lambda p: f(p, x[None])[0])(params)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jacobian))

    return jax.lax.map(jax.vmap(of_sample), blocks).reshape(-1)
