"""What the saturation study finds, as tables: effects with intervals, and which explanation holds.

All tables are of nets, a row per cell (label of a config) and seed, with METRICS and status, or of gates, a row per
cell, seed, epoch, block and gate, as `resjax.probes.saturation` leaves it during training.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from resjax import stats

METRICS = {  # column -> what it is, factor to the unit, unit; +1 where more is worse
    "early_loss": ("training loss, first epochs", 1, "nats", 1),
    "log_train_loss": ("log10 of the final training loss", 1, "decades", 1),
    "OA": ("overall accuracy", 100, "points", -1),
}
SATURATED = 0.1  # a gate is called saturated if this share of its values lies at an asymptote
OVER_TRAINING = ("distance", "saturated", "slope_share", "grad_ratio", "zeros", "dead_units", "update_ratio", "stuck")

Weights = Mapping[str, float]  # cell -> its weight in a sum


class Cure(NamedTuple):
    """A change that should close a gap if an explanation is right.

    Attributes:
      merge: whose gap it is.
      hypothesis: the explanation.
      name: the change, in words.
      gap: the gap as a sum over cells, where it is to be explained.
      left: what is left of it with the change.
    """

    merge: str
    hypothesis: str
    name: str
    gap: Weights
    left: Weights


def contrast(nets: pd.DataFrame, weights: Weights, metric: str) -> dict:
    """`stats.mean_ci` of the weighted sum over cells, over the seeds that no cell lost."""
    values = nets[nets["cell"].isin(weights)].pivot_table(index="seed", columns="cell", values=metric, dropna=False)
    values = values.reindex(columns=list(weights)).dropna()
    return stats.mean_ci(values.to_numpy() @ np.array(list(weights.values()), float))


def effects(nets: pd.DataFrame, pairs: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    """A row per (arm, cell, baseline) of `pairs` and metric: the paired difference of the cell to the baseline.

    Columns: arm, cell, merge, baseline, metric, pairs, diverged (replicas of the cell), difference, difference_low,
    difference_high, in the metric's own unit (accuracies are fractions).
    """
    numbers = ("difference", "difference_low", "difference_high")
    columns = ["arm", "cell", "merge", "baseline", "metric", "pairs", "diverged", *numbers]
    rows, of_cell = [], dict(iter(nets.groupby("cell", sort=False)))
    for arm, cell, baseline in pairs:
        merge, diverged = of_cell[cell]["merge"].iloc[0], int((of_cell[cell]["status"] == "diverged").sum())
        for metric in METRICS:
            d = contrast(nets, {cell: 1, baseline: -1}, metric)
            rows.append([arm, cell, merge, baseline, metric, d["n"], diverged, d["mean"], d["ci_low"], d["ci_high"]])
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, float))


def over_training(gates: pd.DataFrame) -> pd.DataFrame:
    """A row per (cell, merge, epoch, quantity of OVER_TRAINING): mean, ci_low, ci_high and n over seeds.

    A seed's value is its mean over the gates of the net; of blocks without gates where the net has none at all. One
    that is not finite is left out.

    Args:
      gates: without the replicas that diverged, or the seeds would differ from epoch to epoch.
    """
    gates = gates.assign(slope_share=gates["slope_rms"] / gates["slope_max"])
    gated = gates["gate"] != ""
    gates = gates[gated | ~gated.groupby(gates["cell"]).transform("any")]
    values = gates.groupby(["cell", "merge", "epoch", "seed"], sort=False)[list(OVER_TRAINING)].mean()
    rows = []
    for key, of_epoch in values.groupby(["cell", "merge", "epoch"], sort=False):
        for quantity in OVER_TRAINING:
            if len(present := of_epoch.loc[np.isfinite(of_epoch[quantity]), quantity]):
                ci = stats.mean_ci(present)
                rows.append([*key, quantity, ci["mean"], ci["ci_low"], ci["ci_high"], ci["n"]])
    columns = ["cell", "merge", "epoch", "quantity", "mean", "ci_low", "ci_high", "n"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(("mean", "ci_low", "ci_high"), float))


def hypotheses(nets: pd.DataFrame, gates: pd.DataFrame, cures: Sequence[Cure]) -> pd.DataFrame:
    """The decision table of Q5: a row per (merge, hypothesis, evidence, metric).

    Saturation: the share of gate values within 5 % of an asymptote, mean over gates and epochs after the first look,
    against SATURATED; metric is "saturated" then, and gap and left are nan.
    The other hypotheses: gap, what is left of it with the cure, and `estimate`, the difference, all worse-is-positive
    and with intervals over seeds. "supported": the interval of gap/2 - left says that more than half of the gap is
    closed; "in part": less than half, but something; "refuted": less than half, and nothing for certain; "no gap":
    the gap's interval does not lie above 0, so that there is nothing to explain; else "undecided".
    """
    rows = []
    for merge in dict.fromkeys(cure.merge for cure in cures):
        own = gates[(gates["cell"] == merge) & (gates["gate"] != "") & (gates["epoch"] > 0)]
        share = stats.mean_ci(own.groupby("seed")["saturated"].mean())
        above = share | {key: share[key] - SATURATED for key in ("mean", "ci_low", "ci_high") if share[key] is not None}
        parts = {"estimate": share, "gap": None, "left": None}
        words = "share of gate values at an asymptote"
        rows.append(_row(merge, "saturation", words, "saturated", parts, decided(above)))
    for cure in cures:
        for metric, (*_, worse) in METRICS.items():
            gap, left = ({cell: worse * w for cell, w in part.items()} for part in (cure.gap, cure.left))
            cells = gap | left
            weights = {"gap": gap, "left": left}
            weights["estimate"] = {cell: gap.get(cell, 0) - left.get(cell, 0) for cell in cells}
            half = {cell: gap.get(cell, 0) / 2 - left.get(cell, 0) for cell in cells}
            parts = {name: contrast(nets, own, metric) for name, own in weights.items()}
            verdict = _closes(parts["gap"], parts["estimate"], contrast(nets, half, metric))
            rows.append(_row(cure.merge, cure.hypothesis, cure.name, metric, parts, verdict))
    frame = pd.DataFrame(rows)
    return frame.astype(
        dict.fromkeys(frame.columns.difference(["merge", "hypothesis", "evidence", "metric", "verdict"]), float)
    )


def _closes(gap: Mapping, closed: Mapping, half: Mapping) -> str:
    if decided(gap) != "supported":
        return "no gap"
    verdict = decided(half)
    return "in part" if verdict == "refuted" and decided(closed) == "supported" else verdict


def _row(merge: str, hypothesis: str, evidence: str, metric: str, parts: Mapping, verdict: str) -> dict:
    row = {"merge": merge, "hypothesis": hypothesis, "evidence": evidence, "metric": metric}
    row["n"] = parts["estimate"]["n"]
    for name, ci in parts.items():
        for end, key in {"": "mean", "_low": "ci_low", "_high": "ci_high"}.items():
            row[name + end] = ci[key] if ci else None
    return row | {"verdict": verdict}


def decided(ci: Mapping) -> str:
    """Whether an interval says that something is above 0."""
    if ci["ci_low"] is None:
        return "undecided"
    return "supported" if ci["ci_low"] > 0 else "refuted" if ci["ci_high"] < 0 else "undecided"


def best_rates(nets: pd.DataFrame, baseline: str = "add") -> pd.DataFrame:
    """A row per (merge, schedule): is a gate's learning rate only too small?

    Args:
      nets: of all rates and schedules, with the columns learning_rate and schedule.
      baseline: the merge that is compared with.

    Columns:
      ratio, ratio_low, ratio_high, n: the rate with a replica's lowest final training loss over that of the
        baseline's, geometric mean over seeds and its CI.
      best: the rate with the merge's lowest mean log10 of the final training loss; a rate at which replicas diverged
        is none.
      at_base, at_best (..._low, ..._high): difference to the baseline in that logarithm at the baseline's best rate,
        and where both have their own best one. Danger: the rates are picked on the seeds that measure these
        differences, so that the losses are a little too low, and the intervals too narrow.
    """
    metric, rows = "log_train_loss", []
    for schedule, of_schedule in nets.groupby("schedule", sort=False):
        best, chosen = {}, {}
        for merge, own in of_schedule.groupby("merge", sort=False):
            by_rate = own.pivot_table(index="seed", columns="learning_rate", values=metric, dropna=False)
            by_rate = by_rate.loc[:, by_rate.notna().all()]
            if by_rate.size:
                best[merge] = by_rate.mean().idxmin()
                chosen[merge] = np.log10(by_rate.idxmin(axis="columns"))
        cell = of_schedule.drop_duplicates(["merge", "learning_rate"]).set_index(["merge", "learning_rate"])["cell"]
        for merge in [merge for merge in best if merge != baseline and baseline in best]:
            ratio = stats.paired_difference(chosen[merge].to_dict(), chosen[baseline].to_dict())
            row = {"merge": merge, "schedule": schedule, "n": ratio["n"], "best": best[merge]}
            row |= {f"best_{baseline}": best[baseline]}
            for column, key in {"ratio": "mean", "ratio_low": "ci_low", "ratio_high": "ci_high"}.items():
                row[column] = None if ratio[key] is None else 10 ** ratio[key]
            for column, rate in {"at_base": best[baseline], "at_best": best[merge]}.items():
                d = contrast(of_schedule, {cell[merge, rate]: 1, cell[baseline, best[baseline]]: -1}, metric)
                row |= {column: d["mean"], f"{column}_low": d["ci_low"], f"{column}_high": d["ci_high"]}
            rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(frame.columns.difference(["merge", "schedule"]), float))


def attention(masks: pd.DataFrame) -> pd.DataFrame:
    """A row per (cell, merge, moment, block): how uneven masks are over positions, and whether they follow the ink.

    Columns: contrast, the standard deviation over positions of the mask relative to its mean; ink, its correlation
    with the input's brightness; both the mean over images, with intervals over seeds (..._low, ..._high) and n.
    A flat mask has contrast 0 and no correlation (nan).
    """
    keys = ["cell", "merge", "moment", "block"]
    rows = []
    for key, own in masks.groupby(keys, sort=False):
        by_image = own.groupby(["seed", "image"])
        contrast_of = by_image["relative"].std(ddof=0)
        ink = by_image[["relative", "ink"]].apply(_correlation)
        row = dict(zip(keys, key, strict=True))
        for name, values in {"contrast": contrast_of, "ink": ink}.items():
            ci = stats.mean_ci(values.groupby("seed").mean().dropna())
            row |= {name: ci["mean"], f"{name}_low": ci["ci_low"], f"{name}_high": ci["ci_high"], "n": ci["n"]}
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(frame.columns.difference(keys), float))


def maps(masks: pd.DataFrame, blocks: int = 2, images: int = 6) -> pd.DataFrame:
    """The masks of trained nets in the first blocks, on the first images, as means over seeds; n: how many seeds.

    Columns: cell, merge, block, image, row, column, relative, ink, n.
    """
    first = list(dict.fromkeys(masks["block"]))[:blocks]
    kept = masks[(masks["moment"] == "trained") & (masks["image"] < images) & masks["block"].isin(first)]
    by = kept.groupby(["cell", "merge", "block", "image", "row", "column"], sort=False)
    return by.agg(relative=("relative", "mean"), ink=("ink", "mean"), n=("seed", "nunique")).reset_index()


def _correlation(columns: pd.DataFrame) -> float:
    """Of two columns; nan if one is flat: float32 would correlate its own rounding."""
    return np.nan if (columns.std(ddof=0) < 1e-5).any() else columns.corr().iloc[0, 1]
