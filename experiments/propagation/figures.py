"""Figures of signal and gradients at initialisation, from the tables of `experiments.propagation.tables`.

Theory is dashed, or a black bar; bands and bars are 95 % CIs over seeds.
"""

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resjax.analysis.plots import in_style, new_figure, saved, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NORMS = {"bn": "BatchNorm", "ln": "LayerNorm"}
THEORY = {"linestyle": (0, (4, 1.5)), "linewidth": 1.0}
INITIALIZERS = {"naive uniform": ("#D55E00", "v"), "Xavier": ("#0072B2", "s"), "He": ("#000000", "o")}
MOMENTS = {"untrained": (0, (1.5, 1.2)), "trained": "-", "": (0, (5, 1, 1, 1))}  # "": a plain stack


@in_style
def blocks(table: pd.DataFrame, out: str) -> list[Path]:
    """Power, spread of the samples and gain from block to block of the deepest ResNet, a column per norm."""
    nets = table[table["part"] == "depth"]
    nets = nets[nets["depth"] == nets["depth"].max()]
    panels = {
        "power": r"power $E z^2$",
        "log_norm_std": "std of ln ||z||\nover images",
        "gain": "gain of gradient\npower",
    }
    figure = new_figure(7.0, 6.6)
    grid = figure.subplots(len(panels), len(NORMS), sharex=True, sharey="row")
    for i, (norm, title) in enumerate(NORMS.items()):
        for axes, (name, label) in zip(grid[:, i], panels.items(), strict=True):
            for merge, own in nets[nets["norm"] == norm].groupby("merge", sort=False):
                _line(axes, own, "number", name, merge)
            axes.set_yscale("log")
            if not i:
                axes.set_ylabel(label)
        grid[0, i].set_title(f"ResNet-{nets['depth'].max():.0f}, {title}, n = {nets['n'].max():.0f}")
        grid[-1, i].set_xlabel("block")
        for axes in grid[:, i]:
            axes.xaxis.get_major_locator().set_params(integer=True)
            for start in nets.groupby("stage")["number"].min()[1:]:
                axes.axvline(start - 0.5, color="#BFBFBF", linewidth=0.8, zorder=0)
    _legend(figure, grid[0, 0])
    return saved(figure, out)


@in_style
def gains(table: pd.DataFrame, out: str) -> list[Path]:
    """Gain of gradient power per block, of every net from top to bottom of each merge's rows, beside theory's."""
    kept = table[table["part"].isin(["wide", "depth"])]
    merges = list(dict.fromkeys(kept["merge"]))
    nets = [("wide", d) for d in sorted(set(kept.loc[kept["part"] == "wide", "depth"]))]
    nets += [("depth", d) for d in sorted(set(kept.loc[kept["part"] == "depth", "depth"]))]
    figure = new_figure(7.0, 1.1 + 0.16 * len(merges) * (len(nets) + 1))
    panels = figure.subplots(1, len(NORMS), sharey=True, sharex=True)
    for axes, (norm, title) in zip(panels, NORMS.items(), strict=True):
        axes.axvline(1, color="black", linewidth=0.8)
        for i, merge in enumerate(merges):
            for j, (part, depth) in enumerate(nets):
                chosen = (kept["merge"] == merge) & (kept["norm"] == norm)
                own = kept[chosen & (kept["part"] == part) & (kept["depth"] == depth)]
                for _, row in own.iterrows():
                    _gain(axes, row, i + (j + 0.5) / (len(nets) + 1))
        axes.set_title(f"{title}, n = {kept['n'].max():.0f}")
        axes.set_xlabel("gain of gradient power per block")
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks([i + len(nets) / 2 / (len(nets) + 1) for i in range(len(merges))], merges)
    panels[0].set_ylim(len(merges), -0.15)
    words = ", ".join(f"ResNet-{depth:.0f}" if part == "depth" else f"mlp-{depth:.0f}" for part, depth in nets)
    figure.supxlabel(f"of each merge, from top to bottom: {words}; bar: theory", fontsize=8)
    return saved(figure, out)


def _gain(axes: "Axes", row: pd.Series, y: float) -> None:
    colour, marker = style(row["merge"])
    if np.isfinite(row["predicted_gain"]):
        axes.plot([row["predicted_gain"]] * 2, [y - 0.08, y + 0.08], color="black", linewidth=1.4, zorder=3)
    axes.plot([row["gain_low"], row["gain_high"]], [y, y], color=colour, linewidth=1.4)
    axes.plot(row["gain"], y, color=colour, marker=marker, markersize=4.5)


@in_style
def scales(table: pd.DataFrame, out: str) -> list[Path]:
    """Power of the last z, gain per block, and the depth that stays within a factor e, against the scale g."""
    swept = table[table["part"] == "scale"]
    count, most = swept["blocks"].max() + 1, swept["safe_depth"].max()  # theory looks no farther
    panels = {
        ("last_power", "predicted_power"): f"power of z\nafter {count:.0f} blocks",
        ("gain", "predicted_gain"): "gain of gradient power\nper block",
        ("safe", "safe_depth"): f"blocks within a factor e\n(of {count - 1:.0f}; theory: of {most:.0f})",
    }
    figure = new_figure(7.0, 4.6)
    grid = figure.subplots(len(NORMS), len(panels), sharex=True, sharey="col")
    for row, (norm, title) in zip(grid, NORMS.items(), strict=True):
        for axes, ((name, predicted), label) in zip(row, panels.items(), strict=True):
            for merge, own in swept[swept["norm"] == norm].groupby("merge", sort=False):
                _line(axes, own.sort_values("scale"), "scale", name, merge, predicted=predicted)
            if name == "safe":
                axes.set_yscale("symlog", linthresh=1)
                axes.set_yticks([0, 1, 2, 5, 10, 30], ["0", "1", "2", "5", "10", "30"])
            else:
                axes.set_yscale("log")
                if name == "gain":
                    _plain_ticks(axes.yaxis)
            axes.set_xscale("log")
            _plain_ticks(axes.xaxis)
            if norm == "bn":
                axes.set_title(label)
        row[0].set_ylabel(f"{title}, n = {swept['n'].max():.0f}")
    for axes in grid[-1]:
        axes.set_xlabel("scale g")
    _legend(figure, grid[0, 0])
    return saved(figure, out)


@in_style
def literal(table: pd.DataFrame, out: str) -> list[Path]:
    """Living activations and dead units of relu(s*f), option A beside option B."""
    looks = {
        "alive": ("z not 0", "#0072B2", "o"),
        "dead_units": ("units 0 on all images", "#D55E00", "X"),
    }
    figure = new_figure(7.0, 3.1)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, option in zip(panels, "AB", strict=True):
        own = table[table["shortcut"] == option]
        for name, (label, colour, marker) in looks.items():
            low, high = (own[f"{name}_{end}"] for end in ("low", "high"))
            axes.fill_between(own["number"], low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(own["number"], own[name], color=colour, marker=marker, markersize=5, label=label)
        first = own.loc[own["stage"] == 1, "number"]
        axes.plot(first, 0.5**first, color="black", label=r"theory, $2^{-k}$", **THEORY)
        axes.set_title(f"option {option}, ResNet-{own['depth'].max():.0f}, n = {own['n'].max():.0f}")
        axes.set_xlabel("block")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("share")
    _legend(figure, panels[0], theory=False)
    return saved(figure, out)


@in_style
def stacks(layers: pd.DataFrame, out: str) -> list[Path]:
    """Standard deviations in plain stacks, forwards and backwards: every seed, and the geometric mean as markers.

    Args:
      layers: of `experiments.propagation.stack`, with initializer, activation, seed and predicted.
      out: how the files' names begin.
    """
    figure = new_figure(7.0, 5.0)
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    for row, (activation, title) in zip(grid, {"none": "linear", "relu": "ReLU"}.items(), strict=True):
        own = layers[layers["activation"] == activation]
        for axes, column, words in zip(row, ("std", "gradient_std"), ("of y", "of the gradient"), strict=True):
            _stack(axes, own, column)
            axes.set_title(f"{title} stack, n = {own['seed'].nunique()}: std {words}")
    for axes in grid[-1]:
        axes.set_xlabel("layer")
    _legend(figure, grid[0, 0])
    return saved(figure, out)


@in_style
def zeros(table: pd.DataFrame, out: str) -> list[Path]:
    """Zeros of ReLUs beside units that are never active, layer by layer; `table` is of `signal_tables.zeros`."""
    figure = new_figure(7.0, 2.8 + 0.2 * ceil(table["net"].nunique() / 3))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    names = ("share of zeros", "share of units that are 0 on all images")
    for axes, name, label in zip(panels, ("zero", "never_active"), names, strict=True):
        for (net, merge, moment), own in table.groupby(["net", "merge", "moment"], sort=False):
            _zeros(axes, own, name, net, style(merge), MOMENTS[moment])
        axes.set_title(label)
        axes.set_xlabel("ReLU")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(-0.03, 1)
    _legend(figure, panels[0], theory=False, columns=3)
    return saved(figure, out)


def _stack(axes: "Axes", layers: pd.DataFrame, column: str) -> None:
    for name, own in layers.groupby("initializer", sort=False):
        colour, marker = INITIALIZERS[name]
        log = np.log(own.pivot_table(index="layer", columns="seed", values=column))
        mean, depth = np.exp(log.mean(axis=1)), log.index.max()
        axes.plot(log.index, np.exp(log), color=colour, linewidth=0.5, alpha=0.4)
        axes.plot(log.index, mean, color=colour, marker=marker, markersize=3, linestyle="none", label=name)
        steps = log.index - 1 if column == "std" else depth - log.index
        start = mean.iloc[0] if column == "std" else mean.iloc[-1]
        axes.plot(log.index, start * own["predicted"].iloc[0] ** steps, color=colour, **THEORY)
    axes.set_yscale("log")


def _zeros(axes: "Axes", own: pd.DataFrame, name: str, net: str, look: tuple[str, str], dashes) -> None:
    colour, marker = look
    axes.fill_between(own["number"], own[f"{name}_low"], own[f"{name}_high"], color=colour, alpha=0.25, linewidth=0)
    axes.plot(
        own["number"], own[name], color=colour, marker=marker, markersize=4, linewidth=1.0, linestyle=dashes,
        label=f"{net} (n = {own['n'].max()})",
    )  # fmt: skip


def _line(axes: "Axes", own: pd.DataFrame, x: str, name: str, merge: str, predicted: str | None = None) -> None:
    colour, marker = style(merge)
    axes.fill_between(own[x], own[f"{name}_low"], own[f"{name}_high"], color=colour, alpha=0.2, linewidth=0)
    axes.plot(own[x], own[name], color=colour, marker=marker, markersize=3.5, linewidth=1.1, label=merge)
    predicted = predicted or f"predicted_{name}"
    if predicted in own:
        # Where nothing is measured, as the gain of the first block, theory would only stretch the axis.
        axes.plot(own[x], own[predicted].astype(float).where(own[name].notna()), color=colour, **THEORY)


def _legend(figure: "Figure", axes: "Axes", *, theory: bool = True, columns: int = 5) -> None:
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    if theory:
        handles, labels = [*handles, Line2D([], [], color="black", **THEORY)], [*labels, "theory"]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _plain_ticks(axis) -> None:
    """Numbers on a logarithmic axis that spans two decades or less."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
