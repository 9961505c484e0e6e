"""Distributions of a unit's value as weighted atoms, and quadrature against a Gaussian beside kinks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from resjax.theory.bins import two_nodes

_REACH = 12.0  # standard deviations that are integrated over
_NODES = 61  # of a piece: errors of 1e-8, also where it ends in a root or a logarithm
_ATOMS = 4001  # of a piece of `gaussian`: errors of 1e-4 where a function has a step between them
_SMALL = 1e-8  # share of the largest weight below which an atom near 0 needs no bin of its own
_RARE = 1e-16  # share of the fourth moment below which an atom far from 0 is dropped, lest powers overflow


@dataclass(frozen=True)
class Law:
    """The distribution of one unit's value over units and samples."""

    x: np.ndarray  # [N] atoms
    w: np.ndarray  # [N] their probabilities

    @cached_property
    def mean(self) -> float:
        """E x."""
        return float(self.w @ self.x)

    @cached_property
    def power(self) -> float:
        """E x^2."""
        return float(self.w @ np.square(self.x))

    @cached_property
    def variance(self) -> float:
        """E (x - E x)^2."""
        return float(self.w @ np.square(self.x - self.mean))

    @cached_property
    def kurtosis(self) -> float:
        """E x^4 / (E x^2)^2: 3 for N(0, 1), nan where every unit is dead."""
        return float(self.w @ np.square(np.square(self.x) / self.power)) if self.power else math.nan

    @cached_property
    def alive(self) -> float:
        """P(x != 0). A unit is ever active on n independent samples with probability 1 - (1 - alive)^n."""
        return float(self.w @ (self.x != 0))

    @cached_property
    def typical(self) -> float:
        """The geometric mean of |x| over x != 0: the size of most units of a product, whose power comes from few."""
        log = np.log(np.abs(self.x), where=self.x != 0, out=np.zeros_like(self.x))
        return math.exp(self.w @ log / self.alive) if self.alive else 0.0

    def through(self, function: Callable) -> "Law":
        """The law of function(x), elementwise, in float64."""
        with jax.enable_x64():
            return Law(np.asarray(function(self.x)), self.w)

    def compressed(self, bins: int) -> "Law":
        """The same in 4 bins + 2 atoms: two per bin of log |x|, which keep its moments up to the third, and 0.

        That is Gauss quadrature with two nodes, and good for functions with a kink at 0. The number of atoms is
        constant, so that no new shape is compiled.

        Args:
          bins: number on each side of 0.
        """
        if not self.power:
            return self
        unit = math.sqrt(self.power)
        x, w, live = self.x / unit, self.w, self.x != 0
        log = np.log(np.abs(x), where=live, out=np.zeros_like(x))
        fourth = w * np.square(np.square(x))
        low = log[live & (w > _SMALL * w[live].max())].min()
        high = log[fourth > _RARE * fourth.max()].max()
        x, w = np.where(log > high, 0, x), np.where(log > high, 0, w)
        level = np.clip((log - low) * (bins / max(high - low, 1e-9)), 0, bins - 1).astype(int) + 1
        index = bins + np.sign(x).astype(int) * level

        atoms, weights = two_nodes(x, w, index, 2 * bins + 1)
        return Law(unit * atoms, weights)


def gaussian(mean: float = 0.0, std: float = 1.0) -> Law:
    """N(mean, std^2), in atoms that suit functions with a kink at 0."""
    return Law(*nodes(mean, std, np.zeros(1), _ATOMS))


def nodes(mean: float, std: float, breaks: np.ndarray, count: int = _NODES) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [..., M] for expectations under N(mean, std^2), in pieces between the `breaks` [..., k].

    By the tanh-sinh rule, `count` nodes for each: it may end in a kink, a step or an integrable singularity. The mean
    is a break as well, as the nodes are too few for all of a Gaussian.
    """
    if std == 0:
        return np.full((*breaks.shape[:-1], 1), mean), np.ones((*breaks.shape[:-1], 1))
    ends = np.full((*breaks.shape[:-1], 1), _REACH)
    inner = np.clip((breaks - mean) / std, -_REACH, _REACH)
    edges = np.sort(np.concatenate([-ends, inner, 0 * ends, ends], -1), -1)[..., None]
    half = np.diff(edges, axis=-2) / 2
    t = np.linspace(-2.8, 2.8, count)
    slope = np.cosh(t) / np.square(np.cosh(np.pi / 2 * np.sinh(t)))
    y = edges[..., :-1, :] + half * (1 + np.tanh(np.pi / 2 * np.sinh(t)))
    w = (half * slope * np.exp(-np.square(y) / 2)).reshape(*breaks.shape[:-1], -1)
    return mean + std * y.reshape(w.shape), w / w.sum(-1, keepdims=True)
