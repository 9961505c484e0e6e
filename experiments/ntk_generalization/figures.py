"""Figures of the kernel study, drawn from tables alone: predicted errors, the race of the predictors.

Each is 7 inches wide and written as PNG and PDF; merges look as in every other figure (`plots.style`).
"""

import os
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resjax import stats
from resjax.analysis import plots
from resjax.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILLS = ("full", "none", "left", "top")  # one per data set where colour and marker are the merge's
BARS = {"linestyle": "none", "elinewidth": 0.7, "markersize": 4.5, "markeredgewidth": 0.8}


@plots.in_style
def predicted_against_measured(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Draws each method's predicted test error over the measured one, and below, how far it is off.

    Args:
      table: one row per (dataset, merge, method, n): predicted and measured are MSE in units of the target's
        variance; predicted_low, predicted_high, measured_low and measured_high may hold intervals.
      path: of the figure, to which .png and .pdf are appended.

    Returns:
      The paths of both files.

    Raises:
      ConfigError: a column is missing, or no row has two positive errors.
    """
    from matplotlib.ticker import FixedLocator, PercentFormatter

    plots.need(table, ["dataset", "merge", "method", "n", "predicted", "measured"])
    table = table[(table["predicted"] > 0) & (table["measured"] > 0)]
    if table.empty:
        raise ConfigError("no row has a predicted and a measured error above 0: nothing to draw")
    methods = list(dict.fromkeys(table["method"]))
    fills = dict(zip(dict.fromkeys(table["dataset"]), FILLS * len(table), strict=False))
    bounds = table[["predicted", "measured"]]
    limits = np.array([0.8 * bounds.min().min(), 1.25 * bounds.max().max()])
    figure = plots.new_figure(plots.WIDTH, 4.6)
    panels = figure.subplots(
        2, len(methods), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": [2, 1]}
    )
    if ((table["predicted"] / table["measured"] - 1).abs() > 0.3).any():  # or it would flatten all the others
        panels[1, 0].set_yscale("symlog", linthresh=0.1)
        panels[1, 0].yaxis.set_major_locator(FixedLocator([-0.5, -0.1, 0, 0.1, 0.5, 3, 20]))
    for (upper, lower), method in zip(panels.T, methods, strict=True):
        rows = table[table["method"] == method]
        upper.plot(limits, limits, color=plots.GREY, linewidth=0.8)
        lower.axhline(0, color=plots.GREY, linewidth=0.8)
        for (dataset, merge), of_merge in rows.groupby(["dataset", "merge"], sort=False):
            look = plots.look(merge) | BARS | {"fillstyle": fills[dataset]}
            x, y = of_merge["measured"], of_merge["predicted"]
            upper.errorbar(x, y, _bars(of_merge, "predicted"), _bars(of_merge, "measured"), **look)
            lower.plot(x, y / x - 1, **{k: v for k, v in look.items() if k != "elinewidth"})
        deviation = (rows["predicted"] / rows["measured"] - 1).abs().median()
        upper.set_title(f"{method.replace('_', ' ')}\nmedian {deviation:.1%} off", fontsize=8)
        lower.set_xlabel("measured MSE")
        upper.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
        for axis in (upper.xaxis, upper.yaxis, lower.xaxis):
            _plain_log(axis, limits)
    panels[1, 0].yaxis.set_major_formatter(PercentFormatter(1))
    panels[0, 0].set_ylabel("predicted MSE")
    panels[1, 0].set_ylabel("off by")
    plots.merge_legend(figure, table["merge"], fills=fills if len(fills) > 1 else {})
    return plots.saved(figure, path)


def race_forest(result: pd.DataFrame, path: str | os.PathLike, top: int | None = None) -> list[Path]:
    """Draws tau and psi_merge of every predictor with their 95 % CI, the largest tau on top.

    Args:
      result: of `race.race`.
      path: of the figure, to which .png and .pdf are appended.
      top: draws only so many predictors, and the best plain baseline in any case.

    Returns:
      The paths of both files.

    Raises:
      ConfigError: a column is missing.
    """
    import matplotlib

    plots.need(result, ["predictor", "baseline", "configurations", "cells", "seeds", "tau", "psi_merge"])
    ranked = result.sort_values("tau", ascending=False, ignore_index=True)
    plain = ranked.index[ranked["baseline"].astype(bool)][:1]
    rows = ranked.loc[sorted({*ranked.index[:top], *plain})]
    with matplotlib.rc_context(plots.RC | {"ytick.labelsize": 7.5}):
        figure = plots.new_figure(plots.WIDTH, 1.3 + 0.155 * max(len(rows), 4))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, name in zip(panels, ("tau", "psi_merge"), strict=True):
            axes.axvline(0, color="black", linewidth=0.8)
            if len(plain):
                axes.axvline(ranked.loc[plain[0], name], color=plots.GREY, linewidth=0.8, linestyle=(0, (3, 2)))
            for y, (_, row) in enumerate(rows.iterrows()):
                colour, face = (plots.GREY, "white") if row["baseline"] else ("#0072B2", "#0072B2")
                axes.plot(row[[f"{name}_low", f"{name}_high"]], [y, y], color=colour, linewidth=1.2)
                axes.plot(row[name], y, "o", color=colour, markerfacecolor=face, markersize=4)
        panels[0].set_xlabel("Kendall's tau-b, mean over cells")
        panels[1].set_xlabel("psi_merge: tau-b among merges alone")
        panels[0].set_yticks(range(len(rows)), rows["predictor"])
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        size = ranked.loc[ranked["configurations"].idxmax()]
        figure.suptitle(
            f"{size['configurations']} configurations, {size['cells']} data set(s), {size['seeds']} seeds, 95 % CI",
            fontsize=9,
        )
        _forest_legend(figure, panels[0], bool(len(plain)))
        return plots.saved(figure, path)


def _forest_legend(figure: "Figure", axes: "Axes", plain: bool) -> None:
    dot = {"marker": "o", "markersize": 4}
    handles = axes.plot([], [], color="#0072B2", label="predictor", **dot)
    if plain:
        handles += axes.plot([], [], color=plots.GREY, markerfacecolor="white", label="plain baseline", **dot)
        handles += axes.plot(
            [], [], color=plots.GREY, linestyle=(0, (3, 2)), linewidth=0.8, label="best plain baseline by tau"
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


@plots.in_style
def trained_against_predicted(
    table: pd.DataFrame, path: str | os.PathLike, predictor: str, target: str = "error", sign: int = 1
) -> list[Path]:
    """Draws the trained nets' test error over one predictor, a panel per cell (dataset, train_size).

    Args:
      table: of `race.race`, one row per (configuration, seed).
      path: of the figure, to which .png and .pdf are appended.
      predictor: its column.
      target: column of the test error, a fraction.
      sign: of the predictor; the titles have the tau of sign * predictor.

    Returns:
      The paths of both files. A point is a configuration: means over seeds, with the 95 % CI of the error.

    Raises:
      ConfigError: a column is missing, or no row has both values.
    """
    plots.need(table, ["dataset", "train_size", "merge", "depth", "width", "seed", target, predictor])
    table = table[np.isfinite(table[target]) & np.isfinite(table[predictor])]
    if table.empty:
        raise ConfigError(f"no row has both {predictor} and {target}: nothing to draw")
    cells = list(table.groupby(["dataset", "train_size"], sort=False, dropna=False))
    columns = min(3, len(cells))
    height = ceil(len(cells) / columns)
    figure = plots.new_figure(plots.WIDTH, 0.8 + 2.3 * height)
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for axes in panels[len(cells) :]:
        axes.set_visible(False)
    for axes, ((dataset, train_size), rows) in zip(panels, cells, strict=False):
        tau = sign * _scatter(axes, rows, predictor, target)
        axes.set_title(f"{plots.short(dataset)}, n = {train_size}\ntau = {tau:.2f}", fontsize=8)
        axes.set_xlabel(predictor.replace("_", " "))
    figure.supylabel("test error of the trained net (%)", fontsize=9)
    plots.merge_legend(figure, table["merge"])
    return plots.saved(figure, path)


def _scatter(axes: "Axes", rows: pd.DataFrame, predictor: str, target: str) -> float:
    """One cell; returns Kendall's tau-b over its configurations."""
    from scipy.stats import kendalltau

    points, medians = [], []
    for (merge, *_), of_one in rows.groupby(["merge", "depth", "width"], sort=False):
        ci = stats.mean_ci(100 * of_one[target])
        points.append((of_one[predictor].mean(), ci["mean"]))
        medians.append(of_one[[predictor, target]].median())  # as race.race has it
        reach = [[ci["mean"] - ci["ci_low"]], [ci["ci_high"] - ci["mean"]]] if ci["n"] > 1 else None
        axes.errorbar(*points[-1], yerr=reach, **plots.look(merge) | BARS)
    x, y = np.array(points).T
    if x.min() > 0 and x.max() > 30 * x.min():
        axes.set_xscale("log")
    return float(kendalltau(*np.array(medians).T).statistic) if len(points) > 1 else float("nan")


def _plain_log(axis, limits: np.ndarray) -> None:
    """1, 2 and 5 of each decade as plain numbers; only the decades over a long range."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if limits[1] < 100 * limits[0] else (1,), numticks=12))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _bars(rows: pd.DataFrame, column: str) -> np.ndarray | None:
    if f"{column}_low" not in rows:
        return None
    return np.stack([rows[column] - rows[f"{column}_low"], rows[f"{column}_high"] - rows[column]]).clip(0)
