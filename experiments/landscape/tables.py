"""From what the probes of the loss landscape say to numbers with intervals: rank correlations, stalls, barriers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from resjax import stats
from resjax.stats import Estimate

STALL = 5, 0.9  # an epoch stalls where the loss is not below .9 of that 5 epochs before
MASS_ERROR = 0.07  # what `negative_mass` of 24 steps of Lanczos may be too large by: probes/loss/curvature.py
CELL = ["dataset", "merge"]


def rank_correlation(
    table: pd.DataFrame, x: str, y: str, over: str, within: Sequence[str] = ()
) -> dict[str, float | int]:
    """Kendall's tau-b of two columns, with a 95 % jackknife interval (`stats.jackknife_ci`).

    On simulated tables of 4 and 8 merges x 6 seeds x 2 and 3 points these intervals held the mean tau in 94 to 98 % of
    the cases, percentile bootstraps over the same replicas in 84 to 94 %; tests/test_landscape.py repeats it.

    Args:
      table: a row per point; those where either is not finite don't count.
      x: a column.
      y: the other.
      over: a column whose values are replicas, left out one by one: the interval is that for others (seeds, or merges,
        with all that varies within them); what else the table varies over, as batch sizes, is as it is.
      within: columns that both points of a pair must agree in.

    Returns:
      {"tau", "tau_low", "tau_high", "points"}; nan where nothing can be compared, the interval also where one of the
      replicas is all that can be.
    """
    table = table[np.isfinite(table[[x, y]].astype(float)).all(axis="columns")]
    code = pd.factorize(table[over])[0]
    pairs = np.triu(np.ones((len(table),) * 2, bool), 1)
    for column in within:
        pairs &= np.equal.outer(*(pd.factorize(table[column])[0],) * 2)
    first, second = np.nonzero(pairs)
    a, b = (np.sign(column[first] - column[second]) for column in table[[x, y]].to_numpy(float).T)

    def tau(replicas: np.ndarray) -> float:
        kept = np.isin(code, replicas)
        among = kept[first] & kept[second]
        norm = np.sqrt(np.abs(a[among]).sum() * np.abs(b[among]).sum())
        return float(a[among] @ b[among] / norm) if norm else np.nan

    ci = stats.jackknife_ci(tau, table[over].nunique())
    found = {"tau": ci["mean"], "tau_low": ci["ci_low"], "tau_high": ci["ci_high"]}
    return {k: np.nan if v is None else float(np.clip(v, -1, 1)) for k, v in found.items()} | {"points": len(table)}


def correlations(
    table: pd.DataFrame, xs: Sequence[str], ys: Sequence[str], over: str, within: Sequence[str] = ()
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
    return f"tau = {Estimate.of(row, 'tau'):.2f}" + (" without an interval" if np.isnan(row["tau_low"]) else "")


def mean_in_words(values: pd.Series, scale: float = 1, digits: int = 2) -> str:
    """`0.42 [0.10, 0.65]`: mean and interval of the finite values, times `scale`."""
    return f"{Estimate.of(stats.mean_ci(values[np.isfinite(values)] * scale)):.{digits}f}"


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


def stalls(course: pd.DataFrame, curvature: pd.DataFrame) -> pd.DataFrame:
    """Whether the gradient is small where training stalls: a row per (dataset, merge, seed).

    Columns: stalled (epochs that stall, see STALL), stall_epoch (the first of them), stall_loss and stall_grad_norm
    (means over them; nan without any), stall_ratio (the latter over the replica's largest gradient norm), final_loss,
    final_ratio (the same of the last epoch), full_ratio (of the norm of the gradient over all images: that of the last
    look over the largest of all looks).

    Danger: the norms of the course are of batches, means over an epoch. That of a batch has the noise of its images,
    which does not vanish at a critical point of the loss over all images: only full_ratio can fall to 0 there.

    Args:
      course: of `tables.load`, several runs, training split.
      curvature: of the probe, with merge, seed and epoch.
    """
    back, share = STALL
    keys = [*CELL, "seed"]
    rows = []
    for key, run in course.groupby(keys, sort=False):
        loss, norm = run["loss"].to_numpy(), run["grad_norm"].to_numpy()
        if not (np.isfinite(loss).all() and np.isfinite(norm).all()):
            continue  # it diverged
        at = np.nonzero(loss[back:] > share * loss[:-back])[0] + back
        row = dict(zip(keys, key, strict=True)) | {"stalled": at.size}
        row |= dict.fromkeys(["stall_epoch", "stall_loss", "stall_grad_norm", "stall_ratio"], np.nan)
        if at.size:
            row |= {"stall_epoch": run["epoch"].iloc[at[0]], "stall_loss": loss[at].mean()}
            row |= {"stall_grad_norm": norm[at].mean(), "stall_ratio": norm[at].mean() / norm.max()}
        rows.append(row | {"final_loss": loss[-1], "final_ratio": norm[-1] / norm.max()})
    looks = curvature.sort_values("epoch").groupby(keys, sort=False)["grad_norm"]
    full = (looks.last() / looks.max()).rename("full_ratio").reset_index()
    return pd.DataFrame(rows).merge(full, how="left", on=keys)


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
