"""Nets that all interpolate the training set: how far apart they are as functions, what they err, and what tells (Q10).

Verdicts are by disagreement (`resjax.analysis.distances`): two nets that give every image the same class have a total
variation as soon as one is surer than the other, so that it mixes what a merge prefers with how sure it is.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from resjax.analysis.distances import BASELINE
from resjax.stats import Estimate

KEYS = ["cell", "seed"]
SHARPNESS = ["asam", "sam", "box", "lambda_max", "trace"]
READINGS = {  # column of `per_net` -> (+1 if a larger one should go with a larger error else -1, plain baseline)
    **dict.fromkeys(SHARPNESS, (1, False)),
    "margin": (-1, False),
    "parameters": (1, True),
    "train_loss": (1, True),
    "epochs_to_fit": (1, True),
}
LOW = 0.1  # quantile of the margins that stands for a net
FALSE_ALARMS = 0.05


def per_net(nets: pd.DataFrame, course: pd.DataFrame, fit: pd.DataFrame, sharpness: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and seed: whether it interpolates, what it errs on test images, and READINGS.

    Columns beside those of `nets`: error (a fraction); fit_accuracy, the share of the training images that the trained
    net has right, without augmentation and with running statistics; interpolates: it is 1; margin: the quantile LOW of
    their margins; epochs_to_fit: the first epoch in which training had every image right, inf without one.

    Args:
      nets: `tables.summary` with the column cell.
      course: of `tables.load` with the column cell.
      fit: rows of `resjax.probes.functions.outputs` on the training images, with cell and seed.
      sharpness: rows of `resjax.probes.loss.sharpness`; without any, what they say is nan.
    """
    about = ["dataset", "train_size", "merge", "depth", "width", "status", "epoch", "parameters", "train_loss"]
    of_net = fit.assign(right=fit["margin"] > 0).groupby(KEYS)
    fitted = of_net.agg(fit_accuracy=("right", "mean"), margin=("margin", lambda margin: margin.quantile(LOW)))
    all_right = course[(course["split"] == "train") & (course["accuracy"] >= 1)]
    first = all_right.groupby(KEYS)["epoch"].min().rename("epochs_to_fit")
    table = nets[[*KEYS, *about]].assign(error=1 - nets["OA"])
    table = table.merge(fitted, how="left", on=KEYS).merge(first, how="left", on=KEYS)
    table["epochs_to_fit"] = table["epochs_to_fit"].fillna(np.inf).where(table["status"] == "done")
    table["interpolates"] = table["fit_accuracy"] == 1
    found = sharpness.reindex(columns=[*KEYS, *SHARPNESS]).astype(dict.fromkeys(["seed", *SHARPNESS], float))
    return table.merge(found, how="left", on=KEYS)


def compared(nets: pd.DataFrame) -> pd.DataFrame:
    """The rows of nets that interpolate, and of those that diverged, whose error is nan: what comparisons count."""
    return nets[nets["interpolates"] | (nets["status"] == "diverged")]


def verdicts(
    nets: pd.DataFrame, apart: pd.DataFrame, beyond: pd.DataFrame, differences: pd.DataFrame
) -> Iterator[tuple[str, str]]:
    """(what, sentence): who interpolates, how far apart those nets are, and what they err.

    Args:
      nets: of `per_net`.
      apart: of `distances.distances`.
      beyond: of `distances.excess`.
      differences: `tables.differences` of the error of nets that interpolate.
    """
    yield "interpolating", _who(nets)
    within = apart[(apart["merge_a"] == BASELINE) & (apart["merge_b"] == BASELINE)]
    yield "verdict on Q10", _distance(within, beyond)
    yield "test error", _error(differences.set_index("merge"))


def _who(nets: pd.DataFrame) -> str:
    text = f"{nets['interpolates'].sum()} of {len(nets)} nets have every training image right"
    words = [
        f"{merge} {len(rows)} (least accuracy {100 * rows['fit_accuracy'].min():.1f} %)"
        for merge, rows in nets[nets["fit_accuracy"] < 1].groupby("merge", sort=False)
    ]
    text += f"; left out, as they do not: {', '.join(words)}" if words else ""
    state = nets["status"].where(nets["status"] != "done", "not looked at")[nets["fit_accuracy"].isna()]
    for name, rows in nets.groupby(state, sort=False):
        counts = rows.groupby("merge", sort=False).size()
        text += f"; {name}: {', '.join(f'{merge} {count}' for merge, count in counts.items())}"
    return f"{text}."


def _distance(within: pd.DataFrame, beyond: pd.DataFrame) -> str:
    if within.empty or within["disagreement"].isna().all():
        return f"fewer than two nets of {BASELINE} interpolate: nothing to compare with."
    seeds = within.iloc[0]
    text = (
        f"between seeds of {BASELINE}, {Estimate.of(seeds, 'disagreement', 100):.1f} % of the test images get another "
        f"class (n = {seeds['n']})"
    )
    beyond = beyond.sort_values("excess_disagreement", ascending=False)
    above, known = beyond["excess_disagreement_low"] > 0, beyond["excess_disagreement_low"].notna()
    given = beyond["excess_disagreement"].notna()
    groups = {
        "of another merge it is, beyond seeds, more points by": beyond[above],
        "not distinguishable from more seeds of it": beyond[~above & known],
        "too few seeds for an interval": beyond[~known & given],
    }
    for name, rows in groups.items():
        if len(rows):
            words = [
                f"{row['merge']} {Estimate.of(row, 'excess_disagreement', 100):+.2f}" for row in rows.to_dict("records")
            ]
            text += f"; {name}: {', '.join(words)}"
    lost = beyond.loc[~given, "merge"]
    text += f"; too few nets: {', '.join(lost)}" if len(lost) else ""
    text += f". So {above.sum()} of {len(beyond)} merges are farther"
    farther = (beyond["excess_tv_low"] > 0).sum()
    return (
        f"{text}; in total variation, which also tells how sure nets are, it is {Estimate.of(seeds, 'tv'):.3f} between "
        f"those seeds, and {farther} of {len(beyond)} are farther. "
        "95 % intervals over seeds, not corrected for the number of merges."
    )


def _error(rows: pd.DataFrame) -> str:
    if BASELINE not in rows.index or not rows.loc[BASELINE, "n"]:
        return f"no net of {BASELINE} interpolates: nothing to compare with."
    level = rows.loc[BASELINE]
    text = f"that of {BASELINE} is {Estimate.of(level, scale=100):.2f} % (n = {level['n']:.0f})"
    others = rows[rows["p"].notna()].sort_values("difference")
    less, more = others["difference_high"] < 0, others["difference_low"] > 0
    known = others["difference_low"].notna()
    groups = {"less": others[less], "more": others[more], "not distinguishable": others[known & ~less & ~more]}
    groups["one pair alone"] = others[~known]
    for name, of_group in groups.items():
        if len(of_group):
            words = [f"{merge} {Estimate.of(row, 'difference', 100):+.2f}" for merge, row in of_group.iterrows()]
            text += f"; {name}: {', '.join(words)}"
    lost = [merge for merge in rows.index.drop(BASELINE) if merge not in others.index]
    text += f"; no pair: {', '.join(lost)}" if lost else ""
    text += ". Differences in percentage points, paired by seed, 95 % intervals, not corrected for the number of merges"
    if others.empty:
        return f"{text}."
    real = [merge for merge, row in others.iterrows() if row["p_holm"] <= FALSE_ALARMS]
    least = min(1, len(others) * 2 / 2 ** others["pairs"].max())
    text += f"; corrected (Holm), p <= {FALSE_ALARMS}: {', '.join(real) or 'none'}"
    return f"{text}, where {len(others)} comparisons of {others['pairs'].max()} pairs can reach {least:.3f}."
