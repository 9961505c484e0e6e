"""Figures of experiments.cause, from the tables of `experiments.cause.tables`; errors over the target's mean square."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.cause.tables import TERMS
from resjax.analysis.plots import in_style, new_figure, saved, style
from resjax.fair.tuning import UNFITTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EDGE = {"markeredgecolor": "white", "markeredgewidth": 0.5}
_COLUMNS = 4  # panels in a row
_STEPS = [*TERMS, "D4"]
_NAMES = {"D4": "all: D4"}
_FLOOR, _TOP = 1e-4, 4.0  # errors that are drawn; lost ones stand on top


def _power_of_two(x: float, _) -> str:
    return f"{x:g}" if x >= 1 else f"1/{1 / x:g}"


@in_style
def decomposition(estimates: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """The five steps and their sum, a panel per task at its first size, merges side by side."""
    rows = _first_size(estimates)
    rows = rows[rows["quantity"].isin(_STEPS)]
    tasks, merges = sorted(_order(rows, "task")), _order(rows, "merge")
    figure, panels = _panels(len(tasks), 0.75 + 0.17 * len(_STEPS) * max(len(merges), 2) / 1.6, share=True)
    for axes, task in zip(panels, tasks, strict=False):
        for i, merge in enumerate(merges):
            one = rows[(rows["task"] == task) & (rows["merge"] == merge)].set_index("quantity").reindex(_STEPS)
            y = np.arange(len(_STEPS)) + (i - (len(merges) - 1) / 2) * 0.8 / len(merges)
            _points(axes, one["mean"], y, one, merge, horizontal=True)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.axhline(len(_STEPS) - 1.5, color="#7F7F7F", linewidth=0.6)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(_STEPS)), [_NAMES.get(name, name) for name in _STEPS])
        axes.set_ylim(len(_STEPS) - 0.5, -0.5)
        axes.set_title(_title(task))
    figure.supxlabel("difference in error to add (merge - add), 95 % CI", fontsize=9)
    _legend(figure, merges)
    return saved(figure, path)


@in_style
def by_scale(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Error of the trained net by alpha sqrt(K), all merges in a panel per task, at its first size; matched R3."""
    rows = _first_size(table)
    rows = rows[rows["rung"] == "R3"]
    tasks, merges = sorted(_order(rows, "task")), _order(rows, "merge")
    figure, panels = _panels(len(tasks), 2.4, share=True)
    for axes, task in zip(panels, tasks, strict=False):
        for merge in merges:
            one = rows[(rows["task"] == task) & (rows["merge"] == merge)].sort_values("alpha")
            one = one.assign(ci_low=one["ci_low"].clip(lower=_FLOOR))
            _points(axes, one["scale"], one["mean"], one, merge, line=True)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(_power_of_two)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(_title(task))
    figure.supxlabel("alpha sqrt(K): features are learned on the left, the kernel decides on the right", fontsize=9)
    _legend(figure, merges)
    figure.supylabel("test error / target's mean square", fontsize=9)
    return saved(figure, path)


@in_style
def by_rate(tuning: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Error on the tuning splits by rate: a row per task with several recipes, a column per recipe; lost: on top."""
    rows = _first_size(tuning)
    several = rows.groupby("task")["arm"].nunique()
    tasks = sorted(several.index[several == several.max()])
    arms, merges = _order(rows[rows["task"].isin(tasks)], "arm"), _order(rows, "merge")
    floor = max(_FLOOR, rows["error"].min() / 2)
    figure = new_figure(7.0, 0.8 + 1.6 * len(tasks))
    grid = figure.subplots(len(tasks), len(arms), squeeze=False, sharex=True, sharey=True)
    for line, task in zip(grid, tasks, strict=True):
        for axes, arm in zip(line, arms, strict=True):
            for merge in merges:
                own = rows[(rows["task"] == task) & (rows["arm"] == arm) & (rows["merge"] == merge)]
                chance = own.assign(error=own["error"].where(own["train_error"] < UNFITTED, np.inf))
                mean = chance.groupby("rate")["error"].mean()
                known, (colour, marker) = np.isfinite(mean), style(merge)
                axes.plot(mean.index[known], mean[known], color=colour, marker=marker, markersize=3, linewidth=0.8,
                          label=merge)  # fmt: skip
                lost = mean.index[~known]
                axes.plot(lost, [_TOP] * len(lost), color=colour, marker=marker, markersize=3, mfc="white", ls="")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_ylim(floor, 1.5 * _TOP)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_formatter("{x:g}")
        line[0].set_ylabel(_title(task))
    for axes, arm in zip(grid[0], arms, strict=True):
        axes.set_title(arm or "norm and clipping", fontsize=9)
    figure.supxlabel("learning rate; open, on top: a replica diverged or did not fit", fontsize=9)
    figure.supylabel("test error / target's mean square", fontsize=9)
    _legend(figure, merges)
    return saved(figure, path)


@in_style
def axes(estimates: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """D0, the step of finite width, D3 and D4 by width and by number of blocks, for the tasks that have several."""
    shown = {"D0": "D0", "finite width": "D1 - D0", "D3": "D3", "D4": "D4"}
    merges, first = _order(estimates, "merge"), estimates.iloc[0]
    swept = []
    for axis, other in (("width", "blocks"), ("blocks", "width")):
        rows = estimates[estimates[other] == first[other]]
        tasks = [task for task in _order(rows, "task") if rows.loc[rows["task"] == task, axis].nunique() > 1]
        swept += [(task, axis, rows[rows["task"] == task]) for task in tasks]
    if not swept:
        return []
    figure = new_figure(7.0, 0.8 + 1.6 * len(swept))
    grid = figure.subplots(len(swept), len(shown), squeeze=False)
    for axes, name in zip(grid[0], shown.values(), strict=True):
        axes.set_title(name)
    for line, (task, axis, rows) in zip(grid, swept, strict=True):
        values = sorted(rows[axis].unique())
        for axes, quantity in zip(line, shown, strict=True):
            for merge in merges:
                one = rows[(rows["merge"] == merge) & (rows["quantity"] == quantity)].sort_values(axis)
                _points(axes, one[axis], one["mean"], one, merge, line=True)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(values, [f"{v:g}" for v in values])
            axes.minorticks_off()
            axes.set_xlabel(axis)
        line[0].set_ylabel(f"{_title(task)}\nmerge - add")
    _legend(figure, merges)
    return saved(figure, path)


@in_style
def interaction(contrast: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """[merge - add] on the higher degree less that on the lower, by rung, at the first size."""
    sizes = contrast.iloc[0][["n", "blocks", "width"]]
    rows = contrast[(contrast[["n", "blocks", "width"]] == sizes).all(axis="columns")]
    merges, rungs = _order(rows, "merge"), sorted(rows["rung"].unique())
    figure, (axes,) = _panels(1, 2.6, width=5.6)
    for i, merge in enumerate(merges):
        one = rows[rows["merge"] == merge].set_index("rung").reindex(rungs)
        x = np.arange(len(rungs)) + (i - (len(merges) - 1) / 2) * 0.6 / len(merges)
        _points(axes, x, one["mean"], one, merge)
    axes.axhline(0, color="black", linewidth=0.8)
    names = {
        "R0": "R0\ninfinite\nwidth",
        "R1": "R1\nown\nkernel",
        "R2": "R2\nlinearised",
        "R3": "R3\nnet,\nmatched",
        "R3u": "net,\nequal\nalpha",
        "R4": "R4\nrecipe",
    }
    axes.set_xticks(range(len(rungs)), [names[rung] for rung in rungs])
    axes.set_ylabel(f"[merge - add], {_title(rows['high'].iloc[0])}\nless {_title(rows['low'].iloc[0])}")
    _legend(figure, merges)
    return saved(figure, path)


@in_style
def battery(arms: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """The effect of every arm with its interval and what it supports, a panel per task."""
    tasks, names = _order(arms, "task"), _order(arms, "arm")
    figure = new_figure(7.0, 0.9 + 0.24 * len(names))
    grid = figure.subplots(1, 2 * len(tasks), sharey=True, squeeze=False, width_ratios=[1, 0.9] * len(tasks))[0]
    for axes, words, task in zip(grid[::2], grid[1::2], tasks, strict=True):
        rows = arms[arms["task"] == task].set_index("arm").reindex(names).dropna(subset=["merge"])
        for arm, row in rows.iterrows():
            y = names.index(arm)
            colour, marker = style(row["merge"])
            axes.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, linewidth=1.4)
            axes.plot(row["mean"], y, color=colour, marker=marker, markersize=5, **_EDGE)
            words.text(0, y, row["supports"], transform=words.get_yaxis_transform(), va="center", fontsize=7)
        words.axis("off")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(_title(task))
    figure.supxlabel("difference to add (merge - add), 95 % CI, and what it supports", fontsize=9)
    return saved(figure, path)


def _points(axes: "Axes", x, y, table: pd.DataFrame, merge: str, *, horizontal=False, line=False) -> None:
    colour, marker = style(merge)
    low, high = table["ci_low"].to_numpy(float), table["ci_high"].to_numpy(float)
    for a, b, lower, upper in zip(np.asarray(x, float), np.asarray(y, float), low, high, strict=True):
        ends = ([lower, upper], [b, b]) if horizontal else ([a, a], [lower, upper])
        axes.plot(*ends, color=colour, linewidth=1.4)
    dashes = "-" if line else ""
    axes.plot(x, y, color=colour, marker=marker, markersize=5, linestyle=dashes, linewidth=0.8, label=merge, **_EDGE)


def _panels(count: int, height: float, *, share: bool = False, width: float = 7.0) -> tuple["Figure", Sequence["Axes"]]:
    lines = -(-count // _COLUMNS)
    figure = new_figure(width, 0.7 + lines * height)
    grid = figure.subplots(lines, min(count, _COLUMNS), squeeze=False, sharey=share)
    for unused in grid.ravel()[count:]:
        unused.set_visible(False)
    return figure, grid.ravel()


def _legend(figure: "Figure", merges: Sequence[str]) -> None:
    handles = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([handles[m] for m in merges], merges, loc="outside upper center", ncols=6, fontsize=8, frameon=False)


def _first_size(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each task at the width and number of blocks that the table begins with."""
    first = table.iloc[0]
    return table[(table["blocks"] == first["blocks"]) & (table["width"] == first["width"])]


def _order(table: pd.DataFrame, column: str) -> list:
    return list(dict.fromkeys(table[column]))


def _title(task: str) -> str:
    return task.replace("_degree", ", degree ").replace("cube10", "cube").replace(":", ": ")
