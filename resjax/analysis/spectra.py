"""Spectra of kernels: eigenvalues, and the power of a target in their top modes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resjax.analysis import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOMENTS = {"init": "at initialization", "trained": "after training"}


@plots.in_style
def spectra(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Draws the kernels' eigenvalues and the target's power in their top modes, two panel rows per data set.

    Args:
      table: one row per (dataset, merge, moment, seed, rank): moment is "init" or "trained", rank starts at 1,
        eigenvalue is its share of the trace, power the share of the target in the modes up to rank.
      path: of the figure, to which .png and .pdf are appended.

    Returns:
      The paths of both files. Lines are means over seeds, bands span all seeds.

    Raises:
      ConfigError: a column is missing.
    """
    plots.need(table, ["dataset", "merge", "moment", "seed", "rank", "eigenvalue", "power"])
    datasets = list(dict.fromkeys(table["dataset"]))
    moments = [moment for moment in MOMENTS if moment in set(table["moment"])]
    figure = plots.new_figure(plots.WIDTH, 0.6 + 3.8 * len(datasets))
    panels = figure.subplots(2 * len(datasets), len(moments), squeeze=False, sharex=False)
    for d, dataset in enumerate(datasets):
        for column, moment in enumerate(moments):
            rows = table[(table["dataset"] == dataset) & (table["moment"] == moment)]
            eigenvalue, power = panels[2 * d : 2 * d + 2, column]
            for merge, of_merge in rows.groupby("merge", sort=False):
                _band(eigenvalue, of_merge[of_merge["eigenvalue"] > 0], "eigenvalue", merge)
                _band(power, of_merge, "power", merge)
            eigenvalue.set_title(f"{dataset}\n{MOMENTS[moment]}, {rows['seed'].nunique()} seeds")
            eigenvalue.set_yscale("log")
            power.set_ylim(0, 1.03)
            for axes in (eigenvalue, power):
                axes.set_xscale("log")
            power.set_xlabel("rank")
        panels[2 * d, 0].set_ylabel("eigenvalue / trace")
        panels[2 * d + 1, 0].set_ylabel("target power up to rank")
        for row in panels[2 * d : 2 * d + 2]:
            _share_y(row)
    plots.merge_legend(figure, table["merge"], line="-")
    return plots.saved(figure, path)


def _band(axes: "Axes", rows: pd.DataFrame, column: str, merge: str) -> None:
    by_rank = rows.groupby("rank")[column]
    mean, colour = by_rank.mean(), plots.style(merge)[0]
    axes.fill_between(mean.index, by_rank.min(), by_rank.max(), color=colour, alpha=0.18, linewidth=0)
    look = plots.look(merge) | {"markersize": 3.5, "markevery": _marks(mean.index.to_numpy(), merge)}
    axes.plot(mean.index, mean, linewidth=1.1, **look)


def _marks(ranks: np.ndarray, merge: str) -> list[int]:
    """Where a line has its marker: evenly on the log axis, shifted per merge so that none hides another."""
    shift = list(plots.MERGE_STYLES).index(merge) % 7 if merge in plots.MERGE_STYLES else 0
    at = np.searchsorted(ranks, np.geomspace(1, max(ranks[-1], 2) if len(ranks) else 2, 22)[shift::7])
    return sorted({int(i) for i in at if i < len(ranks)})


def _share_y(panels: Sequence["Axes"]) -> None:
    low, high = zip(*(axes.get_ylim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_ylim(min(low), max(high))
