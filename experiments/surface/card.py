"""The report card as a figure, drawn from the surface study's tables alone.

Positions are set by hand, in inches: the columns of its pictures and of its strips are the same merges.
"""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.surface.planes import draw_heading, look_of
from experiments.surface.style import (
    ARM_LOOKS,
    WITHOUT,
    in_style,
    in_words,
    left_at,
    limits,
    merges_of,
    of_dataset,
    tau_words,
    text_at,
)
from experiments.surface.tables import ARMS, BASELINE, ENOUGH, READINGS, Reading
from resjax.analysis import plots
from resjax.analysis.regions import class_looks, draw_regions, draw_thumbnail
from resjax.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRIP, GAP = 0.4, 0.07  # inches: height of a strip, and the space below it
LEFT, RIGHT = 1.4, 0.95  # inches beside the card's strips


@in_style
def card(
    readings: pd.DataFrame,
    race: pd.DataFrame,
    planes: pd.DataFrame,
    corners: pd.DataFrame,
    path: str | os.PathLike,
    dataset: str,
) -> list[Path]:
    """The report card of a data set: merges as columns, decision regions on top, and a strip per reading.

    A strip shows each prior's mean with its 95 % CI; the band is the CI of BASELINE without prior, a cross a merge
    whose replicas all diverged. Strips hold all means; of an interval that is longer than these spread, a part.

    Args:
      readings: `surface_tables`' card: dataset, arm, reading, merge, n, diverged, mean, ci_low, ci_high.
      race: dataset, reading, tau, tau_low, tau_high, n.
      planes: dataset, arm, merge, x, y, label, margin.
      corners: dataset, corner, x, y, label, row, column, channel, value.
      path: of the figure.
      dataset: to draw.

    Returns:
      The paths of the PNG and of the PDF.

    Raises:
      ConfigError: a table, the race aside, has no row of the data set.
    """
    table, regions = of_dataset(readings, dataset, "readings"), of_dataset(planes, dataset, "planes")
    look = look_of(regions, of_dataset(corners, dataset, "corners"))
    taus = race[race["dataset"] == dataset].set_index("reading")
    merges, arms = merges_of(table), [arm for arm in ARMS if arm in set(table["arm"])]
    drawn = [r for r in READINGS if table.loc[table["reading"] == r, "mean"].notna().any()]
    column = (plots.WIDTH - LEFT - RIGHT) / len(merges)
    side, head, note = min(column - 0.04, 0.65), 0.45, _note(table, arms)
    foot = 0.74 + 0.12 * note.count("\n")
    height = head + side + 0.12 + len(drawn) * (STRIP + GAP) + foot
    figure = plots.new_figure(plots.WIDTH, height)
    figure.set_layout_engine("none")
    figure.text(
        0.1 / plots.WIDTH, 1 - 0.08 / height, f"{dataset}: report card", va="top", fontsize=10, fontweight="bold"
    )
    for i, merge in enumerate(merges):
        axes = plots.axes_at(figure, LEFT + (i + 0.5) * column - side / 2, head, side, side)
        draw_heading(axes, merge)
        draw_regions(axes, regions[(regions["arm"] == WITHOUT) & (regions["merge"] == merge)], look)
    for i in range(len(look.images)):
        draw_thumbnail(figure, look, i, 0.1 + 0.42 * i, head, 0.36)
    text_at(figure, LEFT + len(merges) * column + 0.06, head + side / 2, _race_words(taus), color=plots.GREY)
    for j, reading in enumerate(drawn):
        top = head + side + 0.12 + j * (STRIP + GAP)
        axes = plots.axes_at(figure, LEFT, top, len(merges) * column, STRIP)
        _strip(axes, table[table["reading"] == reading], merges, arms, READINGS[reading])
        text_at(figure, 0.1, top + STRIP / 2, _label(READINGS[reading]), fontsize=7)
        if reading in taus.index:
            _tau(figure, LEFT + len(merges) * column + 0.06, top + STRIP / 2, taus.loc[reading])
    plots.legend(figure, _arm_looks(arms), **left_at((foot - 0.06) / height))
    plots.legend(figure, class_looks(look), **left_at((foot - 0.38) / height))
    figure.text(0.1 / plots.WIDTH, 0.06 / height, note, va="bottom", fontsize=6.5, color=plots.GREY)
    return plots.saved(figure, path)


def _strip(axes: "Axes", rows: pd.DataFrame, merges: Sequence[str], arms: Sequence[str], reading: Reading) -> None:
    rows = rows.set_index(["merge", "arm"]).sort_index()
    interval = rows[["mean", "ci_low", "ci_high"]].astype(float) * reading.scale
    log = reading.log and (interval["mean"].dropna() > 0).all()
    low, high = limits(interval, log)
    axes.set(xlim=(-0.5, len(merges) - 0.5), ylim=(low, high), xticks=[], yscale="log" if log else "linear")
    axes.vlines(np.arange(1, len(merges)) - 0.5, low, high, color="#E5E5E5", linewidth=0.6, zorder=0)
    _ticks(axes, low, high, log)
    if (BASELINE, WITHOUT) in interval.index:
        band = interval.loc[(BASELINE, WITHOUT)]
        axes.axhspan(band["ci_low"], band["ci_high"], color="black", alpha=0.09, linewidth=0)
    for x, merge in enumerate(merges):
        for arm, shift in zip(arms, 0.15 * (np.arange(len(arms)) - (len(arms) - 1) / 2), strict=True):
            if (merge, arm) in rows.index:
                _point(axes, x + shift, interval.loc[(merge, arm)], rows.loc[(merge, arm)], merge, arm)


def _point(axes: "Axes", x: float, interval: pd.Series, row: pd.Series, merge: str, arm: str) -> None:
    colour, plain = plots.style(merge)[0], arm == WITHOUT
    if not row["n"] and row["diverged"]:
        look = {"color": colour, "markersize": 3.5, "markeredgewidth": 1, "transform": axes.get_xaxis_transform()}
        axes.plot(x, 0.1, "x", **look)
        return
    axes.plot([x, x], interval[["ci_low", "ci_high"]], color=colour, linewidth=1.3 if plain else 0.8)
    face = {"markerfacecolor": colour if plain else "white", "markeredgewidth": 0.7}
    axes.plot(x, interval["mean"], ARM_LOOKS[arm][0], color=colour, markersize=4.4 if plain else 3, **face)


def _ticks(axes: "Axes", low: float, high: float, log: bool) -> None:
    """Two or three round ticks, on a logarithmic axis too, where the locators of Matplotlib may find none."""
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

    locators = [LogLocator(subs=(1,)), LogLocator(subs=(1, 3)), LogLocator(subs=(1, 2, 5))] if log else []
    locators += [MaxNLocator(n, steps=[1, 2, 2.5, 5, 10]) for n in (2, 3, 4, 6)]
    for locator in locators:
        ticks = [t for t in locator.tick_values(low, high) if low <= t <= high]
        if len(ticks) >= 2:
            break
    axes.yaxis.set(major_locator=FixedLocator(ticks[:: -(-len(ticks) // 3)]), minor_locator=NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", labelsize=6.5, length=2, pad=1.5)
    axes.spines["bottom"].set(color="#BBBBBB", linewidth=0.6)


def _label(reading: Reading) -> str:
    unit = f"({reading.unit})".replace(" ", "\N{NO-BREAK SPACE}") if reading.unit else ""
    return textwrap.fill(f"{reading.words} {unit}", 19)


def _tau(figure: "Figure", left: float, top: float, row: pd.Series) -> None:
    if np.isfinite(row["tau"]):
        weight = "bold" if Estimate.of(row, "tau").side and row["n"] >= ENOUGH else "normal"
        text_at(figure, left, top, tau_words(row, "\n"), fontweight=weight)


def _race_words(taus: pd.DataFrame) -> str:
    if taus.empty:
        return ""
    n = taus["n"].max()
    rule = "bold where its CI\nexcludes 0" if n >= ENOUGH else "too few for\na claim"
    return f"Kendall's tau\nwith test error,\n{n:.0f} merges;\n{rule}"


def _note(table: pd.DataFrame, arms: Sequence[str]) -> str:
    """How many seeds the intervals are over, and who lost some."""
    rows = table[table["reading"] == table["reading"].iloc[0]]
    lost = [
        f"{row['merge']} ({row['arm']}) {row['diverged']:.0f} of {row['n'] + row['diverged']:.0f}"
        for _, row in rows[rows["arm"].isin(arms)].iterrows()
        if row["diverged"]
    ]
    seeds = sorted(set((rows["n"] + rows["diverged"]).astype(int)))
    words = f"Mean and 95 % CI over {' or '.join(map(str, seeds))} seeds; band: {BASELINE}, {WITHOUT}."
    return textwrap.fill(words + (f" Diverged, and left out: {', '.join(lost)}." if lost else ""), 125)


def _arm_looks(arms: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    looks = {in_words(arm): (ARM_LOOKS[arm][0], plots.GREY, "full" if arm == WITHOUT else "none") for arm in arms}
    return looks | {"all replicas diverged": ("x", plots.GREY, "full")}
