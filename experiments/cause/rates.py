"""The standard recipe at equal rates: every merge at every rate, on the replicas that are reported.

A rate that is chosen on two replicas, and lowered where a reported net is lost, hides how errors depend on it. Here no
rate is chosen. A net that diverged or did not fit counts as lost, and its error, if it has one, as it is.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from experiments.cause import tables as cause
from resjax.stats import Estimate

RATES = {"": (0.05, 0.1, 0.2, 0.4, 0.8), "no clipping": (0.003, 0.006, 0.012, 0.025, 0.05, 0.1)}


def measure(
    config: ConfigDict, workdir: str | os.PathLike, *, test: int, rates: Sequence[float]
) -> dict[str, list[dict]]:
    """Errors of `config.seeds` splits, one initialisation each, at every rate.

    Args:
      config: an mlp and its recipe; dataset.name is a teacher of `resjax.regression.tasks`.
      workdir: not used: nothing is trained beforehand.
      test: test points.
      rates: those that are tried.

    Returns:
      {"rows": split, init, rate, error, train_error}, over the target's mean square; inf where a net diverged.
    """
    from resjax.regression import tasks as regression
    from resjax.regression.fit import Fit

    n, rows = config.dataset.train_size, []
    fit = Fit(config, n, 1)
    for split in range(config.seed, config.seed + config.seeds):
        task = regression.draw(config.dataset.name, n, test=test, seed=split)
        for rate in rates:
            found = fit(task.x_NxD, task.y_N[:, None], task.test_x_MxD, split, rate)
            pairs = {"error": (found.test[:, 0], task.test_y_M), "train_error": (found.train[:, 0], task.y_N)}
            errors = {name: np.mean((got - want) ** 2) / np.mean(want**2) for name, (got, want) in pairs.items()}
            row = {"split": split, "init": 0, "rate": rate}
            rows.append(row | {name: error if np.isfinite(error) else np.inf for name, error in errors.items()})
    return {"rows": rows}


def table(rows: pd.DataFrame, baseline: str = "add") -> pd.DataFrame:
    """By setting, arm, rate and merge: mean, ci_low, ci_high, nets, lost, median; D, D_low, D_high.

    mean and D, the difference to the baseline at the same rate, are of all replicas, those that did not fit included,
    and nan where one diverged; median is robust to the few that collapsed.

    Args:
      rows: of `measure`, with SETTING, arm and merge.
      baseline: what is subtracted.
    """
    at = [*cause.SETTING, "arm", "rate", "merge"]
    errors = {
        key: own.set_index(cause.PAIR)["error"].replace(np.inf, np.nan) for key, own in rows.groupby(at, sort=False)
    }
    lost = cause.lost_nets(rows).groupby([rows[column] for column in at], sort=False).sum()
    out = []
    for key, own in errors.items():
        found = cause.interval(own)
        row = dict(zip(at, key, strict=True)) | {name: found[name] for name in ("mean", "ci_low", "ci_high")}
        row |= {"nets": len(own), "lost": int(lost[key]), "median": own.fillna(np.inf).median()}
        if key[-1] != baseline:
            D = cause.interval(own - errors[*key[:-1], baseline])
            row |= {"D": D["mean"], "D_low": D["ci_low"], "D_high": D["ci_high"]}
        out.append(row)
    return pd.DataFrame(out)


def sentences(found: pd.DataFrame) -> dict[str, str]:
    """Each merge's difference to the sum at the same rate, by task, arm and rate."""
    out = {}
    for (task, arm, rate), own in found.groupby(["task", "arm", "rate"], sort=False):
        parts = [_of_merge(row) for row in own.to_dict("records")]
        out[f"{task}, {arm or 'norm and clipping'}, rate {rate:g}"] = "; ".join(parts)
    return out


def _of_merge(row: Mapping) -> str:
    text = f"{row['merge']} median {row['median']:.3f}"
    text += f", {row['lost']} of {row['nets']} lost" if row["lost"] else ""
    return text if pd.isna(row.get("D", np.nan)) else f"{text}, D {Estimate.of(row, 'D'):+.3f}"
