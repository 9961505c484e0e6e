"""Targets of known degree and unit variance, for data whose spectrum `resjax.theory.domains` knows. NumPy only."""

from collections.abc import Sequence
from math import factorial, sqrt

import numpy as np

from resjax.config import ConfigError
from resjax.theory.domains import harmonics, polynomials, whole


def cube(d: int) -> np.ndarray:
    """All points of {-1, 1}^d, [2^d, d] float64; a row is its index in binary, most significant first, 0 as -1.

    Raises:
      ConfigError: d is not a whole number in 1..24 (3 GB).
    """
    whole("d", d, 1, 24)
    return 2.0 * (np.arange(2**d)[:, None] >> np.arange(d)[::-1] & 1) - 1


def parity(x_NxD: np.ndarray, subset: Sequence[int]) -> np.ndarray:
    """Product of the coordinates in `subset`, [N]: an eigenfunction of degree len(subset) on the cube.

    Raises:
      ConfigError: the subset repeats or exceeds the columns, or a coordinate in it is not -1 or 1.
    """
    x, subset = _matrix(x_NxD), list(subset)
    if len(set(subset)) < len(subset) or not all(0 <= i < x.shape[1] for i in subset):
        raise ConfigError(f"parity needs different columns in 0..{x.shape[1] - 1}, got {subset}")
    if not (abs(x[:, subset]) == 1).all():
        raise ConfigError("parity needs coordinates -1 or 1: elsewhere it has neither unit variance nor a degree")
    return x[:, subset].prod(1)


def gegenbauer(x_NxD: np.ndarray, degree: int, direction: Sequence[float]) -> np.ndarray:
    """Zonal spherical harmonic around `direction`, [N]: degree `degree`, unit mean square on the sphere.

    Depends on the angle to the direction only; the lengths of the points and of the direction don't matter.

    Raises:
      ConfigError: degree is not a whole number >= 0, shapes differ, or a point or the direction is 0.
    """
    whole("degree", degree, 0, 10000)
    x = _matrix(x_NxD)
    length = np.linalg.norm(x, axis=1)
    if x.shape[1] < 2 or not (length > 0).all():
        raise ConfigError(f"gegenbauer needs points other than 0 in 2 or more dimensions, got shape {x.shape}")
    cosine = np.clip(_along(x, direction) / length, -1, 1)
    *_, p = polynomials(cosine, x.shape[1], degree + 1)
    return sqrt(harmonics(x.shape[1], degree)) * p


def hermite(x_NxD: np.ndarray, degree: int, direction: Sequence[float]) -> np.ndarray:
    """Probabilists' Hermite polynomial along `direction`, [N]: unit mean square for x of N(0, 1) coordinates.

    Raises:
      ConfigError: degree is not a whole number in 0..150, shapes differ, or the direction is 0.
    """
    whole("degree", degree, 0, 150)
    coefficients = np.zeros(degree + 1)
    coefficients[degree] = 1 / sqrt(factorial(degree))
    return np.polynomial.hermite_e.hermeval(_along(_matrix(x_NxD), direction), coefficients)


def _along(x: np.ndarray, direction: Sequence[float]) -> np.ndarray:
    """Coordinate of every point along the direction, [N]."""
    direction = np.asarray(direction, np.float64)
    length = np.linalg.norm(direction)
    if direction.shape != x.shape[1:] or not 0 < length < np.inf:
        raise ConfigError(f"direction must be a vector of {x.shape[1]} numbers, not 0, got shape {direction.shape}")
    return x @ (direction / length)


def _matrix(x_NxD: np.ndarray) -> np.ndarray:
    x = np.asarray(x_NxD, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ConfigError(f"points need the shape [N, D] and finite values, got shape {x.shape}")
    return x
