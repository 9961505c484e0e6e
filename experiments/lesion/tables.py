"""What the lesion study measures: a row per net, comparisons with the sum, curves, and verdicts in words."""

from collections.abc import Iterator, Sequence

import pandas as pd

from resjax import stats
from resjax.analysis import tables
from resjax.analysis.intervals import over_seeds
from resjax.stats import Estimate

GROUP = ["norm", "depth"]  # nets that are compared with each other
CHANGES_SHAPE = r"stage(?!1_)\d+_block1"  # blocks that can't be skipped: their input has another shape
REMOVED = {  # lesion of one block -> what was done, in words
    "delete": "skipped",
    "identity": "cut down to its shortcut",
    "mean": "held at the mean of its branch",
    "delete_recalibrated": "skipped, statistics recomputed",
    "mean_recalibrated": "held at its mean, statistics recomputed",
    "swap": "exchanged with another",
}


def per_net(nets: pd.DataFrame, lesions: pd.DataFrame, paths: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and seed: what it reached, and what lesions cost it.

    Columns beside those of `nets`: "delete" and the other names of lesions, which have "_recalibrated" added where the
    statistics were recomputed: how much the error, a fraction, rises by it, mean over the blocks of equal shape (of
    "swap": over pairs); path_length_init, path_length_trained: the effective length of its paths, in branches.

    Args:
      nets: `tables.summary` with the column cell.
      lesions: rows of `resjax.probes.blocks.lesion` with cell, seed, and statistics ("frozen" or "recalibrated").
      paths: rows of `resjax.probes.blocks.path_lengths` with cell, seed and moment.
    """
    lesions = lesions.assign(increase=increases(lesions))
    one = lesions[(lesions["k"] == 1) & ~lesions["blocks"].str.fullmatch(CHANGES_SHAPE) | (lesions["lesion"] == "swap")]
    suffix = one["statistics"].map({"frozen": "", "recalibrated": "_recalibrated"})
    costs = one.assign(of=one["lesion"] + suffix).groupby(["cell", "seed", "of"])["increase"].mean().unstack()
    lengths = paths.assign(mean=paths["length"] * paths["share"], of="path_length_" + paths["moment"])
    lengths = lengths.groupby(["cell", "seed", "of"])["mean"].sum(skipna=False).unstack()
    keys = ["cell", *GROUP, "merge", "width", "seed", "status", "epoch", "OA", "train_accuracy", "train_loss"]
    return nets[keys].merge(costs.join(lengths, how="outer"), how="left", on=["cell", "seed"])


def increases(lesions: pd.DataFrame) -> pd.Series:
    """By how much the error of each row is above that of the same net without a lesion."""
    keys = ["cell", "seed", "statistics"]
    intact = lesions[lesions["lesion"] == "none"].set_index(keys)["accuracy"]
    return intact.reindex(pd.MultiIndex.from_frame(lesions[keys])).to_numpy() - lesions["accuracy"]


def compared(nets: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """`tables.differences` to `add` of every metric among the nets of equal norm and depth; metrics no net has are out.

    Columns: norm, depth, and those of `tables.differences` but for dataset.
    """
    found = [
        tables.differences(rows.assign(dataset=""), metric).assign(**dict(zip(GROUP, group, strict=True)))
        for group, rows in nets.groupby(GROUP, sort=False)
        for metric in metrics
        if metric in rows and rows[metric].notna().any()
    ]
    table = pd.concat(found, ignore_index=True)
    return table[[*GROUP, *table.columns.difference([*GROUP, "dataset"], sort=False)]]


def curves(lesions: pd.DataFrame, paths: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with their 95 % CI: the error after lesions, and the gradient's share by path length.

    Columns:
      norm, depth, merge: of the nets.
      curve: "block delete", "block mean_recalibrated", ...: error over the block's position, 1, 2, ...; "number
        delete", ...: error over how many blocks have the lesion, mean over the sets of equal size; "order": error over
        Kendall's tau, rounded to .05, of blocks exchanged at random; "paths init", "paths trained": share over length.
      x: position, number, tau or length.
      n, mean, std, ci_low, ci_high: of `stats.mean_ci` over seeds; errors and shares are fractions.
    """
    suffix = lesions["statistics"].map({"frozen": "", "recalibrated": "_recalibrated"})
    lesions = lesions.assign(value=1 - lesions["accuracy"], of=lesions["lesion"] + suffix)
    one = lesions[lesions["k"] == 1]
    frozen = lesions[lesions["statistics"] == "frozen"]
    removed = frozen[frozen["lesion"].isin(["delete", "identity", "mean"])]
    intact = [frozen[frozen["lesion"] == "none"].assign(lesion=lesion) for lesion in removed["lesion"].unique()]
    removed = pd.concat([*intact, removed])
    mixed = frozen[frozen["lesion"].isin(["none", "permute"])]
    parts = [
        one.assign(curve="block " + one["of"], x=one["draw"] + 1),
        removed.assign(curve="number " + removed["lesion"], x=removed["k"]),
        mixed.assign(curve="order", x=(20 * mixed["tau"]).round() / 20) if mixed["lesion"].nunique() > 1 else mixed[:0],
        paths.assign(curve="paths " + paths["moment"], x=paths["length"], value=paths["share"]),
    ]
    return over_seeds(pd.concat(parts, ignore_index=True), [*GROUP, "merge", "curve", "x"])


def verdicts(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(where, sentence) for each norm and depth: what a lesion costs, against the sum; and which nets trained.

    Args:
      table: of `compared`, with the metrics "delete", "mean", ... and "OA".
    """
    for (norm, depth), rows in table.groupby(GROUP, sort=False):
        where = f"depth {depth}, {norm}"
        for metric, words in REMOVED.items():
            of_metric = rows[rows["metric"] == metric].set_index("merge")
            if len(of_metric):
                yield f"{where}, one block {words}", _cost(of_metric)
        yield f"{where}, trained", _trained(rows[rows["metric"] == "OA"])


def deeper(nets: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(where, sentence) for each norm: accuracy of the deepest nets less that of the shallowest, paired by seed.

    Args:
      nets: of `per_net`; with one depth there is nothing to say.
    """
    shallow, deep = nets["depth"].min(), nets["depth"].max()
    for norm, of_norm in nets.groupby("norm", sort=False):
        words = []
        for merge, rows in of_norm.groupby("merge", sort=False):
            by_depth = {depth: of_depth.set_index("seed")["OA"].to_dict() for depth, of_depth in rows.groupby("depth")}
            d = stats.paired_difference(by_depth.get(deep, {}), by_depth.get(shallow, {}))
            if d["n"] and shallow < deep:
                words.append(f"{merge} {Estimate.of(d, scale=100):+.1f} (p = {d['p']:.3f})")
        if words:
            yield f"{norm}, depth {deep} less depth {shallow}, trained", f"OA, in points: {'; '.join(words)}"


def _cost(rows: pd.DataFrame) -> str:
    groups = {"more": [], "less": [], "not distinguishable from add": []}
    for merge, row in rows.drop("add", errors="ignore").iterrows():
        if row["pairs"] > 1:
            change = Estimate.of(row, "difference", 100)
            name = {1: "more", -1: "less", 0: "not distinguishable from add"}[change.side]
            groups[name].append(f"{merge} {change:+.1f}")
    if "add" not in rows.index or not rows.loc["add", "n"]:
        return "no net of add to compare with"
    add = rows.loc["add"]
    parts = [f"error of add rises by {Estimate.of(add, scale=100):+.1f} points (n = {add['n']:.0f})"]
    parts += [f"{name}: {', '.join(found)}" for name, found in groups.items() if found]
    parts.append("95 % intervals, not corrected for the number of merges")
    lost = [merge for merge, row in rows.iterrows() if not row["n"]]
    return "; ".join(parts + ([f"no net: {', '.join(lost)}"] if lost else []))


def _trained(rows: pd.DataFrame) -> str:
    words = []
    for row in rows.to_dict("records"):
        lost = f", {row['diverged']} of {row['n'] + row['diverged']} diverged" if row["diverged"] else ""
        level = f"OA {Estimate.of(row, scale=100):.1f} %" if row["n"] else "no OA"
        words.append(f"{row['merge']} {level}{lost}")
    return "; ".join(words)
