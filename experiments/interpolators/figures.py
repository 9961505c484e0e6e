"""Figures of nets that interpolate, drawn from the tables of `experiments.interpolators.tables` and the race alone.

Each is 7 inches wide and written as PNG and PDF. Every function takes the path of its figure without suffix, and
returns the paths of both files.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.interpolators.tables import BASELINE
from resjax.analysis import plots
from resjax.config import ConfigError
from resjax.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches, a text width
GREY = "#595959"
ANNOTATED = 10  # merges at most whose distances are written into the map
SHOWN = 4  # readings
WORDS = {  # reading -> label of its axis
    "asam": "adaptive sharpness (nats)",
    "sam": "SAM sharpness (nats)",
    "box": "box sharpness (%)",
    "lambda_max": "largest eigenvalue",
    "trace": "trace of the Hessian",
    "margin": "margin, 10th percentile (logits)",
    "parameters": "parameters",
    "train_loss": "training loss",
    "epochs_to_fit": "epochs until 100 %",
}


def distance_map(distances: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """How often nets of different seeds disagree on test images, a square per pair of merges, alike ones side by side.

    The diagonal, between seeds of one merge, is framed.

    Args:
      distances: of `resjax.analysis.distances.distances`.
      path: of the figure.

    Raises:
      ConfigError: fewer than two merges.
    """
    import matplotlib

    square = _square(distances)
    if len(square) < 2:
        raise ConfigError("distances of fewer than two merges: no map to draw")
    square = square.iloc[(order := _alike_first(square.to_numpy())), order]
    merges = list(square.index)
    with matplotlib.rc_context(plots.RC | {"axes.grid": False, "axes.spines.left": False}):
        figure = plots.new_figure(WIDTH, 6.2)
        axes = figure.subplots()
        axes.set_facecolor("#E5E5E5")  # of pairs without a distance
        image = axes.imshow(100 * square, cmap="viridis", interpolation="nearest")
        size = 8 if len(merges) <= 20 else 6.5
        axes.set_xticks(range(len(merges)), merges, rotation=90, fontsize=size)
        axes.set_yticks(range(len(merges)), merges, fontsize=size)
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)
        for i in range(len(merges)):
            frame = {"fill": False, "edgecolor": "white", "linewidth": 1.2 if len(merges) <= 20 else 0.7}
            axes.add_patch(matplotlib.patches.Rectangle((i - 0.46, i - 0.46), 0.92, 0.92, **frame))
        if len(merges) <= ANNOTATED:
            for (i, j), value in np.ndenumerate(square.to_numpy()):
                dark = 100 * value < image.norm.vmin + 0.6 * (image.norm.vmax - image.norm.vmin)
                text = "" if np.isnan(value) else f"{100 * value:.1f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        figure.colorbar(
            image, ax=axes, shrink=0.8, label="test images that two nets of different seeds give another class (%)"
        )
        axes.set_title(f"framed: seeds of one merge; {_seeds(distances['n'])}")
        return plots.saved(figure, path)


def _square(distances: pd.DataFrame) -> pd.DataFrame:
    rows = distances[distances["kind"] == "different seeds"]
    merges = list(dict.fromkeys(rows["merge_a"]))
    square = rows.pivot(index="merge_a", columns="merge_b", values="disagreement").reindex(index=merges, columns=merges)
    return square.where(square.notna(), square.T)


def _alike_first(square: np.ndarray) -> np.ndarray:
    """The order of the leaves of average linkage, such that neighbours are as close as the tree allows."""
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    known = np.where(np.isnan(square), np.nanmax(square, initial=0), square)
    np.fill_diagonal(known, 0)
    condensed = squareform(known, checks=False)
    return hierarchy.leaves_list(hierarchy.linkage(condensed, "average", optimal_ordering=True))


@plots.in_style
def errors(differences: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """The test error of every merge with its 95 % CI, the smallest on top; the band is that of the baseline.

    Args:
      differences: `tables.differences` of the error, of one data set.
      path: of the figure.

    Raises:
      ConfigError: no merge has an error.
    """
    rows = differences[differences["mean"].notna()].sort_values("mean", ignore_index=True)
    if rows.empty:
        raise ConfigError("no merge has a test error: nothing to draw")
    figure = plots.new_figure(WIDTH, 0.9 + 0.22 * max(len(rows), 3))
    axes = figure.subplots()
    for y, row in rows.iterrows():
        colour, marker = plots.style(row["merge"])
        if row["merge"] == BASELINE:
            axes.axvline(100 * row["mean"], color="black", linewidth=0.8)
            axes.axvspan(100 * row["ci_low"], 100 * row["ci_high"], color="black", alpha=0.1, linewidth=0)
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot([100 * row["ci_low"], 100 * row["ci_high"]], [y, y], color=colour, linewidth=1.6)
        axes.plot(100 * row["mean"], y, color=colour, marker=marker, markersize=7, **edge)
        note = f"n = {row['n']:.0f}" + (f", {row['diverged']:.0f} diverged" if row["diverged"] else "")
        axes.text(1.01, y, note, transform=axes.get_yaxis_transform(), va="center", fontsize=7, color=GREY)
    axes.set_yticks(range(len(rows)), rows["merge"])
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == BASELINE else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    # The interval of two nets is so wide that no other would be seen.
    axes.set_xlim(0, 105 * max(rows["mean"].max(), rows["ci_high"].where(rows["n"] > 2).max()))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("test error of nets that interpolate (%), 95 % CI")
    axes.set_title(f"{rows.loc[0, 'dataset']}; band: {BASELINE}")
    return plots.saved(figure, path)


@plots.in_style
def readings(nets: pd.DataFrame, ranked: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """The test error over the SHOWN readings with the largest tau; a point is a merge, medians over its seeds.

    Args:
      nets: `interpolator_tables.compared` nets.
      ranked: `race.race` of them.
      path: of the figure.

    Raises:
      ConfigError: no reading has a tau.
    """
    ranked = ranked[ranked["tau"].notna()].head(SHOWN)
    if ranked.empty:
        raise ConfigError("no reading has a tau: nothing to draw")
    medians = nets[nets["interpolates"]].groupby("merge", sort=False)[[*ranked["predictor"], "error"]].median()
    figure = plots.new_figure(WIDTH, 5.3 + 0.17 * -(-len(medians) // 6))
    panels = figure.subplots(2, 2, sharey=True).ravel()
    for axes in panels[len(ranked) :]:
        axes.set_visible(False)
    for axes, row in zip(panels, ranked.to_dict("records"), strict=False):
        _points(axes, medians, row["predictor"])
        turned = "-" if row["sign"] < 0 else ""
        plain = " (plain baseline)" if row["baseline"] else ""
        axes.set_title(f"{turned}{row['predictor']}{plain}: tau = {Estimate.of(row, 'tau'):.2f}", fontsize=8)
    figure.supylabel("test error (%), median over seeds", fontsize=9)
    _legend(figure, list(medians.index))
    return plots.saved(figure, path)


def _points(axes: "Axes", medians: pd.DataFrame, reading: str) -> None:
    finite = medians[np.isfinite(medians[reading])]
    for merge, row in finite.iterrows():
        colour, marker = plots.style(merge)
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot(row[reading], 100 * row["error"], marker, color=colour, markersize=7, **edge)
    low, high = finite[reading].min(), finite[reading].max()
    if low > 0 and high > 30 * low:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=4)  # labels such as 0.00025 are wide
    axes.set_xlabel(WORDS[reading], fontsize=8)


def _legend(figure: "Figure", merges: list[str]) -> None:
    from matplotlib.lines import Line2D

    known = [*plots.MERGE_STYLES, *merges]
    handles = [
        Line2D([], [], color=plots.style(m)[0], marker=plots.style(m)[1], linestyle="none", markersize=5, label=m)
        for m in sorted(merges, key=known.index)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), columnspacing=0.8, handletextpad=0.1,
        fontsize=7.5,
    )  # fmt: skip


def _seeds(n: pd.Series) -> str:
    return f"n = {n.min()} seeds" if n.min() == n.max() else f"n = {n.min()} to {n.max()} seeds"
