"""What the report cards say of Q9, Q11 and Q25, in sentences that claim no more than their intervals do."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from experiments.surface.tables import BASELINE, ENOUGH, READINGS, SYMMETRIES
from resjax.stats import Estimate

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
    words = []
    for name, reading in READINGS.items():
        value = Estimate.of(of_add.loc[name], scale=reading.scale)
        words.append(f"{reading.words} {value:.3g} {reading.unit}".rstrip())
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
    signs = {r: {Estimate.of(of_set[name].loc[r], "tau").side for name in sets} for r in AMONG}
    same = [r for r in AMONG if signs[r] in ({1}, {-1})]
    against = [r for r in AMONG if {1, -1} <= signs[r]]
    text = f"within sets and priors, merges err more the larger (+) or smaller (-) is, on each of {', '.join(sets)}: "
    taus = {r: Estimate.of(of_set["all"].loc[r], "tau") for r in same}
    text += ", ".join(f"{READINGS[r].words} {tau:+.2f}" for r, tau in taus.items()) or "no reading"
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
        f"{name} {amount:g} {Estimate.of(plain.loc[(name, amount)], scale=100):.0f}"
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
        low, high = (f"{Estimate.of(row, scale=100):.0f} ({row['merge']})" for row in (least, most))
        text += f"; of a {transformation} the spatial transformer takes back (%) {low} to {high}"
    return f"{text}."


def _change(row: Mapping, reading: str) -> str:
    unit = "points" if READINGS[reading].share else "%"
    change = Estimate.of(row, "relative", 100)
    return f"{change.value:+.1f} {unit} {change.interval('+.1f')}"
