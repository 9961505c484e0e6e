"""What the report cards say of Q9, Q11 and Q25, in sentences that claim no more than their intervals do."""

from collections.abc import Iterator, Mapping

import pandas as pd

from resjax.analysis.surface_tables import BASELINE, READINGS, SYMMETRIES

AMONG = [reading for reading in READINGS if reading != "error"]


def verdicts(
    nets: pd.DataFrame, card: pd.DataFrame, ranked: pd.DataFrame, priors: pd.DataFrame, symmetry: pd.DataFrame
) -> Iterator[tuple[str, str]]:
    """(what, sentence).

    Args:
      nets: `surface_tables.per_net`.
      card: `surface_tables.card`.
      ranked: `surface_tables.ranks`.
      priors: `surface_tables.priors`.
      symmetry: `surface_tables.symmetry_curves`.
    """
    yield "nets", _who(nets)
    for dataset, rows in card[card["arm"] == "plain"].groupby("dataset", sort=False):
        yield f"Q9, {dataset}", f"{_baseline(rows)}; {_apart(rows)}."
    yield "Q9, common to all sets", _common(card, ranked)
    for dataset, rows in priors.groupby("dataset", sort=False):
        for arm, of_arm in rows[rows["arm"] != "stn"].groupby("arm", sort=False):
            yield f"Q11, {dataset}, {arm}", _changes(of_arm)
    for dataset, rows in symmetry.groupby("dataset", sort=False):
        yield f"Q25, {dataset}", _symmetry(rows, priors[priors["dataset"] == dataset])


def _who(nets: pd.DataFrame) -> str:
    trained = nets[nets["status"] == "done"]
    words = []
    for (dataset, arm), rows in trained.groupby(["dataset", "arm"], sort=False):
        words.append(f"{dataset} {arm} {(rows['train_accuracy'] == 1).sum()} of {len(rows)}")
    lost = nets[nets["status"] != "done"].groupby(["dataset", "arm", "merge"], sort=False).size()
    text = f"every training image right at the end (with the prior's inputs): {', '.join(words)}"
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
    others, words = rows[rows["merge"] != BASELINE], []
    for reading in READINGS:
        of_reading = others[(others["reading"] == reading) & others["difference_low"].notna()]
        sides = {"above": of_reading["difference_low"] > 0, "below": of_reading["difference_high"] < 0}
        parts = [f"{side} {', '.join(of_reading.loc[who, 'merge'])}" for side, who in sides.items() if who.any()]
        if parts:
            words.append(f"{READINGS[reading].words}: {'; '.join(parts)}")
    text = f"distinguishable from {BASELINE} (paired 95 % intervals, not corrected for their number)"
    return f"{text}: {' | '.join(words)}" if words else f"nothing {text}"


def _common(card: pd.DataFrame, ranked: pd.DataFrame) -> str:
    sets = [name for name in dict.fromkeys(ranked["dataset"]) if name != "all"]
    of_set = {name: rows.set_index("reading") for name, rows in ranked.groupby("dataset", sort=False)}
    if len(sets) < 2:
        return "one data set alone: nothing to compare."
    both = [r for r in AMONG if all(_sign(of_set[name].loc[r], "tau") for name in sets)]
    same = [r for r in both if len({_sign(of_set[name].loc[r], "tau") for name in sets}) == 1]
    against = [r for r in both if r not in same]
    n = of_set["all"]["n"].max()
    text = f"within sets and priors, merges err more the larger (+) or smaller (-) is, on each of {', '.join(sets)}: "
    text += ", ".join(f"{READINGS[r].words} {_tau(of_set['all'].loc[r])}" for r in same) or "no reading"
    text += f" (Kendall's tau over all of them, n = {n} configurations)"
    if against:
        text += f"; of opposite sign between sets: {', '.join(READINGS[r].words for r in against)}"
    gains = of_set["all"].loc[AMONG, "gain_low"]
    better = gains[gains > 0].index
    text += f"; better than the best plain baseline: {', '.join(READINGS[r].words for r in better) or 'none'}"
    plain = card[(card["arm"] == "plain") & (card["merge"] != BASELINE)]
    shifts = plain.set_index(["dataset", "merge", "reading"])
    everywhere = []
    for merge in dict.fromkeys(plain["merge"]):
        signs = {r: {_sign(shifts.loc[(d, merge, r)], "difference") for d in sets} for r in READINGS}
        found = [f"{READINGS[r].words} {'+' if s == {1} else '-'}" for r, s in signs.items() if s in ({1}, {-1})]
        everywhere.append(f"{merge}: {', '.join(found) or 'nothing'}")
    return f"{text}; what a merge changes against {BASELINE} on every set: {' | '.join(everywhere)}."


def _changes(rows: pd.DataFrame) -> str:
    """What a prior changes, in percent of what it was."""
    kept = rows.set_index("reading").loc[[r for r in READINGS if r in set(rows["reading"])]]
    groups = {"more": kept["ci_low"] > 0, "less": kept["ci_high"] < 0}
    parts = []
    for name, which in groups.items():
        words = [f"{READINGS[r].words} {_relative(row)}" for r, row in kept[which].iterrows()]
        parts.append(f"{name}: {', '.join(words) or 'nothing'}")
    unsure = kept[~groups["more"] & ~groups["less"] & kept["mean"].notna()].index
    parts.append(f"not distinguishable: {', '.join(READINGS[r].words for r in unsure) or 'nothing'}")
    n = kept["n"].max()
    return f"{'; '.join(parts)} (relative to no prior, mean over n = {n} merges, 95 % CI over merges and seeds)."


def _symmetry(rows: pd.DataFrame, priors: pd.DataFrame) -> str:
    """How far the nets without a prior keep their class, and what augmentation and a spatial transformer add."""
    plain = rows[rows["arm"] == "plain"]
    words = []
    for transformation in SYMMETRIES:
        of = plain[(plain["transformation"] == transformation) & (plain["amount"] != SYMMETRIES[transformation])]
        means = of.groupby("amount")["mean"]
        curve = [f"{amount:g}: {100 * values.mean():.0f}" for amount, values in means]
        words.append(f"{transformation} {', '.join(curve)}")
    text = f"without a prior the class stays (%, mean over merges, by amount): {'; '.join(words)}"
    for arm, of_arm in priors[priors["arm"].isin(["augment", "stn"])].groupby("arm", sort=False):
        found = of_arm.set_index("reading")
        changes = [f"{READINGS[r].words} {_points(found.loc[r])}" for r in (*SYMMETRIES, "error")]
        text += f"; {arm} changes (points): {', '.join(changes)}"
    return f"{text}."


def _sign(row: Mapping, name: str) -> int:
    """1 or -1 if the interval lies on that side of 0, else 0."""
    return int(row[f"{name}_low"] > 0) - int(row[f"{name}_high"] < 0)


def _number(row: Mapping, reading: str, mean: str, low: str, high: str) -> str:
    scale, unit = READINGS[reading].scale, READINGS[reading].unit
    interval = "" if pd.isna(row[low]) else f" [{scale * row[low]:.3g}, {scale * row[high]:.3g}]"
    return f"{scale * row[mean]:.3g}{interval}" + (f" {unit}" if unit else "")


def _tau(row: Mapping) -> str:
    return f"{row['tau']:+.2f} [{row['tau_low']:+.2f}, {row['tau_high']:+.2f}]"


def _relative(row: Mapping) -> str:
    return "{:+.0f} % [{:+.0f}, {:+.0f}]".format(*(100 * row[f"relative{end}"] for end in ("", "_low", "_high")))


def _points(row: Mapping) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * row[name] for name in ("mean", "ci_low", "ci_high")))
