"""What the saturation study finds, as tables: effects with intervals, and which explanation holds.

All tables are of nets, a row per cell (label of a config) and seed, with METRICS and status, or of gates, a row per
cell, seed, epoch, block and gate, as `resjax.probes.gates.saturation` leaves it during training.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from resjax import stats
from resjax.stats import Estimate

METRICS = {  # column -> what it is, factor to the unit, unit; +1 where more is worse
    "early_loss": ("training loss, first epochs", 1, "nats", 1),
    "log_train_loss": ("log10 of the final training loss", 1, "decades", 1),
    "OA": ("overall accuracy", 100, "points", -1),
}
ENDS = {"": "mean", "_low": "ci_low", "_high": "ci_high"}  # of a column's name -> of `stats.mean_ci`
SATURATED = 0.1  # a gate is called saturated if this share of its values lies at an asymptote
OVER_TRAINING = (  # columns of `resjax.probes.gates.saturation`, and slope_share = slope_rms / slope_max
    "mean", "distance", "saturated", "slope_share", "grad_ratio", "zeros", "dead_units", "update_ratio", "stuck",
)  # fmt: skip

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
    """A row per (cell, merge, gate, epoch, quantity of OVER_TRAINING): mean, ci_low, ci_high and n over seeds.

    A seed's value is its mean over the blocks of the net that have this gate; over those without gates, gate "", where
    the net has none at all. One that is not finite is left out.

    Args:
      gates: without the replicas that diverged, or the seeds would differ from epoch to epoch.
    """
    gates = gates.assign(slope_share=gates["slope_rms"] / gates["slope_max"])
    gated = gates["gate"] != ""
    gates = gates[gated | ~gated.groupby(gates["cell"]).transform("any")]
    keys = ["cell", "merge", "gate", "epoch"]
    values = gates.groupby([*keys, "seed"], sort=False)[list(OVER_TRAINING)].mean()
    rows = []
    for key, of_epoch in values.groupby(keys, sort=False):
        for quantity in OVER_TRAINING:
            if len(present := of_epoch.loc[np.isfinite(of_epoch[quantity]), quantity]):
                ci = stats.mean_ci(present)
                rows.append([*key, quantity, ci["mean"], ci["ci_low"], ci["ci_high"], ci["n"]])
    columns = [*keys, "quantity", "mean", "ci_low", "ci_high", "n"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(("mean", "ci_low", "ci_high"), float))


def gate_names(table: pd.DataFrame) -> pd.Series:
    """`cell`, or `cell: gate` of a cell that has several."""
    several = table["cell"].map(table.groupby("cell")["gate"].nunique() > 1)
    return table["cell"].where(~several, table["cell"] + ": " + table["gate"])


def factorial(nets: pd.DataFrame, shapes: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """What value and slope of a gate at 0 change, each alone: a row per (effect, metric), in the metric's own unit.

    Columns: effect, metric, n, estimate, estimate_low, estimate_high. The effect "slope" is that of the larger slope,
    mean over both values, "value" that of the larger value; "interaction" is the slope's effect at the larger value
    less that at the smaller one.

    Args:
      nets: of all cells of `shapes`.
      shapes: cell -> value and slope, of which there are two each, in all four pairs.
    """
    low = [min(numbers) for numbers in zip(*shapes.values(), strict=True)]
    signs = {cell: [-1 if x == least else 1 for x, least in zip(of, low, strict=True)] for cell, of in shapes.items()}
    weights = {
        "slope": {cell: slope / 2 for cell, (_, slope) in signs.items()},
        "value": {cell: value / 2 for cell, (value, _) in signs.items()},
        "interaction": {cell: value * slope for cell, (value, slope) in signs.items()},
    }
    rows = []
    for effect, own in weights.items():
        for metric in METRICS:
            ci = contrast(nets, own, metric)
            rows.append([effect, metric, ci["n"], ci["mean"], ci["ci_low"], ci["ci_high"]])
    numbers = ["estimate", "estimate_low", "estimate_high"]
    return pd.DataFrame(rows, columns=["effect", "metric", "n", *numbers]).astype(dict.fromkeys(numbers, float))


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
        for end, key in ENDS.items():
            row[name + end] = ci[key] if ci else None
    return row | {"verdict": verdict}


def decided(ci: Mapping) -> str:
    """Whether an interval says that something is above 0."""
    return {1: "supported", -1: "refuted", 0: "undecided"}[Estimate.of(ci).side]


def best_rates(nets: pd.DataFrame, baseline: str = "add") -> pd.DataFrame:
    """A row per (merge, schedule): is a gate's learning rate only too small?

    A rate at which a replica diverged is none. Rates are picked by log10 of the final training loss.

    Args:
      nets: of all rates and schedules, with the columns learning_rate and schedule.
      baseline: the merge that is compared with.

    Columns:
      ratio, ratio_low, ratio_high, n: the rate with a replica's lowest loss over that with the baseline's, geometric
        mean over seeds and its CI.
      best, best_add: the rates with the lowest mean loss of the merge, and of the baseline (best_<its name>).
      inside: whether neither is the lowest or the highest rate that its merge was tried at, or it may lie beyond.
      at_edge: how many picks of replicas, of both merges, are.
      at_base, at_best (..._low, ..._high): difference to the baseline in that loss at the baseline's best rate, and
        where both have their own best one; of every seed at the rates that are best for the others, so that no seed
        measures what it picked.
      early_at_base, early_at_best: the same of early_loss.
    """
    rows = []
    for schedule, of_schedule in nets.groupby("schedule", sort=False):
        ends = of_schedule.groupby("merge")["learning_rate"].agg(["min", "max"])
        tables = {
            metric: {merge: _by_rate(own, metric) for merge, own in of_schedule.groupby("merge", sort=False)}
            for metric in ("log_train_loss", "early_loss")
        }
        by_rate = {merge: table for merge, table in tables["log_train_loss"].items() if table.size}
        lowest = {merge: table.idxmin(axis="columns") for merge, table in by_rate.items()}
        picks = {merge: _picked_by_others(table) for merge, table in by_rate.items()}
        for merge in [merge for merge in by_rate if merge != baseline and baseline in by_rate]:
            ratio = stats.paired_difference(*(np.log10(lowest[name]).to_dict() for name in (merge, baseline)))
            row = {"merge": merge, "schedule": schedule, "n": ratio["n"], "best": by_rate[merge].mean().idxmin()}
            row |= {f"best_{baseline}": by_rate[baseline].mean().idxmin()}
            for column, key in {"ratio": "mean", "ratio_low": "ci_low", "ratio_high": "ci_high"}.items():
                row[column] = None if ratio[key] is None else 10 ** ratio[key]
            row["inside"] = all(by_rate[name].mean().idxmin() not in {*ends.loc[name]} for name in (merge, baseline))
            row["at_edge"] = sum(lowest[name].isin(ends.loc[name]).sum() for name in (merge, baseline))
            for prefix, metric in {"": "log_train_loss", "early_": "early_loss"}.items():
                base = _at(tables[metric][baseline], picks[baseline])
                for column, rates in {"at_base": picks[baseline], "at_best": picks[merge]}.items():
                    d = stats.mean_ci((_at(tables[metric][merge], rates) - base).dropna())
                    row |= {f"{prefix}{column}{end}": d[key] for end, key in ENDS.items()}
            rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(frame.columns.difference(["merge", "schedule"]), float))


def _by_rate(nets: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Seeds x rates, of the rates at which no replica diverged."""
    values = nets.pivot_table(index="seed", columns="learning_rate", values=metric, dropna=False)
    return values.loc[:, values.notna().all()]


def _picked_by_others(by_rate: pd.DataFrame) -> pd.Series:
    """Seed -> the rate that is best for the others; its own best if it is alone."""
    others = {seed: by_rate.drop(index=seed) if len(by_rate) > 1 else by_rate for seed in by_rate.index}
    return pd.Series({seed: table.mean().idxmin() for seed, table in others.items()})


def _at(by_rate: pd.DataFrame, rates: pd.Series) -> pd.Series:
    """Every seed's value at its rate; nan where there is none."""
    values = by_rate.stack()
    return pd.Series({seed: values.get((seed, rate), np.nan) for seed, rate in rates.items()})


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
