"""Figures of experiments.degree, from the tables of `experiments.degree.tables`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.degree.tables import RULES
from resjax.analysis.plots import in_style, new_figure, saved, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = {"R0": "kernel, infinite width", "R4": "net, clipped", "R4u": "net, not clipped"}
_SMALLEST = 1e-9  # share of the energy that is drawn; below it is rounding


@in_style
def curves(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Error by the number of samples, a column per degree: the infinitely wide kernel with theory dashed; the nets."""
    degrees, merges = _order(table, "degree"), _order(table, "merge")
    figure, grid = _grid(len(_SHOWN), len(degrees))
    for line, (rung, name) in zip(grid, _SHOWN.items(), strict=True):
        for axes, degree in zip(line, degrees, strict=True):
            for merge in merges:
                own = table[(table["degree"] == degree) & (table["merge"] == merge)].sort_values("n")
                _band(axes, own[own["rung"] == rung], merge)
                if rung == "R0":
                    theory = own[own["rung"] == "theory"]
                    axes.plot(theory["n"], theory["mean"], color=style(merge)[0], linestyle="--", linewidth=0.8)
            sizes = sorted(table["n"].unique())
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [f"{n:g}" for n in sizes])
            axes.set_title(f"degree {degree}")
        line[0].set_ylabel(f"error\n{name}")
    figure.supxlabel("training samples; dashed: theory (eigenlearning)", fontsize=9)
    return _finish(figure, merges, path)


@in_style
def needed(table: pd.DataFrame, path: str | os.PathLike, level: float) -> list[Path]:
    """Samples needed by degree: kernel and net; open markers at the top: no size was enough."""
    merges, degrees = _order(table, "merge"), _order(table, "degree")
    figure, (line,) = _grid(1, len(_SHOWN), share=True)
    top = 2 * table["samples"].replace(np.inf, np.nan).max()
    for axes, (rung, name) in zip(line, _SHOWN.items(), strict=True):
        for i, merge in enumerate(merges):
            own = table[(table["rung"] == rung) & (table["merge"] == merge)].sort_values("degree")
            colour, marker = style(merge)
            x = own["degree"] + (i - (len(merges) - 1) / 2) * 0.1
            known = np.isfinite(own["samples"])
            axes.plot(x[known], own["samples"][known], color=colour, marker=marker, markersize=4, ls="", label=merge)
            for a, low, high in zip(x, own["samples_low"], own["samples_high"], strict=True):
                axes.plot([a, a], [low, min(high, top)], color=colour, linewidth=1)
            axes.plot(x[~known], [top] * (~known).sum(), color=colour, marker=marker, markersize=4, mfc="white", ls="")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(degrees)
        axes.set_title(name)
    line[0].set_ylabel(f"samples for error {level:g}")
    figure.supxlabel("degree of the teacher; open: more than there were", fontsize=9)
    return _finish(figure, merges, path)


@in_style
def speed(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Training error over the course less that of `add`, by degree: one rate for all, and rates of equal share."""
    table = table[table["mean"].notna()]
    merges, degrees = _order(table, "merge"), _order(table, "degree")
    figure, (line,) = _grid(1, 2, width=6.4, share=True)
    for axes, (rule, name) in zip(line, RULES.items(), strict=True):
        for i, merge in enumerate(merges):
            own = table[(table["rule"] == rule) & (table["merge"] == merge)]
            colour, marker = style(merge)
            x = own["degree"] + (i - (len(merges) - 1) / 2) * 0.12
            for a, low, high in zip(x, own["ci_low"], own["ci_high"], strict=True):
                axes.plot([a, a], [low, high], color=colour, linewidth=1)
            axes.plot(x, own["mean"], color=colour, marker=marker, markersize=4, linestyle="", label=merge)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(degrees)
        axes.set_title(name)
    line[0].set_ylabel("training error over the course,\nmerge - add (below 0: faster)")
    figure.supxlabel("degree of the teacher", fontsize=9)
    return _finish(figure, merges, path)


@in_style
def energies(table: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """Chebyshev energy along lines: a column per teacher; with activations, and without; dotted: before training."""
    merges, degrees = _order(table, "merge"), _order(table, "degree")
    figure, grid = _grid(2, len(degrees))
    for line, activation, name in zip(grid, ("relu", "none"), ("ReLU", "no activations"), strict=True):
        for axes, degree in zip(line, degrees, strict=True):
            for merge in merges:
                own = table[table[["degree", "merge", "activation"]].eq([degree, merge, activation]).all(axis=1)]
                own = own[own["k"] < own["k"].max()].assign(mean=own["mean"].clip(lower=_SMALLEST))
                for moment, dashes in (("trained", "-"), ("init", ":")):
                    shown = own[own["moment"] == moment]
                    label = merge if moment == "trained" else None
                    axes.plot(shown["k"], shown["mean"], dashes, color=style(merge)[0], linewidth=1, label=label)
            axes.set_yscale("log")
            axes.set_xticks([1, 4, 8, 12, 16])
            axes.set_title(f"teacher of degree {degree}")
        line[0].set_ylabel(f"share of the energy\n{name}")
    figure.supxlabel("Chebyshev degree along lines through the data; dotted: before training", fontsize=9)
    return _finish(figure, merges, path)


def _band(axes: "Axes", table: pd.DataFrame, merge: str) -> None:
    colour, marker = style(merge)
    low, high = (table[name].astype(float) for name in ("ci_low", "ci_high"))
    axes.fill_between(table["n"], low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(table["n"], table["mean"], color=colour, marker=marker, markersize=3.5, linewidth=1, label=merge)


def _grid(lines: int, columns: int, *, width: float = 7.0, share: bool = True) -> tuple["Figure", np.ndarray]:
    figure = new_figure(width, 0.8 + 1.9 * lines)
    return figure, figure.subplots(lines, columns, squeeze=False, sharey="row" if share else False)


def _finish(figure: "Figure", merges: Sequence[str], path: str | os.PathLike) -> list[Path]:
    handles = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [merge for merge in merges if merge in handles]
    figure.legend([handles[m] for m in names], names, loc="outside upper center", ncols=6, fontsize=8, frameon=False)
    return saved(figure, path)


def _order(table: pd.DataFrame, column: str) -> list:
    return list(dict.fromkeys(table[column]))
