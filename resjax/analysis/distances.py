"""Distances between nets as functions of the same images, over pairs of seeds, and a merge's excess beyond seeds.

Distances between two nets: `disagreement`, the share of the images that get another class, and `tv`, the total
variation sum_k |p_k - q_k| / 2 of the class probabilities, mean over images. Both lie in [0, 1].

Nets of two seeds differ without any merge. The excess of a merge is its distance to the baseline at different seeds
less the mean of the distances between seeds of the one and of the other: half of an energy distance (Szekely & Rizzo
2013), which is 0 in expectation if merges are drawn like seeds, and never below.

Danger: pairs that share a seed are dependent. Intervals are those of the jackknife's values, one per seed
(`over_pairs`). On simulated nets of 6 seeds these 95 % intervals held a true distance in 95 % and lay above a true
excess of 0 in .5 % of the cases; as plain means over the pairs of each seed they would be too narrow.
"""

from collections.abc import Callable, Mapping
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd

from resjax import stats

BASELINE = "add"
METRICS = ["disagreement", "tv"]


def pair_distances(outputs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The distances between all pairs of nets: name in METRICS -> a square table over (merge, seed).

    Args:
      outputs: rows of `functions.outputs`, with merge and seed, of the same images for every net. A net with a
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
