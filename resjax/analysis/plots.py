"""Figures, drawn from tables alone. A merge has the same colour and marker in every figure.

Colours are safe for colour-blind readers: those of Okabe and Ito (2008, "Color Universal Design") for the
core merges, with grey in place of their yellow, which white paper swallows. The other merges have a lighter
or darker tone of their family's colour; the marker tells them apart.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resjax import records, stats
from resjax.analysis import tables
from resjax.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MERGE_STYLES: dict[str, tuple[str, str]] = {  # merge -> colour, marker
    # Sums
    "add": ("#000000", "o"),
    "add_bn": ("#4D4D4D", "s"),
    "add_zero": ("#4D4D4D", "D"),
    # Products
    "mul": ("#D55E00", "X"),
    "mul_bn": ("#E69F00", "s"),
    "mul_bn1": ("#0072B2", "D"),
    "mul_res": ("#8C3B00", "^"),
    "mul_rezero": ("#8C3B00", "v"),
    "homotopy": ("#8C3B00", "P"),
    "geo": ("#F0986B", "<"),
    "max": ("#F0986B", ">"),
    # Sigmoid gates and their controls
    "gate_sig": ("#009E73", "^"),
    "gate_sig_bn": ("#56B4E9", "v"),
    "sig_sig": ("#CC79A7", "P"),
    "gate_2sig": ("#00543D", "o"),
    "gate_alpha": ("#00543D", "s"),
    "gate_tanh": ("#00543D", "D"),
    "gate_exp": ("#00543D", "X"),
    "iand": ("#66C9AD", "<"),
    "gate_granularity": ("#66C9AD", ">"),
    "arl": ("#66C9AD", "p"),
    "nal": ("#66C9AD", "h"),
    # Second order beside the sum
    "pi": ("#00406B", "p"),
    "pi_alpha": ("#00406B", "h"),
    "sort": ("#00406B", "*"),
    # Gates from the block's input
    "highway": ("#7A3E62", "d"),
    "shortcut_gate": ("#7A3E62", "H"),
    # Attention
    "se": ("#7F7F7F", "p"),
    "cbam": ("#A6A6A6", "h"),
    "eca": ("#A6A6A6", "*"),
    "simam": ("#A6A6A6", "d"),
    # Forward of one, backward of another
    "swap_fwdmul_bwdadd": ("#B39700", "^"),
    "swap_fwdadd_bwdmul": ("#B39700", "v"),
    "stopgrad_s": ("#B39700", "<"),
    "stopgrad_f": ("#B39700", ">"),
    # Of 2024 to 2026: scalars and low rank, gates, products, connections
    "laurel_rw": ("#6B5B00", "o"),
    "laurel_lr": ("#6B5B00", "s"),
    "x0": ("#6B5B00", "D"),
    "delta": ("#6B5B00", "X"),
    "branch_gate": ("#2E8B8B", "o"),
    "branch_gate_group": ("#2E8B8B", "s"),
    "pi_sigmoid": ("#00406B", "o"),
    "pi_sigmoid_f": ("#00406B", "s"),
    "pi_sigmoid_two_cells": ("#00406B", "D"),
    "glu": ("#8C3B00", "o"),
    "pure": ("#8C3B00", "s"),
    "mul_two_cells": ("#8C3B00", "D"),
    "mul_bn1_two_cells": ("#8C3B00", "d"),
    "two_cells": ("#4D4D4D", "^"),
    "attnres": ("#5B2C83", "o"),
    "attnres_mul": ("#5B2C83", "X"),
    "dense": ("#B0569E", "o"),
    "dense_mul": ("#B0569E", "X"),
    "hc": ("#1B7837", "o"),
    "hc_mul": ("#1B7837", "X"),
    "mhc": ("#7FBF7B", "o"),
    "mhc_mul": ("#7FBF7B", "X"),
}
GREY = "#595959"
WIDTH = 7.0  # inches, a text width
UNKNOWN = ("#7F7F7F", ".")  # a merge registered elsewhere

RC = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType, embedded: text stays text, and journals accept it
    "ps.fonttype": 42,
    "svg.fonttype": "none",
}
SPLITS = {  # split -> colour (None: the merge's), dashes
    "train": ("#7F7F7F", (0, (4, 1.5))),
    "validation": ("#7F7F7F", (0, (1, 1.2))),
    "test": (None, "-"),
}


def in_style_of(rc: Mapping) -> Callable[[Callable], Callable]:
    """Decorates a function that draws: matplotlib is imported when it is called, and `rc` holds while it draws.

    The user's matplotlibrc has no say, or equal tables would give other figures.
    """

    def decorated(draw: Callable) -> Callable:
        @wraps(draw)
        def styled(*args, **options):
            matplotlib = _matplotlib()
            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                matplotlib.rcParams.update(rc)
                return draw(*args, **options)

        return styled

    return decorated


def _matplotlib() -> ModuleType:
    """Imported also where MPLBACKEND is a word that it does not know: files need no backend."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


in_style = in_style_of(RC)


def of_tables(
    read: Mapping[str, pd.DataFrame], out: str | os.PathLike, plan: Mapping[str, tuple[str, Callable]]
) -> list[Path]:
    """Draws the figures OUT<name> of a study.

    Args:
      read: its tables, of `tables.written`.
      out: how the names begin.
      plan: name -> (suffix of a table, function of the table and the figure's path). What is not there is not drawn.
    """
    drawn = [draw(read[suffix], f"{out}{name}") for name, (suffix, draw) in plan.items() if suffix in read]
    return [path for paths in drawn for path in paths]


def style(merge: str) -> tuple[str, str]:
    """Colour and marker of a merge."""
    return MERGE_STYLES.get(merge, UNKNOWN)


@in_style
def curves(run_dir: str | os.PathLike) -> Path:
    """Draws loss and accuracy per epoch into `curves.png` of the run directory.

    A thin line is a replica; the thick one is the mean, and the band its pointwise 95 % CI, over the replicas
    that did not diverge. A cross ends the line of one that did.

    Raises:
      ValueError: a file of the run directory is missing or damaged; one line that names it.
    """
    run_dir = Path(run_dir)
    course, about = tables.load(run_dir), tables.config_columns(tables.read_config(run_dir))
    broken = course[(course["split"] == "train") & (course["loss"].isna() | course["grad_norm"].isna())]
    diverged = set(broken["seed"])
    figure = new_figure(7.0, 2.9)
    loss, accuracy = figure.subplots(1, 2)
    lines = {}
    for split, (colour, dashes) in SPLITS.items():
        rows = course[course["split"] == split]
        look = {"color": colour or style(about["merge"])[0], "linestyle": dashes}
        if len(rows):
            lines[split] = _course(loss, rows, "loss", 1, diverged, look)
            _course(accuracy, rows, "accuracy", 100, diverged, look)
    for axes, label in ((loss, f"loss ({_loss_unit(run_dir)})"), (accuracy, "accuracy (%)")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if (course["loss"] > 0).any():
        loss.set_yscale("log")
        _plain_log_ticks(loss)
    accuracy.legend(lines.values(), lines.keys(), loc="lower right")
    lost = f", {len(diverged)} diverged" if diverged else ""
    n = course["seed"].nunique()
    figure.suptitle(f"{about['merge']} on {about['dataset']}, depth {about['depth']}, n = {n}{lost}")
    return save(figure, run_dir / records.CURVES)


def _course(axes: "Axes", rows: pd.DataFrame, metric: str, scale: float, diverged: set, look: dict) -> "Line2D":
    """Draws one metric of one split; returns the line of the mean, for the legend."""
    rows = rows.dropna(subset=[metric])
    for seed, of_seed in rows.groupby("seed"):
        x, y = of_seed["epoch"], scale * of_seed[metric]
        axes.plot(x, y, linewidth=0.5, alpha=0.35, **look)
        if seed in diverged:
            axes.plot(x.iloc[-1:], y.iloc[-1:], color=look["color"], marker="x", markersize=5)
    kept = rows[~rows["seed"].isin(diverged)]
    points = [(epoch, stats.mean_ci(values)) for epoch, values in kept.groupby("epoch")[metric]]
    epochs = [epoch for epoch, _ in points]
    bounds = np.array([[ci["mean"], ci["ci_low"], ci["ci_high"]] for _, ci in points], float).reshape(-1, 3)
    mean, low, high = scale * bounds.T
    axes.fill_between(epochs, low, high, color=look["color"], alpha=0.18, linewidth=0)
    marker = "o" if len(epochs) == 1 else None  # one point makes no line
    return axes.plot(epochs, mean, linewidth=1.6, marker=marker, markersize=3, **look)[0]


@in_style
def forest(
    differences: pd.DataFrame,
    path: str | os.PathLike,
    baseline: str = "add",
    label: str = "overall accuracy",
    scale: float = 100,
    unit: str = "percentage points",
) -> list[Path]:
    """Draws the paired differences to the baseline with their 95 % CI, a panel per dataset.

    Args:
      differences: of `tables.differences`.
      path: of the figure, to which .png and .pdf are appended.
      baseline: the merge that was subtracted.
      label: what was compared.
      scale: factor from the table's unit to `unit`.
      unit: of the drawn differences.

    Returns:
      The paths of both files.
    """
    merges = [m for m in dict.fromkeys(differences["merge"]) if m != baseline]
    datasets = list(dict.fromkeys(differences["dataset"]))
    figure = new_figure(1.5 + 2.7 * len(datasets), 1.35 + 0.24 * max(len(merges), 2))
    panels = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        rows = differences[differences["dataset"] == dataset].set_index("merge")
        _forest_panel(axes, rows, merges, scale)
        axes.set_title(_forest_title(dataset, rows, baseline, scale))
    _spread_out(panels, differences, scale)
    panels[0].set_yticks(range(len(merges)), merges)
    panels[0].set_ylim(len(merges) - 0.4, -0.6)
    words = (f"difference in {label} to {baseline}", f"({unit}; paired by seed, 95 % CI)")
    figure.supxlabel((" " if len(datasets) > 1 else "\n").join(words), fontsize=9)
    return saved(figure, path)


def _forest_title(dataset: str, rows: pd.DataFrame, baseline: str, scale: float) -> str:
    if baseline not in rows.index or not rows.loc[baseline, "n"]:
        return f"{dataset}\nno {baseline}"
    reference = rows.loc[baseline]
    return f"{dataset}\n{baseline}: {scale * reference['mean']:.2f} %, n = {reference['n']:.0f}"


def _forest_panel(axes: "Axes", rows: pd.DataFrame, merges: Sequence[str], scale: float) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    beside = axes.get_yaxis_transform()
    for y, merge in enumerate(merges):
        if merge not in rows.index:
            continue
        row = rows.loc[merge]
        colour, marker = style(merge)
        low, mean, high = scale * row[["difference_low", "difference", "difference_high"]].astype(float)
        axes.plot([low, high], [y, y], color=colour, linewidth=1.6)
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot(mean, y, color=colour, marker=marker, markersize=7, **edge)
        note = f"n = {row['pairs']:.0f}" + (f", {row['diverged']:.0f} diverged" if row["diverged"] else "")
        axes.text(1.02, y, note, transform=beside, va="center", fontsize=7, color="#595959")


def _spread_out(panels: Sequence["Axes"], differences: pd.DataFrame, scale: float) -> None:
    """Linear within one unit and logarithmic beyond, where a few collapsed merges would flatten all the others."""
    from matplotlib.ticker import FixedLocator, NullLocator

    reach = scale * differences[["difference_low", "difference_high"]].astype(float).abs().max(axis=1).dropna()
    if reach.empty or reach.max() <= 20 * reach.median():
        return
    for axes in panels:
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set(major_locator=FixedLocator([-30, -5, -1, 0, 1, 5, 30]), minor_locator=NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, without pyplot: no window, and no global state to clean up."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def saved(figure: "Figure", path: str | os.PathLike, suffixes: Sequence[str] = (".png", ".pdf")) -> list[Path]:
    """Writes PATH.png and PATH.pdf; returns their paths."""
    return [save(figure, Path(f"{path}{suffix}")) for suffix in suffixes]


def save(figure: "Figure", path: Path) -> Path:
    """Writes the figure as PNG or PDF, by the suffix of `path`, which is replaced as a whole.

    Neither says when and with what it was made, so that equal tables give equal files.
    """
    silent = {".png": ["Software"], ".pdf": ["Creator", "Producer", "CreationDate"]}[path.suffix]
    with records.replacing(path) as temporary:
        figure.savefig(temporary, metadata=dict.fromkeys(silent))
    return path


def _loss_unit(run_dir: Path) -> str:
    return {"ce": "nats", "mse": "squared error"}[tables.read_config(run_dir).loss.name]


def _plain_log_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=12))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def look(merge: str) -> dict:
    """Colour and marker of a merge, as options of Matplotlib."""
    colour, marker = style(merge)
    return {"color": colour, "marker": marker}


def merge_legend(figure: "Figure", merges: pd.Series, line: str = "none", fills: dict[str, str] | None = None) -> None:
    """Below the panels: every merge in the order of MERGE_STYLES, and the fill of every data set."""
    from matplotlib.lines import Line2D

    known = [*MERGE_STYLES, *merges]
    looks = {m: look(m) for m in sorted(set(merges), key=known.index)}
    looks |= {short(d): {"color": GREY, "marker": "o", "fillstyle": fill} for d, fill in (fills or {}).items()}
    handles = [Line2D([], [], linestyle=line, markersize=5, label=name, **look) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), columnspacing=1.2)


def short(dataset: str) -> str:
    """A data set without the number of images in brackets, which n says."""
    return dataset.split(" (")[0]


def need(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raises ConfigError if the table has no rows, or lacks a column."""
    lacking = [column for column in columns if column not in table.columns]
    if lacking or table.empty:
        raise ConfigError(f"the table has no column {', '.join(lacking)}" if lacking else "the table has no rows")


def legend(figure: "Figure", looks: Mapping[str, tuple[str, ...]], line: str = "none", **place) -> None:
    """A legend in as few rows as fit, below the panels.

    Args:
      figure: that gets it.
      looks: words -> marker, colour and, unless it is full, the style of its filling.
      line: style of the line through the markers.
      place: options of Matplotlib, for another place.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=words, marker=marker, color=colour, fillstyle=(*fill, "full")[0], linestyle=line)
        for words, (marker, colour, *fill) in looks.items()
    ]
    for handle in handles:
        handle.set(linewidth=1.1, markersize=4.5)
    inches = 0.055 * sum(map(len, looks)) + 0.4 * len(looks)
    rows = -(-inches // (WIDTH - 0.3))
    look = {"loc": "outside lower center", "fontsize": 7, "columnspacing": 1, "handletextpad": 0.4}
    figure.legend(handles=handles, ncols=int(-(-len(handles) // rows)), **(look | place))


def axes_at(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Axes at a place in inches, measured from the upper left."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
