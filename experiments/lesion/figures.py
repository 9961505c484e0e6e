"""Figures of the lesion study, drawn from the tables of `experiments.lesion.tables` alone; 7 inches wide."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from experiments.lesion import rescue as lesion_rescue
from resjax.analysis import plots
from resjax.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches, a text width
GREY = "#595959"


@plots.in_style
def lines(
    table: pd.DataFrame, path: str | os.PathLike, curves: Mapping[str, tuple[str, str]], ylabel: str
) -> list[Path]:
    """Draws curves with a line per merge and 95 % CI bands: a column per curve, a row per depth and norm.

    Args:
      table: of `lesion_tables.curves`.
      path: of the figure, to which .png and .pdf are appended.
      curves: name -> title and label of the x axis.
      ylabel: of the values, drawn in percent.

    Returns:
      The paths of both files.

    Raises:
      ConfigError: the table has none of the curves.
    """
    table = table[table["curve"].isin(curves)]
    if table.empty:
        raise ConfigError(f"none of the curves {', '.join(curves)} is in the table")
    curves = {name: words for name, words in curves.items() if name in set(table["curve"])}
    groups = list(table.groupby(["depth", "norm"], sort=True))
    figure = plots.new_figure(WIDTH, 0.75 + 1.85 * len(groups))
    panels = figure.subplots(len(groups), len(curves), squeeze=False, sharey="row")
    for row, ((depth, norm), of_group) in zip(panels, groups, strict=True):
        for axes, name in zip(row, curves, strict=True):
            of_curve = of_group[of_group["curve"] == name]
            for merge, rows in of_curve.groupby("merge", sort=False):
                _line(axes, rows.sort_values("x"), merge)
        n = of_group["n"]
        seeds = f"n = {n.max()}" if n.min() == n.max() else f"n = {n.min()} to {n.max()}"
        row[0].set_ylabel(f"depth {depth}, {norm}, {seeds}\n{ylabel} (%)", fontsize=8)
        row[0].set_ylim(bottom=0)
    for column, (title, xlabel) in zip(panels.T, curves.values(), strict=True):
        column[0].set_title(title, fontsize=8)
        column[-1].set_xlabel(xlabel, fontsize=8)
    for axes, name in zip(panels.T, curves, strict=True):
        whole = table.loc[table["curve"] == name, "x"].mod(1).eq(0).all()
        for one in axes:
            one.xaxis.get_major_locator().set_params(integer=bool(whole))
            one.xaxis.set_inverted(name == "order")  # damage grows to the right, as in the other panels
    _legend(figure, table["merge"])
    return plots.saved(figure, path)


def _line(axes: "Axes", rows: pd.DataFrame, merge: str) -> None:
    colour, marker = plots.style(merge)
    mean, low, high = (100 * rows[column].astype(float) for column in ("mean", "ci_low", "ci_high"))
    axes.fill_between(rows["x"], low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(rows["x"], mean, color=colour, marker=marker, markersize=3.5, linewidth=1.1)


@plots.in_style
def trainability(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Draws the overall accuracy of each merge over the depth with its 95 % CI, a panel per norm; a cross: diverged.

    Args:
      table: of `lesion_tables.compared`, of which the rows of the metric "OA" are drawn.
      path: of the figure, to which .png and .pdf are appended.

    Returns:
      The paths of both files.

    Raises:
      ConfigError: the table has no such rows.
    """
    table = table[table["metric"] == "OA"]
    if table.empty:
        raise ConfigError("the table has no overall accuracy")
    depths, norms = sorted(table["depth"].unique()), list(dict.fromkeys(table["norm"]))
    merges = list(dict.fromkeys(table["merge"]))
    figure = plots.new_figure(WIDTH, 3.2)
    panels = figure.subplots(1, len(norms), squeeze=False, sharey=True)[0]
    for axes, norm in zip(panels, norms, strict=True):
        for row in table[table["norm"] == norm].to_dict("records"):
            colour, marker = plots.style(row["merge"])
            x = depths.index(row["depth"]) + 0.8 * ((merges.index(row["merge"]) + 0.5) / len(merges) - 0.5)
            if row["n"]:
                axes.plot([x, x], [100 * row["ci_low"], 100 * row["ci_high"]], color=colour, linewidth=1.4)
                axes.plot(x, 100 * row["mean"], color=colour, marker=marker, markersize=5)
            if row["diverged"]:
                note = f"{row['merge']}: {row['diverged']}/{row['n'] + row['diverged']}"
                at = {"transform": axes.get_xaxis_transform(), "color": colour}
                axes.plot(x, 0.03, marker="x", markersize=5, clip_on=False, **at)
                axes.text(x, 0.07, note, rotation=90, fontsize=7, ha="center", va="bottom", **at)
        axes.set_xticks(range(len(depths)), depths)
        axes.set_xlim(-0.5, len(depths) - 0.5)
        axes.set_xlabel("depth (layers)")
        axes.set_title(f"norm: {norm}, up to {table['n'].max()} seeds\nat the bottom: diverged")
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("overall accuracy (%)")
    _legend(figure, table["merge"])
    return plots.saved(figure, path)


@plots.in_style
def rescues(nets: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Draws the accuracy of every net under each optimiser, a panel each; below, in words, how many diverged.

    Args:
      nets: of `lesion_rescue.outcomes`.
      path: of the figure, to which .png and .pdf are appended.

    Returns:
      The paths of both files.
    """
    merges, groups = list(dict.fromkeys(nets["merge"])), list(nets.groupby(lesion_rescue.GROUP, sort=False))
    figure = plots.new_figure(WIDTH, 2.9)
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, ((optimiser, norm, depth), rows) in zip(panels, groups, strict=True):
        axes.axhline(100 * rows["chance"].iloc[0], color=GREY, linewidth=0.8, linestyle="--")
        for x, merge in enumerate(merges):
            colour, marker = plots.style(merge)
            of_merge = rows[rows["merge"] == merge]
            spread = x + 0.5 * (of_merge["seed"].rank() / (len(of_merge) + 1) - 0.5)
            axes.plot(spread, 100 * of_merge["OA"], marker, color=colour, markersize=4, linestyle="none")
            if diverged := (of_merge["status"] == "diverged").sum():
                note = {"rotation": 90, "fontsize": 7, "ha": "center", "va": "bottom", "color": colour}
                axes.text(x, 18, f"{diverged} of {len(of_merge)} diverged", **note)
        axes.set_xticks(range(len(merges)), merges, rotation=45)
        axes.set_xlim(-0.6, len(merges) - 0.4)
        axes.set_title(f"{optimiser}\ndepth {depth}, {norm}")
        axes.grid(visible=False, axis="x")
    panels[0].set_ylim(0, 103)
    panels[0].set_ylabel("overall accuracy (%)\ndashed: chance")
    return plots.saved(figure, path)


def _legend(figure: "Figure", merges: pd.Series) -> None:
    from matplotlib.lines import Line2D

    known = [*plots.MERGE_STYLES, *merges]
    handles = [
        Line2D([], [], color=plots.style(m)[0], marker=plots.style(m)[1], markersize=4.5, linewidth=1.1, label=m)
        for m in sorted(set(merges), key=known.index)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), columnspacing=1.2)
