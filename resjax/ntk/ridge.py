"""Kernel regression with a ridge, in closed form."""

import numpy as np
from scipy.linalg import cho_factor, cho_solve


def inverse(kernel_NxN: np.ndarray, ridge: float) -> np.ndarray:
    """Q = (K + ridge I)^-1 [N, N]. Raises LinAlgError if K + ridge I is not positive definite."""
    identity = np.eye(len(kernel_NxN))
    return cho_solve(cho_factor(kernel_NxN + ridge * identity), identity)


def left_out(inverse_NxN: np.ndarray, weights_NxK: np.ndarray, rows: int) -> np.ndarray:
    """Residuals [N / rows, rows, K] at each sample of the regression without it: exact, (Q_ii)^-1 (Q y)_i.

    Source: PRESS, Allen 1974. To leave a sample out is to leave out all its `rows`, so that Q_ii is a block of them;
    for one row it is (Q y)_i / Q_ii.

    Args:
      inverse_NxN: Q.
      weights_NxK: Q y, of K targets at a time.
      rows: of a sample: C of a full kernel, else 1.
    """
    n = len(inverse_NxN) // rows
    blocks_nxRxR = np.einsum("icid->icd", inverse_NxN.reshape(n, rows, n, rows))
    return np.linalg.solve(blocks_nxRxR, weights_NxK.reshape(n, rows, -1))
