"""Decision regions on the plane through three images, drawn from the surface study's tables alone.

Somepalli et al. (2022, 2203.08124) draw such planes. Positions are set by hand, as they are on the report card, which
shows planes too.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from experiments.surface.style import (
    GREY,
    WIDTH,
    axes_at,
    in_style,
    left_at,
    legend,
    merges_of,
    of_dataset,
    text_at,
)
from experiments.surface.tables import ARMS
from resjax.analysis import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CORNER_MARKERS = ("o", "s", "^")
# Tol's high-contrast colours for the classes of the three images and his light ones for others, as both are safe for
# colour-blind readers.
CORNER_COLOURS = ("#004488", "#DDAA33", "#BB5566")
OTHER_COLOURS = ("#99DDFF", "#44BB99", "#FFAABB", "#EEDD88", "#AAAA00", "#EE8866", "#BBCC33")
REST = "#DDDDDD"  # classes beyond these


class Look(NamedTuple):
    """How decision regions are drawn: colour of a class, and the three images.

    Attributes:
      colours: class -> colour; the last of them, of class None, stands for all that are not named.
      images: (x, y, class, image [H, W] or [H, W, 3]) of each corner.
    """

    colours: dict[int | None, str]
    images: list[tuple[float, float, int, np.ndarray]]


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
    column = min((WIDTH - left - right) / len(merges), 1.4)
    height = head + max(len(arms) * column, 1.9) + foot
    figure = plots.new_figure(WIDTH, height)
    figure.set_layout_engine("none")
    extent = np.ptp(regions["x"])
    title = f"{dataset}: predicted class on the plane through three images, {extent:.3g} pixel std wide"
    figure.text(0.1 / WIDTH, 1 - 0.08 / height, title, va="top", fontsize=8)
    for j, arm in enumerate(arms):
        for i, merge in enumerate(merges):
            axes = axes_at(figure, left + i * column, head + j * column, column - 0.04, column - 0.04)
            draw_regions(axes, regions[(regions["arm"] == arm) & (regions["merge"] == merge)], look)
            if j == 0:
                draw_heading(axes, merge)
        text_at(figure, 0.1, head + (j + 0.5) * column, arm, fontsize=8)
    for i in range(len(look.images)):
        draw_thumbnail(figure, look, i, left + len(merges) * column + 0.1, head + 0.65 * i, 0.45)
    legend(figure, class_looks(look), **left_at((foot - 0.14) / height))
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


def draw_regions(axes: "Axes", rows: pd.DataFrame, look: Look) -> None:
    """Draws the plane of one net, or says that there is none."""
    from matplotlib.colors import to_rgb

    axes.set(xticks=[], yticks=[], facecolor="#F5F5F5")
    axes.spines[:].set_visible(False)
    if rows.empty:
        axes.text(0.5, 0.5, "no net", ha="center", va="center", fontsize=6.5, color=GREY, transform=axes.transAxes)
        return
    label = rows.pivot(index="y", columns="x", values="label")
    margin = rows.pivot(index="y", columns="x", values="margin").to_numpy()
    colour = np.array([to_rgb(look.colours.get(k, REST)) for k in label.to_numpy().ravel()]).reshape(*label.shape, 3)
    picture = 1 - (0.4 + 0.6 * margin[..., None]) * (1 - colour)
    x, y = label.columns, label.index
    half = (x[1] - x[0]) / 2
    extent = (x[0] - half, x[-1] + half, y[0] - half, y[-1] + half)
    axes.imshow(picture, extent=extent, origin="lower", interpolation="nearest", aspect="equal")
    for (x, y, _, _), marker in zip(look.images, CORNER_MARKERS, strict=False):
        axes.plot(x, y, marker, color="white", markeredgecolor="black", markeredgewidth=0.6, markersize=3.2)


def draw_heading(axes: "Axes", merge: str) -> None:
    """Writes the merge above a panel, and draws a line in its colour."""
    look = {"color": plots.style(merge)[0], "linewidth": 2.5, "clip_on": False}
    axes.plot([0, 1], [1.06, 1.06], transform=axes.transAxes, **look)
    axes.text(0.5, 1.12, merge, ha="center", va="bottom", fontsize=6.5, transform=axes.transAxes)


def draw_thumbnail(figure: "Figure", look: Look, corner: int, left: float, top: float, side: float) -> None:
    """Draws one of the three images in a frame of its class's colour, with its mark and its class below."""
    _, _, label, image = look.images[corner]
    axes = axes_at(figure, left, top, side, side)
    axes.imshow(image, cmap="gray", interpolation="nearest", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=look.colours[label], linewidth=2)
    edge = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 0.6, "clip_on": False}
    axes.plot(0.2, -0.2, CORNER_MARKERS[corner], markersize=4, transform=axes.transAxes, **edge)
    axes.text(0.38, -0.2, f"{label}", va="center", fontsize=6.5, transform=axes.transAxes)


def class_looks(look: Look) -> dict[str, tuple[str, str]]:
    """Of each class, for `surface_style.legend`."""
    known = sorted(k for k in look.colours if k is not None)
    words = {k: f"{k}" if i else f"class {k}" for i, k in enumerate(known)} | {None: "other classes"}
    return {words[k]: ("s", look.colours[k]) for k in words if k in look.colours}
