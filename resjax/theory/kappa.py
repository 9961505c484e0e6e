"""The constant kappa of kernel ridge regression: sum_i m_i lambda_i/(lambda_i + kappa) + ridge/kappa = n, vectorised.

Spectra span 30 decades, so kappa is sought in its logarithm. And `sum L - n` cancels where the spectrum has a gap at
rank n, or n comes near the number of modes: with the modes of rank up to n as 1 - L, and on either side of the
equation positive terms only, the root is good to the last digits.
"""

import numpy as np

from resjax.theory.bins import two_nodes

_BINS = 128  # of the binned spectrum whose solution starts the solve of a larger one
_CHUNK = 2**16  # entries of a temporary array: few enough to stay in a CPU's cache
_CONVERGED = 1e-7  # size of a Newton step in log kappa, whose error is then about its square
_NEWTON, _ITERATIONS = 25, 400  # after so many steps every second one bisects: for gaps of hundreds of decades


def solve(lam: np.ndarray, m: np.ndarray, n: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Solves for kappa > 0.

    Args:
      lam: [P] eigenvalues > 0 from large to small, the largest about 1.
      m: [P] multiplicities > 0.
      n: [K] numbers of samples > 0, less than the modes where ridge is 0.
      ridge: [K].

    Returns:
      kappa [K] in the unit of lam, to the last digits.
    """
    trace, modes = lam @ m, m.sum()
    with np.errstate(divide="ignore"):  # bounds: every mode as small as the smallest, or L < lambda/kappa
        low = np.log(np.maximum(lam[-1] * np.maximum(modes - n, 0), ridge)) - np.log(n)
    high = np.log((trace + ridge) / n)
    if lam.size > 8 * _BINS and n.size > 4:
        below = np.where(ridge > 0, n, np.minimum(n, modes * (1 - 1e-9)))  # the bins' modes carry rounding
        start = np.log(solve(*_binned(lam, m), below, ridge))
    else:
        start = high
    kappa = np.empty(n.size)
    for rows in chunks(n.size, lam.size):
        kappa[rows] = _newton(lam, m, n[rows], ridge[rows], low[rows] - 1e-6, high[rows] + 1e-6, start[rows])
    return kappa


def _binned(lam, m):
    """A spectrum of at most 2 `_BINS` modes: two per bin of log lambda, which keep its moments up to the third.

    That is Gauss quadrature with two nodes: kappa errs by less than 1e-4 even for bins half an e-fold wide.
    """
    depth = np.log(lam[0] / lam)
    index = np.minimum((depth * (_BINS / max(depth[-1], 1e-9))).astype(int), _BINS - 1)
    _, index = np.unique(index, return_inverse=True)  # leaves empty bins out
    nodes, weights = two_nodes(depth, m, index, index.max() + 1)
    order = np.argsort(nodes)
    return lam[0] * np.exp(-nodes[order]), weights[order]


def _newton(lam, m, n, ridge, low, high, start):
    """Safeguarded Newton in u = log kappa on log(excess/lack), which falls in u; both sums have positive terms only.

    excess = sum of m L over the modes behind the split + ridge/kappa, lack = sum of m (1 - L) over those before it.
    What the split at a whole level leaves of n joins the side that needs it. Far from the root the logarithm makes
    either side of a power law, or of a gap, a straight line.
    """
    ranks = np.concatenate([[0.0], np.cumsum(m)])
    split = np.clip(np.searchsorted(ranks, n, side="right"), 1, m.size)
    split -= n - ranks[split - 1] <= ranks[split] - n
    surplus = n - ranks[split]
    before = np.arange(m.size) < split[:, None]  # [K, P]
    m_before = before * m
    m_behind = m - m_before

    kappa = np.exp(np.clip(start, low, high))
    done = np.zeros(n.size, bool)
    for i in range(_ITERATIONS):
        k = kappa[:, None]
        part = np.where(before, k, lam)
        part /= lam + k  # 1 - L before the split, L behind it
        lack, excess = _row_dot(part, m_before), _row_dot(part, m_behind) + ridge / kappa
        part *= part  # the slope of part is part - part^2 = L (1 - L)
        rise, fall = lack - _row_dot(part, m_before), excess - _row_dot(part, m_behind)
        lack, excess = lack + np.maximum(surplus, 0), excess + np.maximum(-surplus, 0)

        u, gap = np.log(kappa), np.log(excess / lack)
        low, high = np.where(gap > 0, u, low), np.where(gap > 0, high, u)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = gap / (fall / excess + rise / lack)
        outside = ~((u + step >= low) & (u + step <= high))
        bisect = outside | (i >= _NEWTON and i % 2 == 1)
        step = np.where(bisect, (low + high) / 2 - u, step)
        kappa = np.where(done, kappa, kappa * np.exp(step))
        done |= (~bisect & (abs(step) < _CONVERGED)) | (high - low < 1e-14)
        if done.all():
            break
    return kappa


def _row_dot(a, b):
    return np.einsum("kp,kp->k", a, b)


def chunks(rows: int, columns: int) -> list[slice]:
    """Slices of rows whose arrays [rows, columns] are small temporaries."""
    step = max(1, _CHUNK // columns)
    return [slice(i, i + step) for i in range(0, rows, step)]
