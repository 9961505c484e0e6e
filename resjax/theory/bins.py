"""Few atoms in place of many."""

import numpy as np


def two_nodes(x: np.ndarray, w: np.ndarray, index: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss quadrature with two nodes per bin: it keeps the moments of each bin up to the third.

    Args:
      x: [N] atoms.
      w: [N] their weights.
      index: [N] the bin of each.
      bins: number of bins; an empty one has two nodes of weight 0 at 0.

    Returns:
      Nodes and weights, [2 bins].
    """

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, values, minlength=bins)

    count = sums(w)
    share = 1 / np.maximum(count, 1e-300)
    mean = sums(w * x) * share
    offset = x - mean[index]
    square = w * offset * offset
    std = np.sqrt(sums(square) * share)
    skew = sums(square * offset) * share / np.maximum(std**3, 1e-300) / 2
    root = np.hypot(1, skew)
    nodes = np.concatenate([mean + std * (skew - root), mean + std * (skew + root)])
    return nodes, np.concatenate([count * (1 + skew / root), count * (1 - skew / root)]) / 2
