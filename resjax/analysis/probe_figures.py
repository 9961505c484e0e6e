"""What the probes of one run saw over training: a figure per probe, drawn from its table (`tables.probed`)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resjax import stats
from resjax.analysis import tables
from resjax.analysis.plots import in_style, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Look:
    """How a probe is drawn.

    Attributes:
      panels: column -> label; where its values are positive and spread far, the axis is logarithmic.
      lines: column that names what each line is of, in the order of the net; "" for one line.
      query: of the rows; "" takes all.
    """

    panels: dict[str, str]
    lines: str = ""
    query: str = ""


LOOKS = {
    "signal": Look(
        {"power": "power of z", "log_norm_std": "std of ln ||z||", "alive": "z not 0", "gain": "gradient gain"}, "block"
    ),
    "gradients": Look(
        {"norm": "gradient norm", "noise_scale": "noise scale (images)", "gsnr": "GSNR",
         "update_ratio": "update/weight"},
        "path",
        "kind == 'layer'",
    ),
    "saturation": Look(
        {"distance": "distance to asymptote", "slope_rms": "slope (rms)", "grad_ratio": "gradient at f / at z",
         "update_ratio": "update/weight"},
        "block",
    ),
    "curvature": Look(
        {"loss": "loss (nats)", "lambda_max": "largest eigenvalue", "lambda_min": "smallest eigenvalue",
         "negative_mass": "negative mass"},
    ),
    "connections": Look(
        {"attention 0": "weight of the stem's output", "beta 0": "beta", "modulus 1": "second modulus of mixing",
         "distance 0": "distance to doubly stochastic"},
        "block",
    ),
    "lesion": Look({"loss": "loss without it (nats)", "accuracy": "accuracy without it"}, "blocks",
                   "lesion == 'delete' and k == 1"),
}  # fmt: skip


def of_run(run_dir: str | os.PathLike) -> Iterator[Path]:
    """Draws `probe_NAME.png` into the run directory for every probe that left a table there and has none yet.

    A line is the mean over replicas, of the first block or layer in the darkest colour, of the last in the lightest;
    bands are 95 % CIs. What is not finite is left out.

    Raises:
      ValueError: a file of the run directory is damaged; one line that names it.
    """
    for name, look in LOOKS.items():
        path = Path(run_dir) / f"probe_{name}.png"
        if path.with_suffix(".jsonl").exists() and not path.exists():
            table = tables.probed(run_dir, name)
            if name == "connections":
                table, look = _of_quantities(table, look)
            if len(table):
                yield _drawn(table.query(look.query) if look.query else table, look, path, Path(run_dir).name)


def _of_quantities(table: pd.DataFrame, look: Look) -> tuple[pd.DataFrame, Look]:
    """Rows of quantity, i and value as a column for each number: those of `look`, and learned scalars."""
    if table.empty:
        return table, look
    matrices = ("attention", "mixing", "modulus", "distance", "beta")
    number = table["quantity"].where(
        ~table["quantity"].isin(matrices), table["quantity"] + " " + table["i"].astype(int).astype(str)
    )
    index = ["seed", "epoch", "block"]
    wide = table.assign(number=number).groupby([*index, "number"], sort=False)["value"].first().unstack("number")
    scalars = {name: name for name in dict.fromkeys(number) if name in set(table["quantity"])}
    panels = {name: label for name, label in (look.panels | scalars).items() if name in wide}
    return wide.reset_index(), Look(panels, look.lines)


@in_style
def _drawn(table: pd.DataFrame, look: Look, path: Path, title: str) -> Path:
    import matplotlib
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(table[look.lines])) if look.lines else [""]
    names.sort(key=lambda name: (name.startswith("head"), not name.startswith("stem")))  # JAX has them by the alphabet
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, max(len(names), 2)))
    figure = new_figure(7.0, 2.5)
    panels = figure.subplots(1, len(look.panels), squeeze=False)[0]
    for axes, (column, label) in zip(panels, look.panels.items(), strict=True):
        for name, colour in zip(names, colours, strict=False):
            _line(axes, table[table[look.lines] == name] if look.lines else table, column, colour)
        axes.set_title(label, fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        values = table[column].replace(np.inf, np.nan).dropna()
        if column != "accuracy" and len(values) and (values > 0).all() and values.max() > 20 * values.min():
            axes.set_yscale("log")
    if look.lines:
        ends = sorted({0, len(names) - 1})
        handles = [Line2D([], [], color=colours[i], label=names[i]) for i in ends]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    figure.supxlabel(f"epoch; {title}, n = {table['seed'].nunique()}", fontsize=8)
    return save(figure, path)


def _line(axes: "Axes", rows: pd.DataFrame, column: str, colour) -> None:
    found = {}
    for epoch, values in rows[["epoch", column]].replace(np.inf, np.nan).dropna().groupby("epoch")[column]:
        ci = stats.mean_ci(values)
        found[epoch] = [ci["mean"] if ci[key] is None else ci[key] for key in ("mean", "ci_low", "ci_high")]
    if found:
        mean, low, high = np.array(list(found.values())).T
        axes.plot(list(found), mean, color=colour, linewidth=1.2, marker="o", markersize=2)
        axes.fill_between(list(found), low, high, color=colour, alpha=0.15, linewidth=0)
