"""Decision regions on the plane through three images, drawn from the surface study's tables alone.

Somepalli et al. (2022, 2203.08124) draw such planes. Positions are set by hand, as they are on the report card, which
shows planes too.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.surface.style import (
    in_style,
    left_at,
    merges_of,
    of_dataset,
    text_at,
)
from experiments.surface.tables import ARMS
from resjax.analysis import plots
from resjax.analysis.regions import CORNER_COLOURS, OTHER_COLOURS, REST, Look, class_looks, draw_regions, draw_thumbnail

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@in_style
def planes(planes: pd.DataFrame, corners: pd.DataFrame, path: str | os.PathLike, dataset: str) -> list[Path]:
    """Decision regions on the plane through three images, a row per prior and a column per merge.

    Distances are true, and the same in all; a region is the paler, the smaller the lead of its class.

    Args:
      planes: dataset, arm, merge, x, y (distances of normalised images), label, margin (lead in probability).
      corners: dataset, corner, x, y, label, row, column, channel, value.
      path: of the figure.
      dataset: to draw.

    Raises:
      ConfigError: a table has no row of the data set.
    """
    regions = of_dataset(planes, dataset, "planes")
    look = look_of(regions, of_dataset(corners, dataset, "corners"))
    merges, arms = merges_of(regions), [arm for arm in ARMS if arm in set(regions["arm"])]
    left, right, head, foot = 0.75, 0.75, 0.5, 0.42
    column = min((plots.WIDTH - left - right) / len(merges), 1.4)
    height = head + max(len(arms) * column, 1.9) + foot
    figure = plots.new_figure(plots.WIDTH, height)
    figure.set_layout_engine("none")
    extent = np.ptp(regions["x"])
    title = f"{dataset}: predicted class on the plane through three images, {extent:.3g} pixel std wide"
    figure.text(0.1 / plots.WIDTH, 1 - 0.08 / height, title, va="top", fontsize=8)
    for j, arm in enumerate(arms):
        for i, merge in enumerate(merges):
            axes = plots.axes_at(figure, left + i * column, head + j * column, column - 0.04, column - 0.04)
            draw_regions(axes, regions[(regions["arm"] == arm) & (regions["merge"] == merge)], look)
            if j == 0:
                draw_heading(axes, merge)
        text_at(figure, 0.1, head + (j + 0.5) * column, arm, fontsize=8)
    for i in range(len(look.images)):
        draw_thumbnail(figure, look, i, left + len(merges) * column + 0.1, head + 0.65 * i, 0.45)
    plots.legend(figure, class_looks(look), **left_at((foot - 0.14) / height))
    return plots.saved(figure, path)


# --- What the card shows too ------------------------------------------------------------------------------------------
def look_of(regions: pd.DataFrame, corners: pd.DataFrame) -> Look:
    """The look of these planes and corners of one data set, the same in all of its figures."""
    images = []
    for _, pixels in corners.groupby("corner"):
        shape = pixels[["row", "column", "channel"]].max() + 1
        image = np.zeros(shape.to_list(), np.uint8)
        image[pixels["row"], pixels["column"], pixels["channel"]] = pixels["value"]
        x, y, label = pixels.iloc[0][["x", "y", "label"]]
        images.append((x, y, int(label), image[..., 0] if image.shape[-1] == 1 else image))
    own = dict.fromkeys(label for _, _, label, _ in images)
    others = [label for label in regions["label"].value_counts().index if label not in own]  # the largest first
    named = dict(zip(own, CORNER_COLOURS, strict=False)) | dict(zip(others, OTHER_COLOURS, strict=False))
    return Look(named | ({None: REST} if len(others) > len(OTHER_COLOURS) else {}), images)


def draw_heading(axes: "Axes", merge: str) -> None:
    """Writes the merge above a panel, and draws a line in its colour."""
    look = {"color": plots.style(merge)[0], "linewidth": 2.5, "clip_on": False}
    axes.plot([0, 1], [1.06, 1.06], transform=axes.transAxes, **look)
    axes.text(0.5, 1.12, merge, ha="center", va="bottom", fontsize=6.5, transform=axes.transAxes)
