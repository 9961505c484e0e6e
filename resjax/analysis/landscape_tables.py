"""From what the probes of the loss landscape say to numbers with intervals: rank correlations, stalls, barriers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from resjax import stats

RESAMPLES = 2000
STALL = 5, 0.9  # an epoch stalls where the loss is not below .9 of that 5 epochs before
CELL = ["dataset", "merge"]


def rank_correlation(
    table: pd.DataFrame, x: str, y: str, over: Sequence[str], within: Sequence[str] = ()
) -> dict[str, float]:
    """Kendall's tau-b of two columns, with a 95 % percentile bootstrap interval.

    Args:
      table: a row per point; those where either is not finite don't count.
      x: a column.
      y: the other.
      over: columns (seed, batch size, merge) whose values are resampled with replacement, each independently, so that
        the interval is that for other seeds and other batch sizes.
      within: columns that both points of a pair must agree in.

    Returns:
      {"tau", "tau_low", "tau_high", "points"}; nan where nothing can be compared, the interval also where no column of
      `over` has two values to draw from. With one seed and several batch sizes it is that for other batch sizes alone.
    """
    table = table[np.isfinite(table[[x, y]].astype(float)).all(axis="columns")]
    signs = [np.sign(np.subtract.outer(column, column)) for column in table[[x, y]].to_numpy(float).T]
    codes = [pd.factorize(table[column])[0] for column in over]
    pairs = np.triu(np.ones((len(table),) * 2, bool), 1)
    for column in within:
        pairs &= np.equal.outer(*(pd.factorize(table[column])[0],) * 2)
    first, second = np.nonzero(pairs)
    a, b = (sign[first, second] for sign in signs)
    rng = np.random.default_rng(0)
    weights = np.ones((RESAMPLES + 1, len(table)))  # the first: every point once
    for code in codes:
        size = code.max(initial=0) + 1
        weights[1:] *= rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES)[:, code]
    pair_weights = weights[:, first] * weights[:, second]
    norm = np.sqrt((pair_weights @ np.abs(a)) * (pair_weights @ np.abs(b)))
    taus = np.divide(pair_weights @ (a * b), norm, out=np.full(len(norm), np.nan), where=norm > 0)
    several = any(table[column].nunique() > 1 for column in over)  # or every draw is the table itself
    drawn = taus[1:][np.isfinite(taus[1:]) & several]
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn.size else (np.nan, np.nan)
    return {"tau": float(taus[0]), "tau_low": float(low), "tau_high": float(high), "points": len(table)}


def correlations(
    table: pd.DataFrame, xs: Sequence[str], ys: Sequence[str], over: Sequence[str], within: Sequence[str] = ()
) -> pd.DataFrame:
    """`rank_correlation` of every x with every y, of each merge, and ("all merges") of pairs within a merge."""
    groups = dict(iter(table.groupby("merge", sort=False))) | {"all merges": table}
    return pd.DataFrame([
        {"merge": merge, "x": x, "y": y} | rank_correlation(rows, x, y, over, ["merge", *within])
        for merge, rows in groups.items() for x in xs for y in ys
    ])  # fmt: skip


def in_words(row: pd.Series | dict) -> str:
    """`tau = 0.42 [0.10, 0.65]`."""
    if np.isnan(row["tau"]):
        return "an unknown tau (nothing differs)"
    interval = "without an interval" if np.isnan(row["tau_low"]) else f"[{row['tau_low']:.2f}, {row['tau_high']:.2f}]"
    return f"tau = {row['tau']:.2f} {interval}"


def mean_in_words(values: pd.Series, scale: float = 1, digits: int = 2) -> str:
    """`0.42 [0.10, 0.65]`: mean and BCa interval of the finite values, times `scale`."""
    ci = stats.mean_ci(values[np.isfinite(values)] * scale)
    if ci["mean"] is None:
        return "unknown"
    words = f"{ci['mean']:.{digits}f}"
    return words if ci["ci_low"] is None else f"{words} [{ci['ci_low']:.{digits}f}, {ci['ci_high']:.{digits}f}]"


def by_seed(table: pd.DataFrame, column: str) -> pd.Series:
    """The mean over merges of a column's finite values, of each seed: seeds are what intervals are over.

    A seed that lacks a merge (diverged there, or never stalled) is not compared by that: what is averaged are
    deviations from the merge's mean, to which the mean over merges of these means is added.
    """
    table = table[np.isfinite(table[column])]
    merges = table.groupby("merge")[column]
    return (table[column] - merges.transform("mean")).groupby(table["seed"]).mean() + merges.mean().mean()


def not_diverged(table: pd.DataFrame, nets: pd.DataFrame) -> pd.DataFrame:
    """The rows, by cell and seed, of replicas that did not diverge: what one left before it did is no result.

    Args:
      table: with cell and seed, or without rows.
      nets: with cell, seed and status.
    """
    if table.empty:
        return table
    done = nets.loc[nets["status"] == "done", ["cell", "seed"]].astype({"seed": int})
    return table.merge(done, on=["cell", "seed"])


def drops(curvature: pd.DataFrame) -> pd.DataFrame:
    """The share of the loss that a step takes away, added to the rows of the curvature probe.

    Columns: escape_drop (along negative curvature), even_drop (the even part of that), random_drop (random
    directions, the same search), over_random (escape_drop - random_drop), gradient_drop (as long, against the
    gradient), descent_drop (the best length against the gradient). Negative where the loss rises; below -1, and where
    the loss after the step is not finite, -1.
    """
    stepped = curvature["escape_loss"].notna()

    def floored(drop: pd.Series) -> pd.Series:
        return drop.clip(lower=-1).fillna(-1).where(stepped)

    ends = {"escape_drop": "escape_loss", "random_drop": "random_loss", "gradient_drop": "gradient_loss"}
    ends["descent_drop"] = "descent_loss"
    table = curvature.assign(
        **{name: floored(1 - curvature[end] / curvature["loss"]) for name, end in ends.items()},
        even_drop=floored(curvature["escape_even"]),
    )
    return table.assign(over_random=table["escape_drop"] - table["random_drop"])


def stalls(course: pd.DataFrame) -> pd.DataFrame:
    """Whether the gradient is small where training stalls: a row per (dataset, merge, seed).

    Columns: stalled (epochs that stall, see STALL), stall_loss and stall_grad_norm (their means over these epochs; nan
    without any), stall_ratio (the latter over the replica's largest gradient norm), final_loss, final_ratio (the same
    of the last epoch).

    Args:
      course: of `tables.load`, several runs.
    """
    back, share = STALL
    rows = []
    for (dataset, merge, seed), run in course[course["split"] == "train"].groupby([*CELL, "seed"], sort=False):
        loss, norm = run["loss"].to_numpy(), run["grad_norm"].to_numpy()
        if not (np.isfinite(loss).all() and np.isfinite(norm).all()):
            continue  # it diverged
        at = np.nonzero(loss[back:] > share * loss[:-back])[0] + back
        stalled = {"stall_loss": loss[at].mean(), "stall_grad_norm": norm[at].mean()} if at.size else {}
        row = {"dataset": dataset, "merge": merge, "seed": seed, "stalled": at.size} | stalled
        rows.append(row | {"final_loss": loss[-1], "final_ratio": norm[-1] / norm.max(), "peak": norm.max()})
    table = pd.DataFrame(rows, columns=[*CELL, "seed", "stalled", "stall_loss", "stall_grad_norm", "final_loss",
                                        "final_ratio", "peak"])  # fmt: skip
    table["stall_ratio"] = table["stall_grad_norm"] / table["peak"]
    return table.drop(columns="peak")


def barriers(lines: pd.DataFrame) -> pd.DataFrame:
    """The loss barrier of every pair: the largest rise above the straight line between its ends (Frankle et al. 2020).

    Args:
      lines: of the interpolation probe, with dataset and merge.

    Returns:
      A row per (dataset, merge, statistics, seed, other) with barrier (of the loss) and error_barrier (of the share of
      wrong classes), and disjoint: whether the pair shares no replica with those so marked before it, as 0-1, 2-3, ...
      Pairs that share one are dependent, so that intervals are over the disjoint ones.
    """
    rows, taken = [], set()
    for key, line in lines.sort_values("alpha", kind="stable").groupby(
        [*CELL, "statistics", "seed", "other"], sort=False
    ):
        row = dict(zip([*CELL, "statistics", "seed", "other"], key, strict=True))
        alpha = line["alpha"].to_numpy()
        for name, column in (("barrier", "loss"), ("error_barrier", "error")):
            value = line[column].to_numpy()
            row[name] = float(np.max(value - (1 - alpha) * value[0] - alpha * value[-1]))
        ends = {(*key[:-2], end) for end in key[-2:]}
        row["disjoint"] = not ends & taken
        taken |= ends if row["disjoint"] else set()
        rows.append(row)
    return pd.DataFrame(rows)


def smoothed(nodes: pd.DataFrame, linear: float = 0.1, width: float = 0.15, points: int = 400) -> pd.DataFrame:
    """The density of eigenvalues on the scale u = asinh(eigenvalue / linear), each node a Gaussian of this width.

    u is linear in eigenvalues below `linear`, and beyond it logarithmic on both sides, where one unit is a factor e.

    Args:
      nodes: of the density probe, with dataset and merge; those of nets without a Hessian, nan, don't count.
      linear: an eigenvalue.
      width: standard deviation of the Gaussian, in u.
      points: of the grid.

    Returns:
      A row per (dataset, merge, seed, u) with eigenvalue and density (share of the eigenvalues per unit of u).
    """
    nodes = nodes[np.isfinite(nodes["eigenvalue"])]
    if nodes.empty:
        return nodes
    where = np.arcsinh(nodes["eigenvalue"].to_numpy(float) / linear)
    grid = np.linspace(where.min() - 4 * width, where.max() + 4 * width, points)
    tables = []
    for key, rows in nodes.assign(u=where).groupby([*CELL, "seed"], sort=False):
        weight = rows["weight"].to_numpy(float) / rows["probe"].nunique()
        kernel = np.exp(-(((grid[:, None] - rows["u"].to_numpy()[None, :]) / width) ** 2) / 2)
        density = kernel @ weight / (width * np.sqrt(2 * np.pi))
        about = dict(zip([*CELL, "seed"], key, strict=True))
        tables.append(pd.DataFrame(about | {"u": grid, "eigenvalue": linear * np.sinh(grid), "density": density}))
    return pd.concat(tables, ignore_index=True)
