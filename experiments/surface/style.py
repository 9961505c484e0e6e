"""What the figures of the surface study have in common: who looks how, what is drawn, where it ends, and legends."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.surface.tables import ARMS
from resjax.analysis import plots
from resjax.config import ConfigError
from resjax.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RC = plots.RC | {"axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7}
in_style = plots.in_style_of(RC)
WITHOUT = "plain"  # the prior that is none
ARM_LOOKS = {  # prior -> marker, colour where no merge gives one
    "plain": ("o", plots.GREY),
    "augment": ("^", "#0072B2"),
    "mixup": ("s", "#D55E00"),
    "noise": ("D", "#CC79A7"),
    "stn": ("v", "#009E73"),
}


def of_dataset(table: pd.DataFrame, dataset: str, name: str, needed: str = "dataset") -> pd.DataFrame:
    """The rows of a data set that have a value in column `needed`.

    Raises:
      ConfigError: there is none; `name` says of which table.
    """
    rows = table[(table["dataset"] == dataset) & table[needed].notna()]
    if rows.empty:
        raise ConfigError(f"the table {name} has nothing of {dataset}: nothing to draw")
    return rows


def merges_of(table: pd.DataFrame) -> list[str]:
    """The merges of a table in the order of the catalogue."""
    known = [*plots.MERGE_STYLES, *table["merge"]]
    return sorted(dict.fromkeys(table["merge"]), key=known.index)


def seeds(n: pd.Series) -> str:
    """The number of seeds in words."""
    low, high = n.min(), n.max()
    return f"n = {low:.0f} seeds" if low == high else f"n = {low:.0f} to {high:.0f} seeds"


def limits(values: pd.DataFrame, log: bool = False) -> tuple[float, float]:
    """Limits of an axis that holds all points, and of their intervals no more than as far again as the points spread.

    Args:
      values: the point and the ends of its interval, in this order; nan is passed over.
      log: whether the axis is logarithmic; then all points must be positive.
    """
    change, back = (np.log, np.exp) if log else (np.array, np.array)
    numbers = values.to_numpy(float)
    numbers = change(np.where(numbers > 0, numbers, np.nan) if log else numbers)
    point, low, high = numbers[np.isfinite(numbers[:, 0])].T
    spread = np.ptp(point) or 0.1 * abs(point[0]) or 1.0
    bottom = max(np.nanmin([*low, *point]), point.min() - spread)
    top = min(np.nanmax([*high, *point]), point.max() + spread)
    pad = 0.12 * ((top - bottom) or spread)
    return float(back(bottom - pad)), float(back(top + pad))


def tau_words(row: pd.Series, separator: str) -> str:
    """Its tau, and the interval if it has one."""
    return f"{Estimate.of(row, 'tau'):+.2f}".replace(" ", separator, 1)


def in_words(arm: str) -> str:
    """The prior's name, and what it is if the name does not say it."""
    return arm if arm == ARMS[arm] else f"{arm}: {ARMS[arm]}"


def left_at(y: float) -> dict:
    """The place of a legend at the left edge, below this share of the figure's height."""
    return {"loc": "upper left", "bbox_to_anchor": (0.05 / plots.WIDTH, y), "borderpad": 0, "borderaxespad": 0}


def text_at(figure: "Figure", left: float, top: float, text: str, **look) -> None:
    """Text that begins at a place in inches, measured from the upper left; at mid-height, unless `look` says more."""
    w, h = figure.get_size_inches()
    figure.text(left / w, 1 - top / h, text, **({"va": "center", "fontsize": 6.5, "linespacing": 1.15} | look))
