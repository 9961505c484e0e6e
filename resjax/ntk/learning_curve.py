"""Kernel ridge regression on a labelled population: what the predictors predict, measured by drawing training sets."""

from collections.abc import Iterator, Sequence

import numpy as np

from resjax.config import ConfigError
from resjax.ntk.ridge import inverse, left_out
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

    Mean squared errors over the targets' mean square; the measured ones are over the samples, or pairs, that were not
    drawn, as is eigenlearning's (corrected for the population's being finite).

    Args:
      kernel: full [M, M, C, C], or [M, M].
      targets_MxC: centred.
      spectrum: of both.
      sizes: n < M.
      ridge: added to the kernel's diagonal.
      trials: training sets drawn for each n.
      seed: of the draws.

    Yields:
      n; measured and its standard_error; measured_pairs, the same where the n C (sample, logit) pairs of a full kernel
      are drawn one by one, as eigenlearning assumes; eigenlearning; leave_one_out, the mean over the training sets.

    Raises:
      ConfigError: sizes that do not match, all targets 0, or a singular kernel; see `resjax.ntk.spectrum.checked`.
    """
    matrix, y_MxC = checked(kernel, targets_MxC)
    M, power = len(y_MxC), float(np.mean(y_MxC**2))
    if not power:
        raise ConfigError("all targets are 0: errors in units of their power are not defined")
    rows = len(matrix) // M  # of a sample: C of a full kernel, else 1
    y = y_MxC.reshape(len(matrix), -1)
    rng, of_pairs = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    for n in sizes:
        if not 0 < n < M:
            raise ConfigError(f"a training set of {n} of {M} samples leaves none to test, or none to train")
        drawn, pairs = [], []
        for _ in range(trials):
            order = rng.permutation(M)[:, None] * rows + np.arange(rows)
            drawn.append(_errors(matrix, y, order.reshape(-1), n * rows, rows, ridge))
            if rows > 1:
                pairs.append(_errors(matrix, y, of_pairs.permutation(M * rows), n * rows, 1, ridge)[0])
        measured, leave_one_out = np.array(drawn).T / power
        predicted = spectrum.predict(n, ridge=ridge)
        corrected = off_train(predicted.test_mse, predicted.train_mse, n, M)
        yield {
            "n": n,
            "measured": measured.mean(),
            "standard_error": measured.std(ddof=1) / np.sqrt(trials) if trials > 1 else np.nan,
            "measured_pairs": np.mean(pairs) / power if pairs else measured.mean(),
            "eigenlearning": float(np.mean(corrected)) / power,
            "leave_one_out": leave_one_out.mean(),
        }


def _errors(
    matrix: np.ndarray, y: np.ndarray, order: np.ndarray, seen: int, rows: int, ridge: float
) -> tuple[float, float]:
    """Mean squared error on all points after the first `seen` of the order; and on these, `rows` left out at a time."""
    train, test = order[:seen], order[seen:]
    try:
        Q = inverse(matrix[np.ix_(train, train)], ridge)
    except np.linalg.LinAlgError:
        raise ConfigError(f"the kernel of {seen} points is singular: add a ridge") from None
    weights = Q @ y[train]
    error = np.mean((matrix[np.ix_(test, train)] @ weights - y[test]) ** 2)
    return float(error), float(np.mean(left_out(Q, weights, rows) ** 2))
