"""From a kernel's eigenvalues to the error of kernel ridge regression. NumPy only, float64.

The framework of Simon, Dickens, Karkada and DeWeese, "The Eigenlearning Framework" (2110.03922):
the expected train and test error over draws of n samples, from the eigenvalues lambda_i under the data
distribution and the target's coefficients v_i. `predict` solves for the constant kappa and gives all of it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from resjax.config import ConfigError
from resjax.theory.kappa import chunks, solve

NEGATIVE = 1e-6  # share of the largest eigenvalue below which a negative one is rounding, also of a float32 kernel
_NEGLIGIBLE = 2.0**-1000  # share of the largest eigenvalue that counts as zero: below it float64 loses digits


@dataclass(frozen=True)
class Prediction:
    """What `predict` returns; [...] is the common shape of n and ridge, [targets] is absent for 1-D coefficients."""

    kappa: np.ndarray  # [...] in the eigenvalues' unit; 0: every positive mode is learned, inf: n = 0
    learnabilities: np.ndarray  # [..., modes] L_i in [0, 1]
    learnability: np.ndarray  # [..., targets] share of the target's power that is learned; 0 for a zero target
    overfitting_coefficient: np.ndarray  # [...] E0 >= 1, inf for as many samples as modes without ridge
    train_mse: np.ndarray  # [..., targets] in the unit of coefficients^2
    test_mse: np.ndarray  # [..., targets] over new noisy samples


def predict(
    eigenvalues: ArrayLike,
    coefficients: ArrayLike,
    n: ArrayLike,
    *,
    ridge: ArrayLike = 0.0,
    noise: ArrayLike = 0.0,
    multiplicities: ArrayLike | None = None,
) -> Prediction:
    """Expected errors of kernel ridge regression on n samples (2110.03922, section 4).

    `sum_i m_i L_i + ridge/kappa = n` with `L_i = lambda_i/(lambda_i + kappa)` gives kappa; then
    `E0 = n/(n - sum m_i L_i^2)`, `test = E0 (sum (1 - L_i)^2 v_i^2 + noise)`, `train = (ridge/(n kappa))^2 test`.
    Where ridge = 0 and n reaches the number of positive modes, kappa is 0 and the limit ridge -> 0 is returned: the
    power on modes of eigenvalue 0 acts as noise, E0 = n/(n - modes); for n = modes an error is inf, or 0 if there
    is neither noise nor such power. For n = 0 `train_mse` is the limit n -> 0.

    Args:
      eigenvalues: [modes] lambda_i of the kernel under the data distribution, so that they sum to the mean of
        K(x, x); in any order and unit. Slightly negative ones (`NEGATIVE`) are rounding, and count as 0.
      coefficients: [modes] or [modes, targets], v_i itself, *not* squared. For a level of several modes the
        root of the sum of their squares.
      n: number of samples, >= 0, not necessarily whole; any shape that broadcasts with ridge.
      ridge: added to the diagonal of K (not n times it), in the unit of the eigenvalues. For a truncated spectrum
        add `tail_ridge`.
      noise: variance of the label noise, in the unit of coefficients^2; broadcasts with the result's test_mse.
      multiplicities: [modes] number of modes m_i that share an eigenvalue; None: 1 each.

    Returns:
      A `Prediction`.

    Raises:
      ConfigError: sizes differ, a value is not finite, n, ridge, noise or a multiplicity is negative, an eigenvalue
        is negative beyond rounding, or no eigenvalue is positive.
    """
    lam, m, exponent = _spectrum(eigenvalues, multiplicities)
    v = _finite("coefficients", coefficients)
    if v.ndim not in (1, 2) or v.shape[0] != lam.size:
        raise ConfigError(f"{lam.size} eigenvalues need coefficients [modes] or [modes, targets], got {v.shape}")
    noise = _not_negative("noise", noise)
    n, ridge = _broadcast(n=_not_negative("n", n), ridge=_not_negative("ridge", ridge))
    shape, n = n.shape, n.ravel()
    with np.errstate(over="ignore"):
        ridge = np.ldexp(ridge.ravel(), -exponent)
    if ridge.max(initial=0) > 1 / _NEGLIGIBLE:
        raise ConfigError(f"ridge is over {1 / _NEGLIGIBLE:.0e} times the largest eigenvalue: nothing would be learned")

    kappa, misfit = _solve_all(lam, m, n, ridge)
    power = v.reshape(lam.size, -1) ** 2  # [modes, targets]
    total = power.sum(0)
    learned, unlearned = (np.empty((n.size, power.shape[1])) for _ in range(2))
    learnabilities = np.empty((n.size, lam.size))
    freedom = np.empty(n.size)  # n - sum m L^2, as a sum of positive terms
    for rows in chunks(n.size, lam.size):
        L, rest = _learnabilities(lam, kappa[rows, None], out=learnabilities[rows])
        learned[rows] = L @ power
        freedom[rows] = (L * rest) @ m + n[rows] * misfit[rows]
        unlearned[rows] = np.square(rest, out=rest) @ power

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        e0 = np.where(n > 0, n / freedom, 1.0)
        learnability = np.where(total > 0, learned / total, 0.0)
        kappa = np.ldexp(kappa, exponent)
    tail = v.shape[1:]
    e0, misfit = (a.reshape(shape + (1,) * len(tail)) for a in (e0, misfit))
    bare = _add_noise(unlearned.reshape(shape + tail), noise)
    with np.errstate(invalid="ignore"):
        test = np.where(bare > 0, e0 * bare, 0.0)  # inf * 0: all is learned and nothing disturbs
        train = np.where(misfit > 0, misfit**2 * test, 0.0)
    return Prediction(
        kappa=kappa.reshape(shape),
        learnabilities=learnabilities.reshape(shape + lam.shape),
        learnability=learnability.reshape(shape + tail),
        overfitting_coefficient=e0.reshape(shape),
        train_mse=train,
        test_mse=test,
    )


def tail_ridge(trace: float, eigenvalues: ArrayLike, multiplicities: ArrayLike | None = None) -> float:
    """Trace of the modes missing in a truncated spectrum: they are too many to learn and act as a ridge.

    Args:
      trace: mean of K(x, x), in the unit of the eigenvalues.
      eigenvalues: [kept] the largest eigenvalues.
      multiplicities: [kept] as in `predict`.

    Returns:
      The trace minus the kept eigenvalues, 0 where rounding makes it negative; add it to the ridge.

    Raises:
      ConfigError: as `predict`, or the kept eigenvalues exceed the trace by more than rounding.
    """
    lam, m, exponent = _spectrum(eigenvalues, multiplicities)
    trace = float(_not_negative("trace", trace))
    kept = float(np.ldexp(lam @ m, exponent))
    if trace - kept < -NEGATIVE * kept:
        raise ConfigError(f"eigenvalues sum to {kept:.6g}, more than the trace {trace:.6g}")
    return max(trace - kept, 0.0)


def off_train(test_mse: ArrayLike, train_mse: ArrayLike, n: ArrayLike, population: int) -> np.ndarray:
    """Test error on the points that were not trained on, where the population is finite and holds the training set.

    `predict`ed test errors average over the whole population: M E = n E_train + (M - n) E_off. This is for n
    different points with fixed labels: their noise is part of the coefficients, and `noise` was 0.

    Args:
      test_mse: E, any shape; what follows broadcasts against it.
      train_mse: E_train, in the same unit.
      n: training points.
      population: M, the number of points that the eigenvalues were computed on.

    Returns:
      (M E - n E_train)/(M - n), in the unit of `test_mse`.

    Raises:
      ConfigError: n >= M leaves no point, or n or M is negative or not finite.
    """
    n, population = _not_negative("n", n), _not_negative("population", population)
    if (n >= population).any():
        raise ConfigError(f"n = {n.max():g} training points leave none of a population of {population.min():g}")
    return (population * np.asarray(test_mse) - n * np.asarray(train_mse)) / (population - n)


def _solve_all(lam, m, n, ridge):
    """Returns kappa [K] and ridge/(n kappa) [K], the latter in the limits n -> 0 and ridge -> 0 as well."""
    positive = np.flatnonzero((lam > 0) & (m > 0))
    order = positive[np.argsort(-lam[positive], kind="stable")]
    lam, m = lam[order], m[order]
    modes, trace = m.sum(), lam @ m
    kappa = np.where(n > 0, 0.0, np.inf)
    misfit = np.where(n > 0, (n - modes) / np.where(n > 0, n, 1), ridge / (trace + ridge))
    open_ = (n > 0) & ((n < modes) | (ridge > 0))
    kappa[open_] = solve(lam, m, n[open_], ridge[open_])
    misfit[open_] = ridge[open_] / kappa[open_] / n[open_]
    return kappa, misfit


def _learnabilities(lam, kappa, out):
    """L [K, modes] in `out`, and 1 - L without cancellation; kappa [K, 1] may be 0 or inf, lam may be 0."""
    rest = lam + kappa
    with np.errstate(invalid="ignore"):
        np.divide(lam, rest, out=out)
        np.divide(kappa, rest, out=rest)
    if not (np.isfinite(kappa) & (kappa > 0)).all():  # 0/0 or inf/inf: nothing of that mode is learned
        np.nan_to_num(out, copy=False, nan=0.0)
        np.nan_to_num(rest, copy=False, nan=1.0)
    return out, rest


def _spectrum(eigenvalues, multiplicities):
    """Checked eigenvalues over 2^exponent, so that the largest is in [.5, 1), multiplicities, and the exponent."""
    lam = _finite("eigenvalues", eigenvalues)
    if lam.ndim != 1 or not lam.size:
        raise ConfigError(f"eigenvalues need the shape [modes], got {lam.shape}")
    m = np.ones(lam.size) if multiplicities is None else _not_negative("multiplicities", multiplicities)
    if m.shape != lam.shape:
        raise ConfigError(f"{lam.size} eigenvalues have multiplicities of shape {m.shape}")
    largest = lam[m > 0].max(initial=0)
    if largest <= 0:
        raise ConfigError(f"no positive eigenvalue among {lam.size}, the largest is {lam.max():g}")
    if lam.min() < -NEGATIVE * largest:
        raise ConfigError(f"eigenvalue {lam.min():g} is negative beyond rounding, the largest is {largest:g}")
    exponent = int(np.frexp(largest)[1])
    lam = np.ldexp(lam, -exponent)
    return np.where(lam < _NEGLIGIBLE, 0.0, lam), m, exponent


def _finite(name, value) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if not np.isfinite(value).all():
        raise ConfigError(f"{name}: {np.sum(~np.isfinite(value))} of {value.size} values are not finite")
    return value


def _not_negative(name, value) -> np.ndarray:
    value = _finite(name, value)
    if (value < 0).any():
        raise ConfigError(f"{name} must not be negative, got {value.min():g}")
    return value


def _broadcast(**arrays):
    try:
        return np.broadcast_arrays(*arrays.values())
    except ValueError:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
        raise ConfigError(f"shapes do not broadcast: {shapes}") from None


def _add_noise(unlearned, noise):
    unlearned, noise = _broadcast(test_mse=unlearned, noise=noise)
    return unlearned + noise
