"""Means over seeds with their intervals, as columns of a table."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from resjax import stats


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`stats.mean_ci` of the column `value` by `by`: over seeds, of each the mean; what is not finite is left out."""
    per_seed = rows.groupby([*by, "seed"], sort=False)["value"].mean().dropna()
    found = [dict(zip(by, key, strict=True)) | stats.mean_ci(v) for key, v in per_seed.groupby(list(by), sort=False)]
    return pd.DataFrame(found)


def with_intervals(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve with the intervals of `stats.mean_ci` that its mean, std and n make."""
    half = [stats.student(n - 1) * std / np.sqrt(n) if n > 1 else np.nan for n, std in curve[["n", "std"]].to_numpy()]
    return curve.assign(ci_low=curve["mean"] - half, ci_high=curve["mean"] + half)
