"""Means with intervals, paired differences and multiplicity over replicas. NumPy and SciPy only.

Intervals are BCa bootstrap intervals (Efron 1987, "Better Bootstrap Confidence Intervals") from a fixed
random stream: the same values give the same interval. Danger: for few values they are too narrow. On Gaussian
samples of 5, 8, 16 and 32 values, nominal 95 % intervals were measured to hold the true mean in 85, 89, 93
and 94 % of the cases. So state n, and train more replicas where an answer hangs on the end of an interval.
"""

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

RESAMPLES = 9999
SIGN_FLIPS = 2**14  # up to 14 pairs all flips are enumerated; beyond, this many are drawn


def mean_ci(values: Iterable[float], confidence: float = 0.95) -> dict[str, float | int | None]:
    """Mean, sample standard deviation and BCa interval of the mean, in the unit of `values`.

    Args:
      values: finite numbers, one per replica that has one.
      confidence: share of the intervals that should hold the true mean, in (0, 1).

    Returns:
      `{"mean", "std", "ci_low", "ci_high", "n"}`, ready for JSON. What n does not allow is None: all for
      n = 0, `std` (it divides by n - 1) and the interval for n = 1. Equal values give an interval of width 0.

    Raises:
      ValueError: a value is not finite; the caller leaves diverged replicas out, and counts them.
    """
    x = np.asarray(list(values), dtype=float)
    n = int(x.size)
    if not np.isfinite(x).all():
        raise ValueError(f"mean_ci needs finite values, got {x.tolist()}: leave diverged replicas out")
    if n < 2:
        mean = float(x[0]) if n else None
        return {"mean": mean, "std": None, "ci_low": None, "ci_high": None, "n": n}
    if np.ptp(x) == 0:  # exactly equal, not up to the rounding of a sum
        mean = low = high = float(x[0])
        return {"mean": mean, "std": 0.0, "ci_low": low, "ci_high": high, "n": n}
    low, high = _bootstrap(x, confidence)
    return {"mean": float(x.mean()), "std": float(x.std(ddof=1)), "ci_low": low, "ci_high": high, "n": n}


def _bootstrap(x: np.ndarray, confidence: float) -> tuple[float, float]:
    from scipy.stats import bootstrap  # half a second that importing this module should not cost

    low = high = math.nan
    for method in ("BCa", "percentile"):  # BCa is nan where its bias correction is infinite
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy.stats.DegenerateDataWarning: the nan says it
            rng = np.random.default_rng(0)
            low, high = bootstrap(
                (x,), np.mean, confidence_level=confidence, n_resamples=RESAMPLES, method=method, rng=rng
            ).confidence_interval
        if math.isfinite(low) and math.isfinite(high):
            break
    return float(low), float(high)


def hierarchical_ci(values: Mapping[Hashable, Sequence[float]], confidence: float = 0.95) -> dict:
    """Mean over groups of the group's mean, with a percentile interval of the hierarchical bootstrap.

    Groups (splits of the data) are drawn with replacement, and within each its members (initialisations): the interval
    is that for another split and another initialisation.

    Args:
      values: group -> finite values of its members; an empty group does not count.
      confidence: as in `mean_ci`.

    Returns:
      As `mean_ci`; std and n are of the groups.
    """
    groups = [np.asarray(members, float) for members in values.values() if len(members)]
    means = np.array([members.mean() for members in groups])
    n = len(groups)
    if n < 2:
        return {"mean": float(means[0]) if n else None, "std": None, "ci_low": None, "ci_high": None, "n": n}
    size = max(len(members) for members in groups)
    padded = np.array([np.resize(members, size) for members in groups])
    counts = np.array([len(members) for members in groups])
    rng = np.random.default_rng(0)
    group = rng.integers(n, size=(RESAMPLES, n))
    member = np.floor(rng.random((RESAMPLES, n, size)) * counts[group][..., None]).astype(int)
    used = np.arange(size) < counts[group][..., None]  # as many draws as the group has members
    drawn = np.sum(padded[group[..., None], member], axis=-1, where=used) / counts[group]
    low, high = np.quantile(drawn.mean(-1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return {
        "mean": float(means.mean()),
        "std": float(means.std(ddof=1)),
        "ci_low": float(low),
        "ci_high": float(high),
        "n": n,
    }


def crossed_ci(values_GxM: np.ndarray, confidence: float = 0.95) -> dict:
    """Mean over groups of the group's mean, with a percentile interval for other groups and other members.

    Members are crossed with groups: the m-th of one group (a seed, say) has something in common with the m-th of the
    others. So rows and columns are drawn with replacement, each by itself (Owen 2007, "The pigeonhole bootstrap").

    Args:
      values_GxM: nan where a group lacks a member; groups without any do not count.
      confidence: as in `mean_ci`.

    Returns:
      As `mean_ci`; std and n are of the groups. No interval for fewer than two groups.
    """
    x = np.asarray(values_GxM, float)
    x = x[np.isfinite(x).any(1)] if x.size else np.zeros((0, 1))
    n, members = x.shape
    known = np.isfinite(x)
    means = np.where(known, x, 0).sum(1) / np.maximum(known.sum(1), 1)
    mean = float(means.mean()) if n else None
    if n < 2:
        return {"mean": mean, "std": None, "ci_low": None, "ci_high": None, "n": n}
    rng = np.random.default_rng(0)
    weight_MxR = rng.multinomial(members, np.full(members, 1 / members), size=RESAMPLES).T
    count_GxR = known @ weight_MxR
    drawn_GxR = (np.where(known, x, 0) @ weight_MxR) / np.where(count_GxR, count_GxR, 1)
    weight_GxR = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).T * (count_GxR > 0)
    total_R = weight_GxR.sum(0)
    drawn_R = (weight_GxR * drawn_GxR).sum(0)[total_R > 0] / total_R[total_R > 0]
    low, high = np.quantile(drawn_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    spread = float(means.std(ddof=1))
    return {"mean": mean, "std": spread, "ci_low": float(low), "ci_high": float(high), "n": n}


def paired_difference(
    a_by_seed: Mapping[Hashable, float | None],
    b_by_seed: Mapping[Hashable, float | None],
    confidence: float = 0.95,
) -> dict[str, float | int | None]:
    """Mean of a - b over the seeds that both have, its BCa interval, and a permutation p-value.

    The p-value is the two-sided one of the sign-flip test: without an effect a and b could be swapped within
    any seed. It is exact up to 14 pairs. It can't fall below 2 / 2^n: for 8 pairs that is .0078.

    Args:
      a_by_seed: value by seed; None and nan count as missing.
      b_by_seed: the same of what is subtracted.
      confidence: as in `mean_ci`.

    Returns:
      `mean_ci` of the differences, and "p" (None for n = 0).
    """
    seeds = sorted(_present(a_by_seed) & _present(b_by_seed))
    d = np.array([a_by_seed[s] - b_by_seed[s] for s in seeds], dtype=float)
    return mean_ci(d, confidence) | {"p": _sign_flip(d) if d.size else None}


def _present(by_seed: Mapping[Hashable, float | None]) -> set:
    return {seed for seed, value in by_seed.items() if value is not None and math.isfinite(value)}


def _sign_flip(d: np.ndarray) -> float:
    from scipy.stats import permutation_test

    if d.size == 1:  # which SciPy refuses
        return 1.0
    rng = np.random.default_rng(0)
    test = permutation_test((d,), np.mean, permutation_type="samples", n_resamples=SIGN_FLIPS, rng=rng)
    return float(test.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusts p-values for the number of comparisons (Holm 1979, step-down; valid under any dependence).

    Args:
      p_values: one per comparison of the family; None where none could be made, which does not count.

    Returns:
      The adjusted p-values in the same order: calling those <= .05 real errs anywhere with a chance <= .05.
    """
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i])
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
