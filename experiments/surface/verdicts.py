"""What the report cards say of Q9, Q11 and Q25, in sentences that claim no more than their intervals do."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from experiments.surface.tables import BASELINE, ENOUGH, READINGS, SYMMETRIES

AMONG = [reading for reading in READINGS if reading != "error"]
FALSE_ALARMS = 0.05
TOLD = {"flip": (1,), "shift": (1, 2), "rotation": (15, 30, 90), "scale": (0.7, 1.4)}  # amounts of Q25's sentence


def verdicts(
    nets: pd.DataFrame,
    card: pd.DataFrame,
    ranked: pd.DataFrame,
    priors: pd.DataFrame,
    symmetry: pd.DataFrame,
    aligned: pd.DataFrame,
) -> Iterator[tuple[str, str]]:
    """(what, sentence).

    Args:
      nets: `surface_tables.per_net`.
      card: `surface_tables.card`.
      ranked: `surface_tables.ranks`.
      priors: `surface_tables.priors`.
      symmetry: `surface_tables.symmetry_curves`.
      aligned: `surface_tables.alignments`.
    """
    yield "nets", _who(nets)
    for dataset, rows in card[card["arm"] == "plain"].groupby("dataset", sort=False):
        yield f"Q9, {dataset}", f"{_baseline(rows)}; {_apart(rows)}."
    yield "Q9, common to all sets", _common(card, ranked)
    for dataset, rows in priors.groupby("dataset", sort=False):
        for arm, of_arm in rows[rows["arm"] != "stn"].groupby("arm", sort=False):
            yield f"Q11, {dataset}, {arm}", _changes(of_arm)
    for dataset, rows in symmetry.groupby("dataset", sort=False):
        of_set = (table[table["dataset"] == dataset] for table in (priors, aligned))
        yield f"Q25, {dataset}", _symmetry(rows, *of_set)


def _who(nets: pd.DataFrame) -> str:
    trained = nets[nets["status"] == "done"]
    words = [
        f"{dataset} {arm} {(rows['train_accuracy'] == 1).sum()} of {len(rows)}"
        for (dataset, arm), rows in trained.groupby(["dataset", "arm"], sort=False)
    ]
    text = f"every training image right at the end: {', '.join(words)}"
    lost = nets[nets["status"] != "done"].groupby(["dataset", "arm", "merge"], sort=False).size()
    if len(lost):
        which = [f"{dataset} {arm} {merge} {count}" for (dataset, arm, merge), count in lost.items()]
        text += f"; diverged or not trained: {', '.join(which)}"
    return f"{text}."


def _baseline(rows: pd.DataFrame) -> str:
    of_add = rows[rows["merge"] == BASELINE].set_index("reading")
    words = [f"{READINGS[r].words} {_number(of_add.loc[r], r, 'mean', 'ci_low', 'ci_high')}" for r in READINGS]
    return f"{BASELINE} (n = {of_add['n'].max():.0f} seeds): {', '.join(words)}"


def _apart(rows: pd.DataFrame) -> str:
    """Which merges differ from the baseline in which readings."""
    compared, words = rows[rows["p"].notna()], []
    side = _side(compared)
    for reading in READINGS:
        of_reading = compared["reading"] == reading
        sides = {"above": of_reading & (side > 0), "below": of_reading & (side < 0)}
        parts = [f"{name} {', '.join(compared.loc[who, 'merge'])}" for name, who in sides.items() if who.any()]
        if parts:
            words.append(f"{READINGS[reading].words}: {'; '.join(parts)}")
    rule = (
        f"paired sign flips, p <= {FALSE_ALARMS}, not corrected: {(side != 0).sum()} of {len(compared)} comparisons, "
    )
    rule += f"of which {FALSE_ALARMS * len(compared):.0f} may be by chance"
    return f"distinguishable from {BASELINE} ({rule}): {' | '.join(words) or 'nothing'}"


def _side(rows: pd.DataFrame) -> pd.Series:
    """1 or -1 where a difference to the baseline is told from 0, else 0."""
    return np.sign(rows["difference"]).where(rows["p"] <= FALSE_ALARMS, 0)


def _common(card: pd.DataFrame, ranked: pd.DataFrame) -> str:
    sets = [name for name in dict.fromkeys(ranked["dataset"]) if name != "all"]
    of_set = {name: rows.set_index("reading") for name, rows in ranked.groupby("dataset", sort=False)}
    if len(sets) < 2:
        return "one data set alone: nothing to compare."
    merges, cells = (of_set["all"][name].max() for name in ("n", "cells"))
    if merges < ENOUGH:
        return f"{merges} merges are too few to rank, which takes {ENOUGH}."
    signs = {r: {_sign(of_set[name].loc[r], "tau") for name in sets} for r in AMONG}
    same = [r for r in AMONG if signs[r] in ({1}, {-1})]
    against = [r for r in AMONG if {1, -1} <= signs[r]]
    text = f"within sets and priors, merges err more the larger (+) or smaller (-) is, on each of {', '.join(sets)}: "
    text += ", ".join(f"{READINGS[r].words} {_tau(of_set['all'].loc[r])}" for r in same) or "no reading"
    text += f" (Kendall's tau, mean over {cells} sets and priors of {merges} merges)"
    if against:
        text += f"; of opposite sign between sets: {', '.join(READINGS[r].words for r in against)}"
    gains = of_set["all"].loc[AMONG, "gain_low"]
    better = gains[gains > 0].index
    text += f"; better than the best plain baseline: {', '.join(READINGS[r].words for r in better) or 'none'}"
    plain = card[(card["arm"] == "plain") & card["p"].notna()]
    side = _side(plain).set_axis(pd.MultiIndex.from_frame(plain[["merge", "reading", "dataset"]]))
    everywhere = []
    for merge in dict.fromkeys(plain["merge"]):
        found = {r: [side.get((merge, r, d), 0) for d in sets] for r in READINGS}
        words = [f"{READINGS[r].words} {'+' if s[0] > 0 else '-'}" for r, s in found.items() if s[0] and len({*s}) == 1]
        everywhere.append(f"{merge}: {', '.join(words) or 'nothing'}")
    return f"{text}; what a merge changes against {BASELINE} on every set: {' | '.join(everywhere)}."


def _changes(rows: pd.DataFrame) -> str:
    """What a prior changes: shares in percentage points, other readings in percent of what they were."""
    kept = rows.set_index("reading")
    groups = {"more": kept["relative_low"] > 0, "less": kept["relative_high"] < 0}
    groups["not distinguishable"] = kept["relative_low"].notna() & ~groups["more"] & ~groups["less"]
    groups["no interval"] = kept["relative_low"].isna()
    parts = []
    for name, which in groups.items():
        told = [f"{READINGS[r].words} {_change(row, r)}" for r, row in kept[which].iterrows()]
        if told or name in ("more", "less"):
            short = [READINGS[r].words for r in kept[which].index]
            parts.append(f"{name}: {', '.join(told if name in ('more', 'less') else short) or 'nothing'}")
    n = kept["n"].max()
    return f"{'; '.join(parts)} (against no prior, mean over n = {n} merges, 95 % CI over merges and seeds)."


def _symmetry(rows: pd.DataFrame, priors: pd.DataFrame, aligned: pd.DataFrame) -> str:
    """How long nets without a prior keep what they have right, and what augmentation and a transformer add."""
    plain = rows[(rows["arm"] == "plain") & (rows["merge"] == BASELINE)].set_index(["transformation", "amount"])
    words = [
        f"{name} {amount:g} {_percent(plain.loc[(name, amount)])}"
        for name, amounts in TOLD.items()
        for amount in amounts
        if (name, amount) in plain.index
    ]
    text = f"of the images that {BASELINE} has right without a prior it keeps (%): {', '.join(words)}"
    for arm, of_arm in priors[priors["arm"].isin(["augment", "stn"])].groupby("arm", sort=False):
        found = of_arm.set_index("reading")
        changes = [f"{READINGS[r].words} {_change(found.loc[r], r)}" for r in (*SYMMETRIES, "error")]
        text += f"; {arm} changes {', '.join(changes)}"
    for transformation, of in aligned.groupby("transformation", sort=False):
        least, most = of.loc[of["mean"].idxmin()], of.loc[of["mean"].idxmax()]
        text += (
            f"; of a {transformation} the spatial transformer takes back (%) {_percent(least)} ({least['merge']}) to "
        )
        text += f"{_percent(most)} ({most['merge']})"
    return f"{text}."


def _sign(row: Mapping, name: str) -> int:
    """1 or -1 if the interval lies on that side of 0, else 0."""
    return int(row[f"{name}_low"] > 0) - int(row[f"{name}_high"] < 0)


def _number(row: Mapping, reading: str, mean: str, low: str, high: str) -> str:
    scale, unit = READINGS[reading].scale, READINGS[reading].unit
    interval = "" if pd.isna(row[low]) else f" [{scale * row[low]:.3g}, {scale * row[high]:.3g}]"
    return f"{scale * row[mean]:.3g}{interval}" + (f" {unit}" if unit else "")


def _percent(row: Mapping) -> str:
    interval = "" if pd.isna(row["ci_low"]) else f" [{100 * row['ci_low']:.0f}, {100 * row['ci_high']:.0f}]"
    return f"{100 * row['mean']:.0f}{interval}"


def _tau(row: Mapping) -> str:
    return f"{row['tau']:+.2f} [{row['tau_low']:+.2f}, {row['tau_high']:+.2f}]"


def _change(row: Mapping, reading: str) -> str:
    unit = "points" if READINGS[reading].share else "%"
    numbers = [100 * row[f"relative{end}"] for end in ("", "_low", "_high")]
    return "{:+.1f} {} [{:+.1f}, {:+.1f}]".format(numbers[0], unit, *numbers[1:])
