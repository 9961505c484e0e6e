"""Regression tasks whose target has a known degree and unit variance: how much of a function each merge can learn.

  cube<d>_degree<k>     the parity of k coordinates of a point of {-1, 1}^d (as classes: `resjax.data.teachers`)
  sphere<d>_degree<k>   a zonal spherical harmonic around a random direction, on the sphere of radius sqrt(d)
  gauss<d>_degree<k>    a Hermite polynomial along a random direction, N(0, 1) coordinates
  relu<d>_width<w>      a random net with one hidden layer of w ReLUs, on the sphere: all degrees at once
  linear functions of random Hermite features of image coordinates (`hermite_of_images`), and eigenfunctions of any
  kernel (`eigenfunctions`), are targets on images.

Smaller training sets are the beginnings of larger ones, and the test points don't depend on their size.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from resjax.config import ConfigError
from resjax.data.subsets import stream
from resjax.theory import targets

_NAME = re.compile(r"(cube|sphere|gauss|relu)(\d{1,4})_(degree|width)(\d{1,5})")
KINDS = ("own", "shuffled", "net", "classes", "eigen", "hermite")
_CUBE_MOST = 20  # dimensions: a million points
_STANDARDISED_ON = 2**16  # points


class Regression(NamedTuple):
    """One task: inputs [N, D], targets [N] (the training ones with noise), float64."""

    x_NxD: np.ndarray
    y_N: np.ndarray
    test_x_MxD: np.ndarray
    test_y_M: np.ndarray


@dataclass(frozen=True)
class Target:
    """What is learned.

    Attributes:
      kind: of a teacher: "own", its values; "shuffled", these in an order without meaning;
        "net", what a trained net says. Of images: "classes"; "eigen", an eigenvector of the infinitely wide additive
        net's kernel on them; "hermite" (`hermite_of_images`).
      number: rank of the eigenvector, or degree of the polynomials.
      merge: of the net, which learns the teacher's values by the standard recipe at the config's rate.
      extra: points beside the n training points that are labelled by the net, and learned from as well.
    """

    kind: str = "own"
    number: int = 0
    merge: str = ""
    extra: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.kind == "net") != bool(self.merge):
            raise ConfigError(f"{self!r}: want a kind of {', '.join(KINDS)}, and a merge for a net alone")

    def __str__(self) -> str:
        return f"{self.kind}{self.number or ''}"

    @property
    def of_images(self) -> bool:
        """Whether it is a function of images."""
        return self.kind in ("classes", "eigen", "hermite")


OWN = Target()


def draw(name: str, n: int, *, test: int, seed: int, noise: float = 0.0) -> Regression:
    """`n` training and `test` test points of a teacher, which is itself a matter of the seed.

    Args:
      name: as in the module's docstring.
      n: training points; those of a smaller n come first.
      test: test points.
      seed: of points, teacher and noise.
      noise: standard deviation of what is added to the training targets, in units of the target's.

    Raises:
      ConfigError: no such teacher, a degree above the dimension, or more points than a cube has.
    """
    domain, d, kind, number = _parsed(name)
    if n < 1 or test < 1 or noise < 0:
        raise ConfigError(f"{name}: n = {n} and test = {test} must be positive, noise = {noise} not negative")
    if domain == "cube":
        if n + test > 2**d:
            raise ConfigError(f"{name}: {n} + {test} points, of {2**d}")
        order = stream(seed, "points").permutation(2**d)
        x = targets.cube(d)
        x_NxD, test_x_MxD = x[order[:n]], x[order[-test:]]
    else:
        x_NxD, test_x_MxD = (_points(domain, size, d, seed, part) for size, part in ((n, "train"), (test, "test")))
    teacher = _relu_net(d, number, seed) if kind == "width" else _polynomial(domain, d, number, seed)
    y_N = teacher(x_NxD) + noise * stream(seed, "noise").standard_normal(n)
    return Regression(x_NxD, y_N, test_x_MxD, teacher(test_x_MxD))


def _parsed(name: str) -> tuple[str, int, str, int]:
    found = _NAME.fullmatch(name)
    if not found or (found[1] == "relu") != (found[3] == "width"):
        raise ConfigError(
            f"no teacher {name!r}: want cube<d>_degree<k>, sphere<d>_degree<k>, gauss<d>_degree<k> or relu<d>_width<w>"
        )
    domain, d, kind, number = found[1], int(found[2]), found[3], int(found[4])
    if d < 2 or number < 1 or (domain == "cube" and (d > _CUBE_MOST or number > d)):
        raise ConfigError(f"{name}: want 2 dimensions or more, at most {_CUBE_MOST} of a cube, and a degree up to them")
    return domain, d, kind, number


def _points(domain: str, size: int, d: int, seed: int, part: str) -> np.ndarray:
    x = stream(seed, part).standard_normal((size, d))
    return x if domain == "gauss" else np.sqrt(d) * x / np.linalg.norm(x, axis=1, keepdims=True)


def _polynomial(domain: str, d: int, degree: int, seed: int):
    if domain == "cube":
        coordinates = stream(seed, "teacher").permutation(d)[:degree]
        return lambda x: targets.parity(x, coordinates)
    direction = stream(seed, "teacher").standard_normal(d)
    function = targets.gegenbauer if domain == "sphere" else targets.hermite
    return lambda x: function(x, degree, direction)


def _relu_net(d: int, width: int, seed: int):
    rng = stream(seed, "teacher")
    hidden, out = rng.standard_normal((d, width)), rng.standard_normal(width)

    def net(x):
        return np.maximum(x @ hidden, 0) @ out

    many = net(_points("relu", _STANDARDISED_ON, d, 0, "standardise"))
    return lambda x: (net(x) - many.mean()) / many.std()


def hermite_of_images(x_NxP: np.ndarray, degree: int, *, dimensions: int, features: int, seed: int) -> np.ndarray:
    """Targets [N] of one degree on images: a random sum of Hermite polynomials of their principal components.

    The components are whitened, so that a polynomial of degree k along a random direction has about unit variance and
    is about uncorrelated with lower degrees: exactly so if the components were Gaussian. The sum is standardised on
    the images given.

    Args:
      x_NxP: images as vectors.
      degree: of the polynomials.
      dimensions: leading principal components that the target depends on.
      features: random directions that are summed.
      seed: of directions and their weights.

    Raises:
      ConfigError: more dimensions than the images span.
    """
    centred = np.asarray(x_NxP, np.float64) - np.mean(x_NxP, 0)
    U, scale, _ = np.linalg.svd(centred, full_matrices=False)
    if not 0 < dimensions <= np.sum(scale > 1e-6 * scale[0]):
        raise ConfigError(f"{dimensions} principal components: the images span {np.sum(scale > 1e-6 * scale[0])}")
    z_NxD = np.sqrt(len(U)) * U[:, :dimensions]
    rng = stream(seed, "teacher")
    directions = rng.standard_normal((features, dimensions))
    weights = rng.standard_normal(features)
    y_N = sum(w * targets.hermite(z_NxD, degree, direction) for w, direction in zip(weights, directions, strict=True))
    return (y_N - y_N.mean()) / y_N.std()


def eigenfunctions(kernel_MxM: np.ndarray, ranks: list[int]) -> np.ndarray:
    """Targets [M, ranks], unit mean square: eigenvectors of a kernel matrix by rank, 1 being the largest eigenvalue's.

    Each is positive where it is largest.

    Raises:
      ConfigError: a rank beyond M.
    """
    if not all(1 <= rank <= len(kernel_MxM) for rank in ranks):
        raise ConfigError(f"ranks {ranks}: want 1 to {len(kernel_MxM)}")
    _, vectors = np.linalg.eigh(kernel_MxM)  # eigenvalues ascend
    chosen = vectors[:, [-rank for rank in ranks]]
    signs = np.sign(np.take_along_axis(chosen, np.abs(chosen).argmax(0)[None], 0))  # else LAPACK's choice
    return np.sqrt(len(kernel_MxM)) * signs * chosen
