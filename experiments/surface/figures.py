"""Curves and comparisons of the surface study, drawn from its tables alone.

Each figure is 7 inches wide and written as PNG and PDF; merges look as in every other figure (`plots.style`). Bands
and bars are 95 % CIs. Every function takes the path of its figure without suffix, and returns the paths of both files.
"""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.surface.style import (
    ARM_LOOKS,
    WITHOUT,
    in_style,
    in_words,
    limits,
    merges_of,
    of_dataset,
    seeds,
)
from experiments.surface.tables import ARMS, BASELINE, READINGS
from resjax.analysis import plots
from resjax.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SET_LOOKS = (("o", "#0072B2"), ("s", "#D55E00"), ("^", "#009E73"), ("v", "#CC79A7"), ("P", "#E69F00"), ("X", "#56B4E9"))
TOGETHER = "all"  # of the data sets
TRANSFORMATIONS = {"shift": "shift (pixels)", "rotation": "rotation (degrees)", "scale": "zoom factor"}
PATHS = {"line": "Chebyshev degree, lines", "circle": "Fourier frequency, circles"}
INPUTS = {"data": "test images", "mixes": "mixes of two", "noise": "noise"}
INTERVAL = ["mean", "ci_low", "ci_high"]
EDGE = {"markeredgecolor": "white", "markeredgewidth": 0.5}


# --- Curves, a panel per prior ----------------------------------------------------------------------------------
def symmetries(symmetry: pd.DataFrame, path: str | os.PathLike, dataset: str) -> list[Path]:
    """Of the images that a net has right, the share that it keeps under a transformation, over its amount.

    Args:
      symmetry: dataset, arm, merge, transformation, amount, n, mean, ci_low, ci_high (fractions).
      path: of the figure.
      dataset: to draw.

    Raises:
      ConfigError: nothing to draw of the data set.
    """
    rows = of_dataset(symmetry, dataset, "symmetry", "mean")
    rows = rows.assign(**100 * rows[INTERVAL]).sort_values("amount")

    def draw(axes: "Axes", own: pd.DataFrame) -> None:
        _lines(axes, own, "amount")
        if (own["transformation"] == "rotation").any():
            axes.set_xticks(range(0, 181, 45))
        if (own["transformation"] == "scale").any():
            axes.set_xscale("log", base=2)
            axes.set_xticks([0.5, 1, 2], ["0.5", "1", "2"])

    return _panels(rows, "transformation", TRANSFORMATIONS, ("plain", "augment", "stn"), draw, "images kept (%)", path)


def spectra(spectra: pd.DataFrame, path: str | os.PathLike, dataset: str) -> list[Path]:
    """Share of the energy of a net's outputs on lines and circles by degree; the points aside are all degrees beyond.

    Args:
      spectra: dataset, arm, merge, path, k, n, mean, ci_low, ci_high; the largest k stands for all beyond.
      path: of the figure.
      dataset: to draw.

    Raises:
      ConfigError: nothing to draw of the data set.
    """
    from matplotlib.ticker import NullLocator

    rows = of_dataset(spectra, dataset, "spectra", "mean").sort_values("k")
    rows = rows[rows["mean"] > 0]
    beyond = rows["k"].max()

    def draw(axes: "Axes", own: pd.DataFrame) -> None:
        axes.set_yscale("log")
        _lines(axes, own[own["k"] < beyond], "k")
        last = own[own["k"] == beyond].set_index("merge")
        places = beyond + np.linspace(0.5, 2.5, len(merges_of(rows)))
        for merge, place in zip(merges_of(rows), places, strict=True):
            if merge in last.index:
                colour, marker = plots.style(merge)
                axes.plot([place, place], last.loc[merge, ["ci_low", "ci_high"]], color=colour, linewidth=0.8)
                axes.plot(place, last.loc[merge, "mean"], marker, color=colour, markersize=3)
        axes.yaxis.set_minor_locator(NullLocator())
        ticks = np.arange(0, beyond, 4)
        axes.set_xticks([*ticks[ticks > 0], beyond + 1.5], [*map(str, ticks[ticks > 0]), f">{beyond - 1}"])

    return _panels(rows, "path", PATHS, ("plain", "augment", "mixup"), draw, "share of energy", path)


def gaps(gaps: pd.DataFrame, path: str | os.PathLike, dataset: str) -> list[Path]:
    """How far outputs between two images are from linear, over the place between them.

    Args:
      gaps: dataset, arm, merge, mix (weight of the second image), n, mean, ci_low, ci_high.
      path: of the figure.
      dataset: to draw.

    Raises:
      ConfigError: nothing to draw of the data set.
    """
    rows = of_dataset(gaps, dataset, "gaps", "mean").assign(of="pair").sort_values("mix")

    def draw(axes: "Axes", own: pd.DataFrame) -> None:
        axes.axhline(0, color="black", linewidth=0.8)
        _lines(axes, own, "mix")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])

    return _panels(rows, "of", {"pair": "weight of one image"}, tuple(ARMS), draw, READINGS["gap"].words, path)


@in_style
def _panels(
    rows: pd.DataFrame,
    column: str,
    words: Mapping[str, str],
    arms: Sequence[str],
    draw: Callable[["Axes", pd.DataFrame], None],
    ylabel: str,
    path: str | os.PathLike,
) -> list[Path]:
    """A row of panels per value of `column` (-> label of its x axis), a column per prior."""
    kinds = [kind for kind in words if kind in set(rows[column])]
    arms = [arm for arm in arms if arm in set(rows["arm"])]
    if not kinds or not arms:
        raise ConfigError(f"no {' or '.join(words)} of {' or '.join(ARMS)}: nothing to draw")
    figure = plots.new_figure(plots.WIDTH, 0.75 + 1.65 * len(kinds))
    grid = figure.subplots(len(kinds), len(arms), sharex="row", sharey="row", squeeze=False)
    for line, kind in zip(grid, kinds, strict=True):
        for axes, arm in zip(line, arms, strict=True):
            draw(axes, rows[(rows[column] == kind) & (rows["arm"] == arm)])
            axes.set_xlabel(words[kind])
        line[0].set_ylabel(ylabel)
    for axes, arm in zip(grid[0], arms, strict=True):
        axes.set_title(arm)
    figure.suptitle(f"{rows['dataset'].iloc[0]}; mean and 95 % CI, {seeds(rows['n'])}", fontsize=8)
    plots.legend(figure, {m: plots.style(m)[::-1] for m in merges_of(rows)}, line="-")
    return plots.saved(figure, path)


def _lines(axes: "Axes", rows: pd.DataFrame, x: str) -> None:
    for merge in merges_of(rows):
        own, (colour, marker) = rows[rows["merge"] == merge], plots.style(merge)
        axes.fill_between(own[x], own["ci_low"], own["ci_high"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(own[x], own["mean"], color=colour, linewidth=1.1, marker=marker, markersize=2.8)


# --- Comparisons ------------------------------------------------------------------------------------------------
@in_style
def priors(priors: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """What a prior changes of every reading, relative to the mean without it; a panel per data set.

    Args:
      priors: dataset, arm, reading, n (merges), relative, relative_low, relative_high.
      path: of the figure.

    Raises:
      ConfigError: nothing to draw.
    """
    rows = priors[priors["relative"].notna()]
    if rows.empty:
        raise ConfigError("no prior to compare with: nothing to draw")
    arms = [arm for arm in ARMS if arm in set(rows["arm"])]
    datasets = list(dict.fromkeys(rows["dataset"]))
    readings = [r for r in READINGS if r in set(rows["reading"])]
    values = 100 * rows[["relative", "relative_low", "relative_high"]].astype(float)
    figure = plots.new_figure(plots.WIDTH, 1.0 + 0.3 * len(readings))
    panels = figure.subplots(1, len(datasets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        own = rows["dataset"] == dataset
        for arm, shift in zip(arms, _dodge(len(arms)), strict=True):
            chosen = own & (rows["arm"] == arm)
            places = rows.loc[chosen, "reading"].map(readings.index) + shift
            _points(axes, values[chosen], places, *ARM_LOOKS[arm])
        axes.set_title(f"{dataset}, n = {rows.loc[own, 'n'].max():.0f} merges")
        axes.set_xlabel(f"change from {WITHOUT} (%; of shares: points)")
    _reading_rows(panels, readings)
    panels[0].set_xlim(*limits(values))
    figure.suptitle("mean over merges, paired, and 95 % CI", fontsize=8)
    plots.legend(figure, {in_words(arm): ARM_LOOKS[arm] for arm in arms})
    return plots.saved(figure, path)


@in_style
def common(race: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """The rank correlation of every reading with the test error over merges, on every data set and together.

    The largest on all data sets is on top.

    Args:
      race: dataset (or TOGETHER), reading, tau, tau_low, tau_high, n (merges).
      path: of the figure.

    Raises:
      ConfigError: nothing to draw.
    """
    rows = race[race["tau"].notna()]
    if rows.empty:
        raise ConfigError("no reading has a tau: nothing to draw")
    datasets = sorted(dict.fromkeys(rows["dataset"]), key=lambda d: d == TOGETHER)
    decides = rows[rows["dataset"] == datasets[-1]].set_index("reading")["tau"]
    readings = sorted(dict.fromkeys(rows["reading"]), key=lambda r: -decides.get(r, np.nan))
    looks = dict(zip(datasets, itertools.cycle(SET_LOOKS), strict=False)) | {TOGETHER: ("D", "#000000")}
    figure = plots.new_figure(plots.WIDTH, 1.0 + 0.3 * len(readings))
    axes = figure.subplots()
    for dataset, shift in zip(datasets, _dodge(len(datasets)), strict=True):
        own = rows[rows["dataset"] == dataset]
        places = own["reading"].map(readings.index) + shift
        _points(axes, own[["tau", "tau_low", "tau_high"]].astype(float), places, *looks[dataset])
    _reading_rows([axes], readings)
    axes.set_xlim(-1.02, 1.02)
    axes.set_xlabel("Kendall's tau with test error over merges, within a prior, 95 % CI")
    n = rows.groupby("dataset")["n"].max()
    plots.legend(figure, {f"{d} ({n[d]:.0f} merges)": looks[d] for d in datasets})
    return plots.saved(figure, path)


@in_style
def equivalences(equivalence: pd.DataFrame, path: str | os.PathLike, dataset: str) -> list[Path]:
    """How often two nets without prior predict different classes: of one merge, and of a merge and BASELINE.

    Args:
      equivalence: dataset, arm, inputs, merge_a, merge_b, kind, disagreement, disagreement_low, disagreement_high
        (fractions), n (seeds).
      path: of the figure.
      dataset: to draw.

    Raises:
      ConfigError: nothing to draw of the data set.
    """
    rows = of_dataset(equivalence[equivalence["arm"] == WITHOUT], dataset, "equivalence", "disagreement")
    merges = merges_of(pd.concat([rows["merge_a"], rows["merge_b"]]).to_frame("merge"))
    inputs = [name for name in INPUTS if name in set(rows["inputs"])]
    within = rows["merge_a"] == rows["merge_b"]
    to_baseline = ~within & ((rows["merge_a"] == BASELINE) | (rows["merge_b"] == BASELINE))
    other = rows["merge_a"].where(rows["merge_a"] != BASELINE, rows["merge_b"])
    kinds = {
        "seeds of the merge": (within & (rows["kind"] == "different seeds"), "o", "full"),
        f"to {BASELINE}, other seed": (to_baseline & (rows["kind"] == "different seeds"), "s", "none"),
        f"to {BASELINE}, same seed": (to_baseline & (rows["kind"] == "same seed"), "x", "none"),
    }
    figure = plots.new_figure(plots.WIDTH, 1.0 + 0.24 * len(merges))
    panels = figure.subplots(1, len(inputs), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, inputs, strict=True):
        for (chosen, marker, fill), shift in zip(kinds.values(), 1.3 * _dodge(len(kinds)), strict=True):
            for i, row in rows[chosen & (rows["inputs"] == name)].iterrows():
                y, colour = merges.index(other[i]) + shift, plots.style(other[i])[0]
                span = [100 * row["disagreement_low"], 100 * row["disagreement_high"]]
                axes.plot(span, [y, y], color=colour, linewidth=1.1)
                axes.plot(100 * row["disagreement"], y, marker, color=colour, markersize=3.5, fillstyle=fill)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=0)
        axes.set(title=INPUTS[name], xlabel="another class (%)")
    panels[0].set_yticks(range(len(merges)), merges)
    panels[0].set_ylim(len(merges) - 0.4, -0.6)
    ci = "95 % CI, " if rows["disagreement_low"].notna().any() else ""
    figure.suptitle(f"{dataset}, {WITHOUT}: inputs on which two nets differ; {ci}{seeds(rows['n'])}", fontsize=8)
    plots.legend(figure, {words: (marker, plots.GREY, fill) for words, (_, marker, fill) in kinds.items()})
    return plots.saved(figure, path)


def _points(axes: "Axes", values: pd.DataFrame, places: pd.Series, marker: str, colour: str) -> None:
    """Points with bars; the columns of `values` are the point and its ends, as a place is its y."""
    point, low, high = values.to_numpy(float).T
    axes.hlines(places, low, high, color=colour, linewidth=1.1)
    axes.plot(point, places, marker, color=colour, markersize=4, **EDGE)


def _reading_rows(panels: Sequence["Axes"], readings: Sequence[str]) -> None:
    for axes in panels:
        axes.axvline(0, color="black", linewidth=0.8, zorder=1)
        axes.grid(visible=False, axis="y")
        for y in range(0, len(readings), 2):
            axes.axhspan(y - 0.5, y + 0.5, color="black", alpha=0.04, linewidth=0)
    panels[0].set_yticks(
        range(len(readings)),
        [READINGS[r].words if r in READINGS else f"{r.replace('_', ' ')} (baseline)" for r in readings],
    )
    panels[0].set_ylim(len(readings) - 0.5, -0.5)


def _dodge(count: int) -> np.ndarray:
    """Places of so many points beside one another, around 0 and less than 1 apart in all."""
    return 0.17 * (np.arange(count) - (count - 1) / 2)
