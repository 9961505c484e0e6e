"""Kernel ridge regression on a labelled population: what the predictors predict, measured by drawing training sets."""

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.linalg

from resjax.config import ConfigError
from resjax.ntk.spectrum import Spectrum, checked
from resjax.theory.eigenlearning import off_train


def learning_curve(
    kernel: np.ndarray,
    targets_MxC: np.ndarray,
    spectrum: Spectrum,
    sizes: Sequence[int],
    *,
    ridge: float = 0.0,
    trials: int = 20,
    seed: int = 0,
) -> Iterator[dict[str, float]]:
    """Measured and predicted error of regression on n of M samples, for every n in `sizes`.

    Mean squared errors per sample and target, over the targets' mean square; the measured one is over the samples
    that were not drawn, as is eigenlearning's (corrected for the population's being finite).

    Args:
      kernel: full [M, M, C, C], or [M, M].
      targets_MxC: centred.
      spectrum: of both.
      sizes: n < M.
      ridge: added to the kernel's diagonal.
      trials: training sets drawn for each n.
      seed: of the draws.

    Yields:
      n, measured, its standard error, eigenlearning, and leave_one_out (the mean over the training sets).

    Raises:
      ConfigError: sizes that do not match, or a singular kernel; see `resjax.ntk.spectrum.checked`.
    """
    matrix, y_MxC = checked(kernel, targets_MxC)
    M, power = len(y_MxC), float(np.mean(y_MxC**2))
    rng = np.random.default_rng(seed)
    for n in sizes:
        if not 0 < n < M:
            raise ConfigError(f"a training set of {n} of {M} samples leaves none to test, or none to train")
        drawn = [_errors(matrix, y_MxC, rng.permutation(M), n, ridge) for _ in range(trials)]
        measured, leave_one_out = np.array(drawn).T / power
        predicted = spectrum.predict(n, ridge=ridge)
        corrected = off_train(predicted.test_mse, predicted.train_mse, n, M)
        yield {
            "n": n,
            "measured": measured.mean(),
            "standard_error": measured.std(ddof=1) / np.sqrt(trials) if trials > 1 else np.nan,
            "eigenlearning": float(np.mean(corrected)) / power,
            "leave_one_out": leave_one_out.mean(),
        }


def _errors(matrix: np.ndarray, y_MxC: np.ndarray, order_M: np.ndarray, n: int, ridge: float) -> tuple[float, float]:
    """Mean squared error on the samples after the first n of the order, and by leaving out one of these n."""
    rows = len(matrix) // len(y_MxC)  # of a sample: C of a full kernel, else 1
    points = (order_M[:, None] * rows + np.arange(rows)).reshape(-1)
    y = y_MxC[order_M].reshape(len(points), -1)
    train, test = points[: n * rows], points[n * rows :]
    block = matrix[np.ix_(train, train)]
    block[np.diag_indices(len(block))] += ridge
    try:
        inverse = scipy.linalg.inv(block, overwrite_a=True, assume_a="pos", check_finite=False)
    except np.linalg.LinAlgError:
        raise ConfigError(f"the kernel of {n} samples is singular: add a ridge") from None
    weights = inverse @ y[: n * rows]
    error = np.mean((matrix[np.ix_(test, train)] @ weights - y[n * rows :]) ** 2)
    # Leaving out a sample leaves out all its rows: (Q^-1)_ii block of Q = (K + ridge)^-1, times (Q y)_i.
    blocks = inverse.reshape(n, rows, n, rows)[np.arange(n), :, np.arange(n)]
    left_out = np.linalg.solve(blocks, weights.reshape(n, rows, -1))
    return float(error), float(np.mean(left_out**2))
