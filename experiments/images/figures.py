"""Figures of the study, drawn from its tables."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from experiments.images.plan import ARMS
from resjax.analysis import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = {"": "-", "LN": "--", "usual": ":"}  # what follows the merge in the name of an arm -> its line


def look(arm: str) -> dict:
    """Colour and marker of the merge; the line tells the rest."""
    merge, _, rest = arm.partition(", ")
    return plots.look(merge) | {"linestyle": LINES.get(rest, "-"), "fillstyle": "none" if rest else "full"}


@plots.in_style
def differences(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Accuracy less that of the baseline, in points: a row of panels per part, a panel per data set."""
    table = _shallow(table[table["metric"] == "OA"])
    arms = {part: _compared(rows) for part, rows in table.groupby("part", sort=False)}
    parts = [part for part in arms if arms[part]]
    if not parts:
        return []
    columns = max(table[table["part"] == part]["set"].nunique() for part in parts)
    heights = [0.75 + 0.24 * len(arms[part]) for part in parts]
    figure = plots.new_figure(plots.WIDTH, 0.5 + sum(heights))
    grid = figure.subplots(len(parts), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for part, panels in zip(parts, grid, strict=True):
        own = table[table["part"] == part]
        sets = list(dict.fromkeys(own["set"]))
        for axes in panels[len(sets) :]:
            axes.set_visible(False)
        for axes, dataset in zip(panels, sets, strict=False):
            rows = own[own["set"] == dataset].set_index("arm")
            title = f"{part}: {dataset}\n{_levels(rows)}"
            _intervals(axes, rows, arms[part], 100, title)
        panels[0].set_yticks(range(len(arms[part])), [_name(arm) for arm in arms[part]])
    figure.supxlabel("test accuracy less that of the sum, or as named (points; paired by seed, 95 % CI)", fontsize=9)
    return plots.saved(figure, path)


def _shallow(table: pd.DataFrame) -> pd.DataFrame:
    """Of every part the nets of its least depth."""
    return table[table["depth"] == table.groupby("part")["depth"].transform("min")]


def _compared(rows: pd.DataFrame) -> list[str]:
    return [arm for arm in dict.fromkeys(rows["arm"]) if arm != ARMS[arm].baseline]


def _name(arm: str) -> str:
    """With what it is compared with, where that is no sum."""
    baseline = ARMS[arm].baseline
    return arm if baseline.startswith("add") else f"{arm} less {baseline}"


def _levels(rows: pd.DataFrame) -> str:
    base = {arm: rows.loc[arm] for arm in rows.index if arm == ARMS[arm].baseline}
    return "; ".join(f"{arm}: {100 * row['mean']:.1f} %" for arm, row in base.items())


def _intervals(axes: "Axes", rows: pd.DataFrame, arms: Sequence[str], scale: float, title: str) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    for y, arm in enumerate(arms):
        if arm in rows.index:
            row, style = rows.loc[arm], look(arm)
            low, mean, high = (scale * float(row[f"difference{end}"]) for end in ("_low", "", "_high"))
            axes.plot([low, high], [y, y], color=style["color"], linewidth=1.6)
            axes.plot(mean, y, **style | {"linestyle": "none"}, markersize=6)
            note = f"n = {row['pairs']:.0f}" + (f", {row['lost']:.0f} lost" if row.get("lost") else "")
            axes.text(1.01, y, note, transform=axes.get_yaxis_transform(), va="center", fontsize=7, color=plots.GREY)
    axes.set_yticks([])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set_title(title, fontsize=8)


@plots.in_style
def contrasts(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """How a merge's difference to the sum differs between two data sets, in logits: a panel per contrast."""
    names = list(dict.fromkeys(table["contrast"]))
    arms = list(dict.fromkeys(table["arm"]))
    figure = plots.new_figure(plots.WIDTH, 0.5 + (0.6 + 0.24 * len(arms)) * len(names))
    for name, axes in zip(names, figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0], strict=True):
        _intervals(axes, table[table["contrast"] == name].set_index("arm"), arms, 1, name)
        axes.set_yticks(range(len(arms)), arms)
    figure.supxlabel(
        "difference to the sum on one set less that on the other\n(logit of accuracy, 95 % CI)", fontsize=9
    )
    return plots.saved(figure, path)


@plots.in_style
def curves(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Test accuracy by epoch: a panel per part and data set; the band is the 95 % CI of the mean."""
    table = _shallow(table[table["metric"] == "test_accuracy"])
    panels = list(dict.fromkeys(zip(table["part"], table["set"], strict=True)))
    figure, grid = _panels(len(panels), "epoch", "test accuracy (%)")
    for (part, dataset), axes in zip(panels, grid, strict=True):
        own = table[(table["part"] == part) & (table["set"] == dataset)]
        for arm, rows in own.groupby("arm", sort=False):
            style = look(arm)
            mean, low, high = (100 * rows[name].astype(float) for name in ("mean", "ci_low", "ci_high"))
            axes.plot(rows["epoch"], mean, color=style["color"], linestyle=style["linestyle"], linewidth=1.3)
            axes.fill_between(rows["epoch"], low, high, color=style["color"], alpha=0.18, linewidth=0)
        axes.set_title(f"{part}: {dataset}, n = {own['n'].max():.0f}", fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, table["arm"])
    return plots.saved(figure, path)


@plots.in_style
def rates(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Validation accuracy by learning rate while tuning: a panel per data set; a ring marks what was picked."""
    table = table[table["depth"] == table["depth"].min()]
    sets = list(dict.fromkeys(table["set"]))
    figure, grid = _panels(len(sets), "learning rate", "validation accuracy (%)")
    for dataset, axes in zip(sets, grid, strict=True):
        for arm, own in table[table["set"] == dataset].groupby("arm", sort=False):
            style = look(arm)
            mean = 100 * own.groupby("rate")["validation_accuracy"].mean()
            axes.plot(mean.index, mean, markersize=4, linewidth=1.1, **style)
            chosen = mean[mean.index.isin(own.loc[own["picked"], "rate"])]
            ring = {"marker": "o", "fillstyle": "none", "linestyle": "none", "markersize": 10}
            axes.plot(chosen.index, chosen, color=style["color"], **ring)
        axes.set_xscale("log")
        axes.set_title(dataset, fontsize=8)
    _legend(figure, table["arm"])
    return plots.saved(figure, path)


@plots.in_style
def depth(read: Mapping[str, pd.DataFrame], path: str | os.PathLike) -> list[Path]:
    """By depth, a column per norm: test accuracy, and the gain per block at initialisation with theory as a line."""
    trained = read["_differences"][read["_differences"]["metric"] == "OA"]
    trained = trained[trained.groupby(["part", "set"])["depth"].transform("nunique") > 1]
    untrained = read.get("_gains", pd.DataFrame(columns=trained.columns))
    arms = [arm for arm in ARMS if arm in {*trained["arm"], *untrained["arm"]}]
    norms = list(dict.fromkeys(_norm(arm) for arm in arms))
    if not arms:
        return []
    lines = [table for table in (trained, untrained) if len(table)]
    figure = plots.new_figure(plots.WIDTH, 0.9 + 2.3 * len(lines))
    grid = figure.subplots(len(lines), len(norms), squeeze=False, sharey="row", sharex=True)
    for norm, column in zip(norms, grid.T, strict=True):
        column[0].set_title(norm, fontsize=8)
        for table, axes in zip(lines, column, strict=True):
            for arm, rows in table[[_norm(arm) == norm for arm in table["arm"]]].groupby("arm", sort=False):
                (_by_depth if table is trained else _gain_by_depth)(axes, rows, look(arm) | _line(arm))
            axes.set_xticks(sorted({*trained["depth"], *untrained["depth"]}))
        column[-1].set_xlabel("depth of the net")
    for table, axes in zip(lines, grid[:, 0], strict=True):
        axes.set_ylabel("test accuracy (%)" if table is trained else "gain per block at init")
    _legend(figure, pd.Series(arms))
    return plots.saved(figure, path)


def _norm(arm: str) -> str:
    return "LayerNorm" if arm.endswith("LN") else "BatchNorm"


def _line(arm: str) -> dict:
    """Within a column only what a block reads is left to tell."""
    return {"linestyle": "--", "fillstyle": "none"} if "two cells" in arm else {"linestyle": "-", "fillstyle": "full"}


def _by_depth(axes: "Axes", rows: pd.DataFrame, style: dict) -> None:
    mean, low, high = (100 * rows[name].astype(float) for name in ("mean", "ci_low", "ci_high"))
    axes.errorbar(rows["depth"], mean, [mean - low, high - mean], capsize=2, markersize=4, linewidth=1.1, **style)


def _gain_by_depth(axes: "Axes", rows: pd.DataFrame, style: dict) -> None:
    axes.set_yscale("log")
    axes.plot(rows["depth"], rows["gain"], markersize=4, **style | {"linestyle": "none"})
    axes.plot(rows["depth"], rows["predicted_gain"], linewidth=1, **style | {"marker": ""})


def _panels(count: int, x: str, y: str) -> tuple["Figure", list["Axes"]]:
    """Up to three in a row."""
    columns = min(3, count)
    lines = -(-count // columns)
    figure = plots.new_figure(plots.WIDTH, 0.5 + 2.1 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.ravel()[count:]:
        axes.set_visible(False)
    for axes in grid.ravel()[max(0, count - columns) : count]:
        axes.set_xlabel(x)
    for axes in grid[:, 0]:
        axes.set_ylabel(y)
    return figure, list(grid.ravel()[:count])


def _legend(figure: "Figure", arms: pd.Series) -> None:
    from matplotlib.lines import Line2D

    names = [arm for arm in ARMS if arm in set(arms)]
    handles = [Line2D([], [], label=arm, markersize=5, **look(arm)) for arm in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), columnspacing=1.2)


def draw(read: Mapping[str, pd.DataFrame], out: str | os.PathLike) -> list[Path]:
    """Draws the figures of the tables of `resjax.analysis.tables.written`."""
    plan = {
        "_differences": ("_differences", differences),
        "_contrasts": ("_contrasts", contrasts),
        "_curves": ("_curves", curves),
        "_rates": ("_tuning", rates),
    }
    read = {suffix: table for suffix, table in read.items() if len(table)}
    return plots.of_tables(read, out, plan) + (depth(read, f"{out}_depth") if "_differences" in read else [])
