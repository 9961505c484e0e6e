"""Exact spectra of rotation-invariant kernels K(x, x') = k(cosine) on cube, sphere and circle. NumPy only, float64.

On these domains a kernel's eigenspaces don't depend on the kernel: one level per degree, whose eigenvalue is one
sum or integral over the cosine. The distribution is the uniform one, so that `sum of multiplicities * eigenvalues`
is k(1), and `resjax.theory.eigenlearning.predict` takes the result as it is. `relu_ntk` is the reference kernel.

Levels below rounding are 0. In high dimension (cubes beyond d = 60) many of those together hold a real share of the
trace: give it to `predict` as a ridge, `tail_ridge(kernel(1), levels.eigenvalues, levels.multiplicities)`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import comb, pi, sqrt

import numpy as np

from resjax.config import ConfigError

Kernel = Callable[[np.ndarray], np.ndarray]  # cosines [...] in [-1, 1] to K(x, x') [...]

_ROUNDING = 16  # in units of float64's
_NODES = 2000  # of an integral from equator to pole, for the kernel alone


@dataclass(frozen=True)
class Levels:
    """A spectrum by level: the degree, or for the circle the frequency, is the index."""

    eigenvalues: np.ndarray  # [levels] in the kernel's unit; 0 within rounding, see `_levels`
    multiplicities: np.ndarray  # [levels] modes per level, float64


def hypercube(kernel: Kernel, d: int) -> Levels:
    """Spectrum on the cube {-1, 1}^d, all d + 1 levels: level k holds the parities of k coordinates.

    `lambda_k = 2^-d sum_j K_j(k) k(1 - 2j/d)` over Hamming distances j, with the Krawtchouk polynomials K_j as
    exact integers, because floating-point recurrences for them are unstable.

    Raises:
      ConfigError: d is not a whole number in 1..1000, or the kernel is not finite.
    """
    whole("d", d, 1, 1000)
    values = _evaluate(kernel, 1 - 2 * np.arange(d + 1) / d).astype(np.longdouble)
    row = [comb(d, j) for j in range(d + 1)]  # K_j(0): coefficients of (1 + z)^d
    eigenvalues = []
    for _ in range(d + 1):
        signs = np.array([np.longdouble(c / 2**d) for c in row])  # the division of integers rounds once
        eigenvalues.append(float(signs @ values))
        row = _next_level(row)
    return _levels(eigenvalues, [comb(d, k) for k in range(d + 1)], values)


def _next_level(row: list[int]) -> list[int]:
    """From the coefficients of (1 - z)^k (1 + z)^(d - k) to those of k + 1: times 1 - z, divided by 1 + z."""
    out, before, previous = [], 0, 0
    for c in row:
        previous = c - before - previous
        before = c
        out.append(previous)
    return out


def hypersphere(kernel: Kernel, d: int, levels: int) -> Levels:
    """Spectrum on the unit sphere S^(d-1) in R^d: level k holds the spherical harmonics of degree k.

    Funk-Hecke: lambda_k is the mean of k(t) P_k(t) over the cosine t of two random points, with the Gegenbauer
    polynomial P_k(1) = 1 of index d/2 - 1. Integrated over the angle, because kernels of ReLU nets have the root
    sqrt(1 - t), which is smooth in the angle and spoils a quadrature in t.

    Args:
      kernel: of the cosine; for full precision smooth in the angle, except at its ends 0 and pi.
      d: dimension of the space that holds the sphere, in 2..10000.
      levels: how many, degrees 0..levels - 1.

    Raises:
      ConfigError: d or levels is not a whole number in range, or the kernel is not finite.
    """
    whole("d", d, 2, 10000)
    whole("levels", levels, 1, 2000)
    cosine, weight = _cosines(_NODES + 8 * levels, d)
    values = _evaluate(kernel, cosine)
    eigenvalues = [(weight * values) @ p for p in polynomials(cosine, d, levels)]
    return _levels(eigenvalues, [harmonics(d, k) for k in range(levels)], values)


def circle(kernel: Kernel, levels: int, points: int | None = None) -> Levels:
    """Spectrum on the unit circle by frequency: cosine and sine of k times the angle, the constant once.

    Args:
      kernel: of the cosine, as for `hypersphere`.
      levels: how many, frequencies 0..levels - 1.
      points: None for the continuous circle, or M equally spaced points: the discrete Fourier transform of the
        kernel over M, exact, which is the spectrum of their kernel matrix over M.

    Raises:
      ConfigError: levels is not a whole number in range (M points have M // 2 + 1), or the kernel is not finite.
    """
    if points is None:
        return hypersphere(kernel, 2, levels)
    whole("points", points, 1, 10**7)
    whole("levels", levels, 1, points // 2 + 1)
    values = _evaluate(kernel, np.cos(2 * pi * np.arange(points) / points))
    eigenvalues = np.fft.rfft(values, norm="forward").real[:levels]
    # the sine is 0 on all points at frequency 0 and, for even M, at the highest
    multiplicities = [1 if 2 * k % points == 0 else 2 for k in range(levels)]
    return _levels(eigenvalues, multiplicities, values)


def relu_ntk(depth: int, w_std: float = sqrt(2), b_std: float = 0.1) -> Kernel:
    """The infinite-width NTK of a fully connected ReLU net with one output, as a function of the cosine.

    NTK parametrisation with biases, the read-out's included (Jacot et al. 2018); the Gaussian expectations are
    the arc-cosine kernels of Cho & Saul 2009. Equals neural_tangents' `serial(Dense(W_std, b_std), Relu(), ...,
    Dense(W_std, b_std))` for inputs of norm sqrt(d).

    Args:
      depth: hidden layers, >= 0.
      w_std: standard deviation of the weights, times 1/sqrt(fan-in), in every layer.
      b_std: standard deviation of the biases.

    Returns:
      A function of cosines in [-1, 1], any shape; beyond, they are clipped.

    Raises:
      ConfigError: depth is not a whole number >= 0, or w_std is not positive, or b_std negative.
    """
    whole("depth", depth, 0, 10000)
    if not (0 < w_std < np.inf and 0 <= b_std < np.inf):
        raise ConfigError(f"relu_ntk needs w_std > 0 and b_std >= 0, got {w_std} and {b_std}")
    w, b = w_std**2, b_std**2

    def kernel(cosine: np.ndarray) -> np.ndarray:
        r = np.clip(np.asarray(cosine, np.float64), -1, 1)
        variance = w + b  # of a pre-activation
        gap = w * (1 - r)  # variance - covariance: the covariance itself would lose the angle's digits near r = 1
        ntk = variance - gap
        for _ in range(depth):
            angle = 2 * np.arctan2(np.sqrt(gap), np.sqrt(2 * variance - gap))
            active = (pi - angle) / (2 * pi)  # chance that both inputs of a unit are positive
            turn = angle * np.cos(angle) - np.sin(angle)
            gap = np.maximum(w * (gap + variance * turn / pi) / 2, 0)
            variance = w * variance / 2 + b
            ntk = variance - gap + w * active * ntk
        return ntk

    return kernel


def _levels(eigenvalues, multiplicities: list[int], values: np.ndarray) -> Levels:
    """Sets to 0 what is rounding: about the kernel's, times the mean size of the level's polynomial, 1/sqrt(m).

    Else levels that vanish (the odd ones of a ReLU layer without biases) would be learned from n large enough,
    and in high dimension 1e-30 times their number of modes would exceed the trace.
    """
    m = np.array([float(count) for count in multiplicities])
    eigenvalues = np.array(eigenvalues, np.float64)
    rounding = _ROUNDING * np.finfo(np.float64).eps * abs(values).max() / np.sqrt(m)
    return Levels(np.where(abs(eigenvalues) < rounding, 0.0, eigenvalues), m)


def _cosines(nodes: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of two random points of S^(d-1), and weights that sum to 1: tanh-sinh quadrature in the latitude.

    That rule (Takahasi & Mori 1974) bears singular ends, and has no weights with rounding of their own. From the
    equator, where all is for large d, the angle keeps the digits of small cosines.
    """
    s = np.linspace(0, 3.2, nodes)  # beyond, tanh is 1
    latitude = pi / 2 * np.tanh(pi / 2 * np.sinh(s))
    t = np.sin(latitude)
    weight = np.cosh(s) / np.cosh(pi / 2 * np.sinh(s)) ** 2
    near = t < 0.7  # a power of the cosine would amplify its rounding d times
    weight *= np.where(near, np.exp((d / 2 - 1) * np.log1p(-((t * near) ** 2))), np.cos(latitude) ** (d - 2))
    weight = np.concatenate([weight[:0:-1], weight])
    return np.concatenate([-t[:0:-1], t]), weight / weight.sum()


def polynomials(t: np.ndarray, d: int, levels: int) -> Iterator[np.ndarray]:
    """Yields P_0(t), P_1(t), ..., orthogonal for the cosine of random points in R^d, P_k(1) = 1."""
    before, p = np.zeros_like(t), np.ones_like(t)
    for k in range(levels):
        yield p
        before, p = p, t if k == 0 else ((2 * k + d - 2) * t * p - k * before) / (k + d - 2)


def harmonics(d: int, degree: int) -> int:
    """Number of spherical harmonics of a degree in R^d."""
    return comb(degree + d - 1, degree) - (comb(degree + d - 3, degree - 2) if degree > 1 else 0)


def _evaluate(kernel: Kernel, cosine: np.ndarray) -> np.ndarray:
    values = np.asarray(kernel(cosine), np.float64)
    if values.shape != cosine.shape or not np.isfinite(values).all():
        raise ConfigError(f"kernel gave shape {values.shape} for {cosine.shape} cosines, or values that are not finite")
    return values


def whole(name: str, value: int, low: int, high: int) -> None:
    """Raises a ConfigError unless the value is a whole number in low..high."""
    if not np.isfinite(value) or value != int(value) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number in {low}..{high}, got {value}")
