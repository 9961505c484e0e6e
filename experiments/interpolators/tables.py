"""Nets that all interpolate the training set: how far apart they are as functions, what they err, and what tells (Q10).

Distances between two nets are over the same test images: `disagreement`, the share of them that get another class, and
`tv`, the total variation sum_k |p_k - q_k| / 2 of the class probabilities, mean over images. Both lie in [0, 1].
Verdicts are by disagreement: two nets that give every image the same class have a total variation as soon as one is
surer than the other, so that it mixes what a merge prefers with how sure it is.

Nets of two seeds differ without any merge. The excess of a merge is its distance to the baseline at different seeds
less the mean of the distances between seeds of the one and of the other: half of an energy distance (Szekely & Rizzo
2013), which is 0 in expectation if merges are drawn like seeds, and never below.

Danger: pairs that share a seed are dependent. Intervals are those of the jackknife's values, one per seed
(`over_pairs`). On simulated nets of 6 seeds these 95 % intervals held a true distance in 95 % and lay above a true
excess of 0 in .5 % of the cases; as plain means over the pairs of each seed they would be too narrow.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd

from resjax import stats

BASELINE = "add"
KEYS = ["cell", "seed"]
METRICS = ["disagreement", "tv"]
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
      fit: rows of `resjax.probes.outputs` on the training images, with cell and seed.
      sharpness: rows of `resjax.probes.sharpness`; without any, what they say is nan.
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


def pair_distances(outputs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The distances between all pairs of nets: name in METRICS -> a square table over (merge, seed).

    Args:
      outputs: rows of `resjax.probes.outputs`, with merge and seed, of the same images for every net. A net with a
        probability that is not finite is left out.
    """
    classes = [column for column in outputs if column[0] == "p" and column[1:].isdigit()]
    nets = {net: rows.sort_values("image")[classes] for net, rows in outputs.groupby(["merge", "seed"], sort=False)}
    p_IxK = {net: rows.to_numpy(float) for net, rows in nets.items()}
    p_IxK = {net: p for net, p in p_IxK.items() if np.isfinite(p).all()}
    p_NxIxK = np.stack(list(p_IxK.values())) if p_IxK else np.zeros((0, 0, 1))
    class_NxI = p_NxIxK.argmax(-1)
    found = {
        "disagreement": [np.mean(class_NxI != own, axis=-1) for own in class_NxI],
        "tv": [np.abs(p_NxIxK - own).sum(-1).mean(-1) / 2 for own in p_NxIxK],
    }
    index = pd.MultiIndex.from_tuples(p_IxK, names=["merge", "seed"])
    return {name: pd.DataFrame(rows, index, index) for name, rows in found.items()}


def as_rows(pairs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of `pair_distances` as one, a row per pair of nets: merge_a, seed_a, merge_b, seed_b, and METRICS."""
    nets = pairs["tv"].index
    first, second = np.triu_indices(len(nets), 1)
    ends = [nets[at].to_frame(index=False).add_suffix(end) for end, at in (("_a", first), ("_b", second))]
    return pd.concat(ends, axis="columns").assign(**{m: pairs[m].to_numpy()[first, second] for m in METRICS})


def as_squares(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What `as_rows` was made of; nets without a pair are missing."""
    ends = [
        pd.MultiIndex.from_frame(rows[[f"merge{end}", f"seed{end}"]], names=["merge", "seed"]) for end in ("_a", "_b")
    ]
    nets = ends[0].append(ends[1]).unique()
    at = tuple(nets.get_indexer(end) for end in ends)
    squares = {metric: np.zeros((len(nets), len(nets))) for metric in METRICS}
    for metric, square in squares.items():
        square[at] = rows[metric]
        square += square.T
    return {metric: pd.DataFrame(square, nets, nets) for metric, square in squares.items()}


def merges_of(pairs: Mapping[str, pd.DataFrame]) -> list[str]:
    """The merges that `pair_distances` has nets of."""
    return list(dict.fromkeys(pairs["tv"].index.get_level_values("merge")))


def between(table: pd.DataFrame, a: str, b: str) -> np.ndarray:
    """d_SxS from the nets of merge a (rows) to those of b (columns), of the seeds that both have."""
    rows, columns = table.loc[a], table.loc[b].index
    seeds = rows.index.intersection(columns, sort=False)
    return rows[b].loc[seeds, seeds].to_numpy()


def over_pairs(d_SxS: np.ndarray) -> dict[str, float | int | None]:
    """`stats.mean_ci` of the mean over pairs of different seeds; n is the number of seeds.

    Its values are the jackknife's, one per seed: their mean is that over pairs, and they vary as it does from seeds to
    seeds. That takes three seeds: two give a mean without an interval, and one nothing.
    """
    n = len(d_SxS)
    if n < 2:
        return stats.mean_ci([]) | {"n": n}
    d_SxS = np.where(np.eye(n, dtype=bool), 0, d_SxS)
    mean = d_SxS.sum() / (n * (n - 1))
    if n == 2:
        return stats.mean_ci([mean]) | {"n": n}
    own_S = (d_SxS + d_SxS.T).sum(1) / (2 * (n - 1))
    return stats.mean_ci((mean + 2 * (n - 1) / (n - 2) * (own_S - mean)).round(12))  # equal values are exactly so


def distances(pairs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The mean distance of every pair of merges, with its 95 % CI over seeds.

    Columns: merge_a, merge_b; kind, "same seed" (equal draws of the initial weights and equal batches) or "different
    seeds", the only kind within a merge; METRICS, and these with _low and _high; n, the seeds that both have.

    Args:
      pairs: of `pair_distances`.
    """
    rows = []
    for a, b in combinations_with_replacement(merges_of(pairs), 2):
        found = {metric: between(table, a, b) for metric, table in pairs.items()}
        kinds = {"different seeds": over_pairs}
        if a != b:
            kinds["same seed"] = _over_diagonal
        for kind, mean in kinds.items():
            rows.append({"merge_a": a, "merge_b": b, "kind": kind} | _intervals(mean, found))
    return _numbers(rows, ["merge_a", "merge_b", "kind"], METRICS)


def excess(pairs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How much farther a net is from one of BASELINE than a change of seed explains, a row per other merge.

    Columns: merge; excess_disagreement and excess_tv, and these with _low and _high (95 % CI); n, the seeds that both
    have. No rows without nets of BASELINE.

    Args:
      pairs: of `pair_distances`.
    """
    rows, merges = [], merges_of(pairs)
    for merge in merges if BASELINE in merges else []:
        if merge != BASELINE:
            found = {f"excess_{metric}": _excess(table, merge) for metric, table in pairs.items()}
            rows.append({"merge": merge} | _intervals(over_pairs, found))
    return _numbers(rows, ["merge"], [f"excess_{metric}" for metric in METRICS])


def _excess(table: pd.DataFrame, merge: str) -> np.ndarray:
    """Of every pair of seeds that both have, [S, S]; the diagonal means nothing."""
    across = between(table, merge, BASELINE)
    seeds = table.loc[merge].index.intersection(table.loc[BASELINE].index, sort=False)
    within = [table.loc[m, m].loc[seeds, seeds].to_numpy() for m in (merge, BASELINE)]
    return (across + across.T - sum(within)) / 2


def _over_diagonal(d_SxS: np.ndarray) -> dict[str, float | int | None]:
    return stats.mean_ci(np.diag(d_SxS))


def _intervals(mean: Callable[[np.ndarray], dict], found: Mapping[str, np.ndarray]) -> dict[str, float | int | None]:
    row = {}
    for name, d_SxS in found.items():
        ci = mean(d_SxS)
        row |= {name: ci["mean"], f"{name}_low": ci["ci_low"], f"{name}_high": ci["ci_high"], "n": ci["n"]}
    return row


def _numbers(rows: list[dict], about: list[str], names: list[str]) -> pd.DataFrame:
    columns = [f"{name}{suffix}" for name in names for suffix in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*about, *columns, "n"]).astype(dict.fromkeys(columns, float))


def verdicts(
    nets: pd.DataFrame, apart: pd.DataFrame, beyond: pd.DataFrame, differences: pd.DataFrame
) -> Iterator[tuple[str, str]]:
    """(what, sentence): who interpolates, how far apart those nets are, and what they err.

    Args:
      nets: of `per_net`.
      apart: of `distances`.
      beyond: of `excess`.
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
        f"between seeds of {BASELINE}, {_in_words(seeds, 'disagreement', 100, 1)} % of the test images get another "
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
                f"{row['merge']} {_in_words(row, 'excess_disagreement', 100, 2, '+')}"
                for row in rows.to_dict("records")
            ]
            text += f"; {name}: {', '.join(words)}"
    lost = beyond.loc[~given, "merge"]
    text += f"; too few nets: {', '.join(lost)}" if len(lost) else ""
    text += f". So {above.sum()} of {len(beyond)} merges are farther"
    farther = (beyond["excess_tv_low"] > 0).sum()
    return (
        f"{text}; in total variation, which also tells how sure nets are, it is {_in_words(seeds, 'tv')} between those "
        f"seeds, and {farther} of {len(beyond)} are farther. "
        "95 % intervals over seeds, not corrected for the number of merges."
    )


def _error(rows: pd.DataFrame) -> str:
    if BASELINE not in rows.index or not rows.loc[BASELINE, "n"]:
        return f"no net of {BASELINE} interpolates: nothing to compare with."
    level = rows.loc[BASELINE]
    interval = _bracket(100 * level["ci_low"], 100 * level["ci_high"], 2)
    text = f"that of {BASELINE} is {100 * level['mean']:.2f}{interval} % (n = {level['n']:.0f})"
    others = rows[rows["p"].notna()].sort_values("difference")
    less, more = others["difference_high"] < 0, others["difference_low"] > 0
    known = others["difference_low"].notna()
    groups = {"less": others[less], "more": others[more], "not distinguishable": others[known & ~less & ~more]}
    groups["one pair alone"] = others[~known]
    for name, of_group in groups.items():
        if len(of_group):
            words = [f"{merge} {_in_words(row, 'difference', 100, 2, '+')}" for merge, row in of_group.iterrows()]
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


def _in_words(row: Mapping, name: str, scale: float = 1, digits: int = 3, sign: str = "") -> str:
    low, high = scale * row[f"{name}_low"], scale * row[f"{name}_high"]
    return f"{scale * row[name]:{sign}.{digits}f}{_bracket(low, high, digits, sign)}"


def _bracket(low: float, high: float, digits: int, sign: str = "") -> str:
    return "" if pd.isna(low) else f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
