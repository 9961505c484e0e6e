"""Figures of the saturation study, drawn from tables alone.

Each is 7 inches wide and written as PNG and PDF; merges look as in every other figure (`plots.style`), and the
cells of one merge differ by their dashes. Bands and bars are 95 % CI over seeds.
"""

import os
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.saturation.tables import METRICS, gate_names
from resjax import stats
from resjax.analysis import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches, a text width
GREY = "#595959"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1, 1, 1)))  # of the cells of one merge
QUANTITIES = {  # of `saturation.over_training`; zeros tell something where a ReLU follows, not here
    "distance": "distance to an asymptote\n(shares of the range)",
    "saturated": "values within 5 % of an\nasymptote (%)",
    "slope_share": "rms slope /\nlargest slope",
    "grad_ratio": "gradient at f /\ngradient at z (rms)",
    "update_ratio": "update / weights\nbehind the gate",
    "stuck": "units saturated on\nall samples (%)",
}
ENLARGED = 8  # pixels of a side of a mask, as drawn
PERCENT = ("saturated", "stuck")
LOGARITHMIC = ("grad_ratio", "update_ratio")


@plots.in_style
def histograms(gates: pd.DataFrame, path: str | os.PathLike, lost: int = 0) -> list[Path]:
    """Draws where the values of each gate lie in its range, over training; means over seeds and blocks.

    Args:
      gates: rows of `probes.saturation` with the columns cell, seed and epoch.
      path: of the figure, to which .png and .pdf are appended.
      lost: how many replicas diverged and are left out.
    """
    from matplotlib.colors import PowerNorm

    gates = gates[gates["gate"] != ""]
    bins = sorted((name for name in gates if name.startswith("bin_")), key=lambda name: int(name[4:]))
    kinds = list(gates.groupby(gate_names(gates), sort=False))
    columns = min(5, len(kinds))
    figure = plots.new_figure(WIDTH, 0.6 + 1.35 * ceil(len(kinds) / columns))
    panels = _grid(figure, len(kinds), columns, sharex=True, sharey=True)
    for axes, (name, own) in zip(panels, kinds, strict=True):
        share = 100 * own.groupby("epoch")[bins].mean()
        edges = _edges(share.index.to_numpy())
        norm = PowerNorm(0.5, 0, 50)
        drawn = axes.pcolormesh(edges, np.linspace(0, 1, len(bins) + 1), share.T, norm=norm, cmap="viridis")
        axes.grid(visible=False)
        axes.set_title(name.replace("gate_granularity", "granularity"), fontsize=8)
        axes.set_yticks([0, 0.5, 1])
    bar = figure.colorbar(drawn, ax=panels, ticks=[0, 1, 5, 10, 20, 30, 50], extend="max", pad=0.01, aspect=30)
    bar.set_label("gate values (%) per 1/16 of the range", fontsize=8)
    figure.supxlabel(
        f"epoch (0: before training); mean over blocks and {gates['seed'].nunique()} seeds{_left_out(lost)}",
        fontsize=9,
    )
    figure.supylabel("place in the gate's range", fontsize=9)
    return plots.saved(figure, path)


@plots.in_style
def course(table: pd.DataFrame, path: str | os.PathLike, lost: int = 0) -> list[Path]:
    """Draws the QUANTITIES of `saturation.over_training` over the epochs; `lost` replicas diverged."""
    from matplotlib.ticker import FixedLocator, NullLocator

    table = table.assign(cell=gate_names(table))
    dashes = _dashes(table)
    figure = plots.new_figure(WIDTH, 5.6)
    panels = figure.subplots(2, 3, sharex=True).ravel()
    for axes, (quantity, label) in zip(panels, QUANTITIES.items(), strict=True):
        factor = 100 if quantity in PERCENT else 1
        for (cell, merge), own in table[table["quantity"] == quantity].groupby(["cell", "merge"], sort=False):
            own = own[(own["mean"] > 0) | (quantity not in LOGARITHMIC)]  # the last step of a cosine has rate 0
            colour, marker = plots.style(merge)
            low, mean, high = (factor * own[key] for key in ("ci_low", "mean", "ci_high"))
            axes.fill_between(own["epoch"], low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                own["epoch"], mean, color=colour, linestyle=dashes[cell], marker=marker,
                markersize=3, linewidth=1, label=cell,
            )  # fmt: skip
        axes.set_ylabel(label, fontsize=8)
        if quantity in LOGARITHMIC:
            _logarithmic(axes)
        else:
            axes.set_ylim(bottom=0)
        if quantity in PERCENT:  # most are small
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set(major_locator=FixedLocator([0, 0.5, 1, 2, 5, 10, 20, 50, 100]), minor_locator=NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
    for axes in panels[3:]:
        axes.set_xlabel("epoch")
    handles = {line.get_label(): line for axes in panels for line in axes.lines}
    n = table["n"].max()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=7, handlelength=4)
    figure.suptitle(f"mean over the blocks of a net, 95 % CI over seeds (n = {n}){_left_out(lost)}", fontsize=9)
    return plots.saved(figure, path)


@plots.in_style
def rates(nets: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Draws final training loss and accuracy over the learning rate, a column per schedule."""
    from matplotlib.ticker import FixedLocator, NullLocator

    schedules = list(dict.fromkeys(nets["schedule"]))
    ticks = sorted(nets["learning_rate"].unique())
    figure = plots.new_figure(WIDTH, 4.4)
    panels = figure.subplots(2, len(schedules), sharex=True, sharey="row", squeeze=False)
    for (loss, accuracy), schedule in zip(panels.T, schedules, strict=True):
        own = nets[nets["schedule"] == schedule]
        for merge, rows in own.groupby("merge", sort=False):
            _levels(loss, rows, "learning_rate", "log_train_loss", merge, lambda v: 10**v)
            _levels(accuracy, rows, "learning_rate", "OA", merge, lambda v: 100 * v)
        loss.set_title(schedule)
        _logarithmic(loss)
        loss.set_xscale("log")
        loss.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator())
        loss.xaxis.set_major_formatter("{x:g}")
        accuracy.set_xlabel("learning rate")
    panels[0, 0].set_ylabel("final training loss (nats)")
    panels[1, 0].set_ylabel("overall accuracy (%)")
    lines = {line.get_label(): line for line in panels[0, 0].lines if not line.get_label().startswith("_")}
    lost = int((nets["status"] == "diverged").sum())
    title = f"geometric mean of the loss, mean of the accuracy; 95 % CI, n = {nets['seed'].nunique()} seeds"
    figure.suptitle(title + (f"; {lost} of {len(nets)} replicas diverged" if lost else ""), fontsize=9)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    return plots.saved(figure, path)


@plots.in_style
def effects(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Draws paired differences of `saturation.effects`, a panel per metric, to the `add` that each cell has."""
    names = list(dict.fromkeys(table["cell"]))
    figure = plots.new_figure(WIDTH, 1.2 + 0.27 * len(names))
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, (metric, (label, factor, unit, _)) in zip(panels, METRICS.items(), strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(visible=False, axis="y")
        for row in table[table["metric"] == metric].itertuples():
            colour, marker = plots.style(row.merge)
            y = names.index(row.cell)
            axes.plot([factor * row.difference_low, factor * row.difference_high], [y, y], color=colour, lw=1.5)
            axes.plot(factor * row.difference, y, color=colour, marker=marker, markersize=6, mec="white", mew=0.5)
        axes.set_xlabel(f"{_wrapped(label)}\n({unit})", fontsize=8)
    notes = table.drop_duplicates("cell").set_index("cell")
    ticks = [
        f"{name} (n = {notes['pairs'][name]}"
        + (f", {notes['diverged'][name]} diverged)" if notes["diverged"][name] else ")")
        for name in names
    ]
    panels[0].set_yticks(range(len(names)), ticks, fontsize=8)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle("difference to add, with the ReLU or branch rate of the cell; paired by seed, 95 % CI", fontsize=9)
    return plots.saved(figure, path)


@plots.in_style
def number(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Draws paired differences to `add` over the column `blocks`, the number of gated ones."""
    table = table.assign(variant=table["cell"].str.replace(r", \d+ gated$", "", regex=True))
    dashes = _dashes(table.assign(cell=table["variant"]))
    variants = list(dict.fromkeys(table["variant"]))
    figure = plots.new_figure(WIDTH, 3.0)
    panels = figure.subplots(1, len(METRICS))
    for axes, (metric, (label, factor, unit, _)) in zip(panels, METRICS.items(), strict=True):
        axes.axhline(0, color="black", linewidth=0.8)
        for k, variant in enumerate(variants):
            own = table[(table["metric"] == metric) & (table["variant"] == variant)].sort_values("blocks")
            colour, marker = plots.style(own["merge"].iloc[0])
            middle, low, high = (factor * own[f"difference{end}"] for end in ("", "_low", "_high"))
            x = own["blocks"] + 0.06 * (k - (len(variants) - 1) / 2)
            bars = axes.errorbar(
                x, middle, [middle - low, high - middle], color=colour, marker=marker, markersize=4,
                linestyle=dashes[variant], linewidth=1, label=variant,
            )  # fmt: skip
            bars[2][0].set_linestyle("-")
        axes.set_xticks(sorted(table["blocks"].unique()))
        axes.set_xlabel("gated blocks")
        axes.set_ylabel(f"{_wrapped(label)}\n({unit})", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=7, handlelength=4)
    n = table["pairs"].max()
    figure.suptitle(f"difference to add; paired by seed, 95 % CI (n = {n})", fontsize=9)
    return plots.saved(figure, path)


@plots.in_style
def masks(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Draws the masks of trained nets on the same images, a panel per block, means over seeds.

    Args:
      table: of `saturation.maps`.
      path: of the figure, to which .png and .pdf are appended.
    """
    import matplotlib.cm
    import matplotlib.colors

    blocks, names = list(dict.fromkeys(table["block"])), list(dict.fromkeys(table["cell"]))
    means = table.set_index(["cell", "block", "image", "row", "column"])[["relative", "ink"]].sort_index()
    shown = range(table["image"].nunique())
    gray, tones = matplotlib.colormaps["gray_r"], matplotlib.colormaps["PuOr_r"]
    figure = plots.new_figure(WIDTH, 1.1 + 0.5 * (1 + len(names)))
    panels = figure.subplots(1, len(blocks), squeeze=False)[0]
    for axes, block in zip(panels, blocks, strict=True):
        ink = _mosaic(means["ink"], names[:1], blocks[0], shown)
        doublings = _mosaic(np.log2(means["relative"].clip(lower=1e-6)), names, block, shown)
        ink = (ink - np.nanmin(ink)) / np.nanmax(ink - np.nanmin(ink))
        axes.imshow(np.vstack([gray(ink), tones((doublings + 1) / 2)]))
        axes.set_title(f"masks of {block}")
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    words = ["image", *(name.replace("gate_granularity ", "granularity\n") for name in names)]
    panels[0].set_yticks((np.arange(len(words)) + 0.5) * len(ink) - 1, words, fontsize=8)
    panels[0].tick_params(length=0)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-1, 1), tones)
    bar = figure.colorbar(
        scale, ax=panels, orientation="horizontal", aspect=60, shrink=0.6, ticks=[-1, 0, 1], extend="both"
    )
    bar.ax.set_xticklabels(["1/2", "1", "2"])
    bar.set_label(f"mask / its mean over positions; mean over {table['n'].max()} seeds", fontsize=8)
    return plots.saved(figure, path)


def _mosaic(values: pd.Series, names: list[str], block: str, images: Iterable[int]) -> np.ndarray:
    """The maps of a block in one array, a row of them per name, with gaps of nan; small maps are enlarged."""
    rows = []
    for name in names:
        maps = [values[name, block, image].unstack().to_numpy() for image in images]
        maps = [np.kron(own, np.ones((max(ENLARGED // len(own), 1),) * 2)) for own in maps]
        rows.append(np.hstack([np.pad(own, ((0, 1), (0, 1)), constant_values=np.nan) for own in maps]))
    return np.vstack(rows)


def _levels(axes: "Axes", rows: pd.DataFrame, x: str, metric: str, merge: str, unit) -> None:
    """Mean and CI of `metric` over x; `unit` is applied to both."""
    found = [(at, stats.mean_ci(own[metric].dropna())) for at, own in rows.groupby(x) if own[metric].notna().any()]
    colour, marker = plots.style(merge)
    bounds = np.array([[ci["mean"], ci["ci_low"], ci["ci_high"]] for _, ci in found], float).reshape(-1, 3)
    at, (mean, low, high) = [at for at, _ in found], unit(bounds).T
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(at, mean, color=colour, marker=marker, markersize=5, linewidth=1.3, label=merge)


def _dashes(table: pd.DataFrame) -> dict[str, object]:
    """Cell -> dashes, so that the cells of a merge differ."""
    by_merge = table.drop_duplicates("cell").groupby("merge", sort=False)["cell"]
    return {cell: DASHES[i % len(DASHES)] for _, own in by_merge for i, cell in enumerate(own)}


def _logarithmic(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_formatter=NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")


def _edges(epochs: np.ndarray) -> np.ndarray:
    """Borders between epochs, for cells around them."""
    middles = (epochs[1:] + epochs[:-1]) / 2
    first = middles[0] if len(middles) else epochs[0] + 0.5
    last = middles[-1] if len(middles) else epochs[0] - 0.5
    return np.array([2 * epochs[0] - first, *middles, 2 * epochs[-1] - last], float)


def _grid(figure: "Figure", count: int, columns: int, **shared) -> list["Axes"]:
    """So many panels, row by row; what is left of the last row stays empty."""
    panels = figure.subplots(ceil(count / columns), columns, squeeze=False, **shared).ravel()
    for axes in panels[count:]:
        axes.remove()
    return list(panels[:count])


def _left_out(lost: int) -> str:
    return f"; {lost} diverged and left out" if lost else ""


def _wrapped(label: str) -> str:
    return label.replace(", ", ",\n").replace(" of the ", " of the\n")
