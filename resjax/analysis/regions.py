"""Decision regions of a net on a plane through three images (Somepalli et al. 2022, 2203.08124)."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

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


def draw_regions(axes: "Axes", rows: pd.DataFrame, look: Look) -> None:
    """Draws the plane of one net, or says that there is none."""
    from matplotlib.colors import to_rgb

    axes.set(xticks=[], yticks=[], facecolor="#F5F5F5")
    axes.spines[:].set_visible(False)
    if rows.empty:
        axes.text(
            0.5, 0.5, "no net", ha="center", va="center", fontsize=6.5, color=plots.GREY, transform=axes.transAxes
        )
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


def draw_thumbnail(figure: "Figure", look: Look, corner: int, left: float, top: float, side: float) -> None:
    """Draws one of the three images in a frame of its class's colour, with its mark and its class below."""
    _, _, label, image = look.images[corner]
    axes = plots.axes_at(figure, left, top, side, side)
    axes.imshow(image, cmap="gray", interpolation="nearest", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=look.colours[label], linewidth=2)
    edge = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 0.6, "clip_on": False}
    axes.plot(0.2, -0.2, CORNER_MARKERS[corner], markersize=4, transform=axes.transAxes, **edge)
    axes.text(0.38, -0.2, f"{label}", va="center", fontsize=6.5, transform=axes.transAxes)


def class_looks(look: Look) -> dict[str, tuple[str, str]]:
    """Of each class, for `plots.legend`."""
    known = sorted(k for k in look.colours if k is not None)
    words = {k: f"{k}" if i else f"class {k}" for i, k in enumerate(known)} | {None: "other classes"}
    return {words[k]: ("s", look.colours[k]) for k in words if k in look.colours}
