"""Figures of the landscape study, drawn from tables alone: curvature, stalls, sharpness, planes and lines.

Each is 7 inches wide and written as PNG and PDF; merges look as in every other figure (`plots.style`). Lines are
means over seeds, bands and bars their 95 % intervals; on a logarithmic axis a band that reaches below 0 ends at the
smallest value seen. Every function takes the path of its figure without suffix, and returns the paths of both files.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd

from resjax import stats
from resjax.analysis import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches, a text width
GREY = "#595959"


def training(curvature: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Curvature over training.

    Args:
      curvature: of the probe, with merge, seed and epoch.
      path: of the figure.
    """
    words = {
        "loss": "training loss, all images",
        "negative_mass": "negative mass",
        "grad_norm": "gradient norm, all images",
        "lambda_max": "largest eigenvalue",
        "depth": "minus smallest eigenvalue",
        "trace": "trace",
    }
    table = curvature.assign(depth=(-curvature["lambda_min"]).where(curvature["lambda_min"] < 0))
    return _panels(table, "epoch", words, path, "epoch", [name for name in words if name != "negative_mass"])


def gradients(course: pd.DataFrame, curvature: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Training loss, norm of a batch's gradient (both means over an epoch's steps), and of that over all images.

    Args:
      course: rows of `tables.load` of the training split, several runs.
      curvature: of the probe, with merge, seed and epoch.
      path: of the figure.
    """
    words = {"loss": "training loss", "grad_norm": "gradient norm of a batch", "full": "gradient norm, all images"}
    full = curvature[["merge", "seed", "epoch", "grad_norm"]].rename(columns={"grad_norm": "full"})
    both = pd.concat([course, full], ignore_index=True)
    return _panels(both, "epoch", words, path, "epoch", list(words))


def escapes(drops: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """What steps take away of the loss, in percent (-100 stands for any larger rise), over training.

    Args:
      drops: of `landscape_tables.drops`, with merge, seed and epoch.
      path: of the figure.
    """
    words = {
        "escape_drop": "along negative curvature",
        "even_drop": "its even part",
        "random_drop": "random directions",
        "over_random": "eigenvector minus random",
        "gradient_drop": "gradient, same length",
        "descent_drop": "gradient, its best length",
    }
    table = drops.assign(**{name: 100 * drops[name] for name in words})
    return _panels(table, "epoch", words, path, "epoch", [], ylabel="loss taken away (%)", share=True)


def sweep(sharpness: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Sharpness and test error against batch size; a figure for the first rule of the learning rate.

    Args:
      sharpness: with merge, seed, batch_size, rate, error and the readings.
      path: of the figure.
    """
    words = {
        "asam": "adaptive sharpness (nats)",
        "sam": "SAM sharpness (nats)",
        "box": "box sharpness (%)",
        "lambda_max": "largest eigenvalue",
        "trace": "trace",
        "error": "test error (%)",
    }
    rows = sharpness[sharpness["rate"] == sharpness["rate"].iloc[0]]
    rows = rows.assign(error=100 * rows["error"])
    return _panels(rows, "batch_size", words, path, "batch size", list(words)[:5], base=2)


@plots.in_style
def _panels(
    table: pd.DataFrame,
    x: str,
    words: Mapping[str, str],
    path: str | os.PathLike,
    xlabel: str,
    logs: Sequence[str],
    ylabel: str = "",
    share: bool = False,
    base: int = 0,
) -> list[Path]:
    """A panel per column of `words`: lines of every merge over x; `logs` are columns, `base` is that of a log x."""
    columns = 2 if len(words) == 2 else 3
    rows = -(-len(words) // columns)
    figure = plots.new_figure(WIDTH, 0.75 + 2.1 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=share)
    for axes, (column, text) in zip(panels.flat, words.items(), strict=False):
        for merge, of_merge in table.groupby("merge", sort=False):
            _line(axes, of_merge, x, column, merge, log=column in logs)
        axes.set_title(text)
        if base:
            axes.set_xscale("log", base=base)
            ticks = sorted(table[x].unique())
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        if column in logs and (table[column].dropna() > 0).all():
            axes.set_yscale("log")
            _plain(axes.yaxis)
    for axes in panels[-1]:
        axes.set_xlabel(xlabel)
    for axes in panels[:, 0]:
        axes.set_ylabel(ylabel)
    _legend(figure, table)
    return plots.saved(figure, path)


def _line(axes: "Axes", rows: pd.DataFrame, x: str, column: str, merge: str, log: bool = False) -> None:
    """Mean and interval of a column over seeds, at each x."""
    rows = rows[np.isfinite(rows[column].astype(float))]
    cis = {at: stats.mean_ci(values) for at, values in rows.groupby(x)[column]}
    if not cis:
        return
    mean, low, high = np.array([[ci["mean"], ci["ci_low"], ci["ci_high"]] for ci in cis.values()], float).T
    if log:
        low = np.where(low > 0, low, rows.groupby(x)[column].min())
    colour, marker = plots.style(merge)
    axes.fill_between(list(cis), low, high, color=colour, alpha=0.18, linewidth=0)
    every = max(1, len(cis) // 8)
    axes.plot(list(cis), mean, color=colour, marker=marker, markersize=4, markevery=every, linewidth=1.1)


def _plain(axis: "Axis") -> None:
    """Plain numbers on a logarithmic axis: 1, 2 and 5 of each decade, over a long range the decades alone."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=12))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


@plots.in_style
def negative_against_loss(curvature: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """The negative mass against the loss: a path through training per merge, on the right without the untrained nets.

    Args:
      curvature: of the probe, with merge, seed and epoch.
      path: of the figure.
    """
    parts = {"all looks (open: before training)": curvature, "after training began": curvature[curvature["epoch"] > 0]}
    figure = plots.new_figure(WIDTH, 3.2)
    for axes, (title, table) in zip(figure.subplots(1, 2, sharey=True), parts.items(), strict=True):
        for merge, rows in table.groupby("merge", sort=False):
            _path(axes, rows.dropna(subset=["negative_mass"]), "negative_mass", merge)
        axes.set_xscale("log")
        _plain(axes.xaxis)
        axes.set_xlabel("training loss, all images (nats)")
        axes.set_title(title)
    figure.axes[0].set_ylabel("negative mass")
    _legend(figure, curvature)
    return plots.saved(figure, path)


def _path(axes: "Axes", rows: pd.DataFrame, column: str, merge: str) -> None:
    """Means with intervals of both coordinates at each epoch, joined; the open marker is the net before training."""
    colour, marker = plots.style(merge)
    points = []
    for epoch, at in rows.groupby("epoch"):
        x, y = stats.mean_ci(at["loss"]), stats.mean_ci(at[column])
        reach = [
            None if ci["ci_low"] is None else [[ci["mean"] - ci["ci_low"]], [ci["ci_high"] - ci["mean"]]]
            for ci in (x, y)
        ]
        face = "white" if epoch == 0 else colour
        axes.errorbar(
            x["mean"], y["mean"], xerr=reach[0], yerr=reach[1], color=colour, marker=marker, markerfacecolor=face,
            markersize=4.5, elinewidth=0.7,
        )  # fmt: skip
        points.append((x["mean"], y["mean"]))
    axes.plot(*np.array(points).reshape(-1, 2).T, color=colour, linewidth=0.8, alpha=0.6)


@plots.in_style
def densities(density: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """The density of eigenvalues of every merge, a panel each.

    Args:
      density: of `landscape_tables.smoothed`.
      path: of the figure.
    """
    merges = list(dict.fromkeys(density["merge"]))
    ticks = [t for t in (-100, -1, 0, 1, 100, 10000) if density["eigenvalue"].min() < t < density["eigenvalue"].max()]
    linear = _linear(density)
    columns = min(4, len(merges))
    rows = -(-len(merges) // columns)
    figure = plots.new_figure(WIDTH, 0.5 + 1.75 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, merge in zip(panels.flat, merges, strict=False):
        of_merge = density[density["merge"] == merge]
        axes.axvline(0, color=GREY, linewidth=0.6)
        _line(axes, of_merge.assign(density=of_merge["density"].clip(lower=1e-12)), "u", "density", merge)
        axes.lines[-1].set_marker("")
        axes.set_title(f"{merge}, n = {of_merge['seed'].nunique()}")
        axes.set_yscale("log")
        axes.set_ylim(1e-6, 3)
        axes.set_xticks(np.arcsinh(np.array(ticks) / linear), [f"{tick:g}" for tick in ticks])
    for axes in panels.flat[len(merges) :]:
        axes.set_visible(False)
    figure.supxlabel(f"eigenvalue (linear within {linear:g} of 0, logarithmic beyond)", fontsize=9)
    figure.supylabel("share of eigenvalues per unit", fontsize=9)
    return plots.saved(figure, path)


def _linear(density: pd.DataFrame) -> float:
    """The eigenvalue below which the scale u is linear."""
    far = density.loc[density["u"].abs().idxmax()]
    return float(np.round(far["eigenvalue"] / np.sinh(far["u"]), 12))


@plots.in_style
def planes(surface: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """The loss on a plane around one net of each merge; a cross is the net.

    Args:
      surface: of the probe, with merge and seed.
      path: of the figure.
    """
    from matplotlib.colors import LogNorm

    merges = list(dict.fromkeys(surface["merge"]))
    figure = plots.new_figure(WIDTH, 2.1)
    panels = figure.subplots(1, len(merges), squeeze=False, sharex=True, sharey=True)[0]
    loss = surface["loss"].replace([np.inf, -np.inf], np.nan)
    low, high = max(loss.min(), 1e-4), min(loss.max(), 100)
    norm, levels = LogNorm(low, high), np.geomspace(low, high, 13)
    for axes, merge in zip(panels, merges, strict=True):
        rows = surface[surface["merge"] == merge]
        grid = rows.pivot(index="b", columns="a", values="loss").clip(low, high).fillna(high)
        drawn = axes.contourf(grid.columns, grid.index, grid, levels, norm=norm, cmap="cividis", extend="both")
        axes.contour(grid.columns, grid.index, grid, levels[::2], norm=norm, colors="white", linewidths=0.4)
        axes.plot(0, 0, marker="x", color="white", markersize=5)
        axes.set_title(f"{merge}, seed {rows['seed'].iloc[0]}")
        axes.set_xlabel("a (in filter norms)")
        axes.set_aspect("equal")
        axes.grid(visible=False)
    panels[0].set_ylabel("b (in filter norms)")
    bar = figure.colorbar(drawn, ax=panels, label="training loss (nats)", shrink=0.8)
    bar.ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator())
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.minorticks_off()
    return plots.saved(figure, path)


@plots.in_style
def lines(line: pd.DataFrame, barriers: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """The loss between seeds, and its barrier: of disjoint pairs alone, for those that share a seed are dependent.

    Args:
      line: of the interpolation probe, with merge.
      barriers: of `landscape_tables.barriers`.
      path: of the figure.
    """
    kinds = ("interpolated", "recomputed")
    barriers = barriers[barriers["disjoint"]]
    line = line.merge(barriers[["dataset", "merge", "statistics", "seed", "other"]])
    merges = list(dict.fromkeys(line["merge"]))
    figure = plots.new_figure(WIDTH, 3.0)
    *courses, forest = figure.subplots(1, 3)
    for axes, kind in zip(courses, kinds, strict=True):
        for merge, rows in line[line["statistics"] == kind].groupby("merge", sort=False):
            _line(axes, rows, "alpha", "loss", merge, log=True)
        axes.set_yscale("log")
        _plain(axes.yaxis)
        axes.set_title(f"statistics {kind}")
        axes.set_xlabel("position between two seeds")
    top = max(axes.get_ylim()[1] for axes in courses)
    for axes in courses:
        axes.set_ylim(min(axes.get_ylim()[0] for axes in courses), top)
    courses[0].set_ylabel("training loss (nats)")
    for row, merge in enumerate(merges):
        colour, marker = plots.style(merge)
        for kind, shift, face in zip(kinds, (0.15, -0.15), ("white", colour), strict=True):
            of = barriers[(barriers["merge"] == merge) & (barriers["statistics"] == kind)]
            ci = stats.mean_ci(of["barrier"][np.isfinite(of["barrier"])])
            if ci["mean"] is None:
                continue
            if ci["ci_low"] is not None:
                forest.plot([ci["ci_low"], ci["ci_high"]], [row + shift] * 2, color=colour, linewidth=1.2)
            forest.plot(ci["mean"], row + shift, color=colour, marker=marker, markerfacecolor=face, markersize=5)
    forest.set_yticks(range(len(merges)), merges)
    forest.set_ylim(len(merges) - 0.5, -0.5)
    forest.axvline(0, color=GREY, linewidth=0.6)
    forest.set_xlabel("barrier (nats)")
    forest.set_title("open: interpolated")
    _legend(figure, line, "disjoint pairs of seeds")
    return plots.saved(figure, path)


def _legend(figure: "Figure", table: pd.DataFrame, units: str = "seeds") -> None:
    """Below the panels: every merge, and n, the number of different `seed`s."""
    from matplotlib.lines import Line2D

    seeds = table.groupby("merge", sort=False)["seed"].nunique()
    n = f"n = {seeds.min()}" if seeds.min() == seeds.max() else f"n = {seeds.min()} to {seeds.max()}"
    handles = [
        Line2D([], [], color=plots.style(m)[0], marker=plots.style(m)[1], markersize=5, label=m) for m in seeds.index
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(8, len(handles)), columnspacing=1.0, handlelength=1.5,
        title=f"{n} {units}, 95 % CI", title_fontsize=8,
    )  # fmt: skip
