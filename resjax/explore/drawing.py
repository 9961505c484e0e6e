"""Colours of classes, and arrays of pixels as a page wants them."""

import base64
import io
from collections.abc import Iterable

import numpy as np
from bokeh.colors import RGB
from PIL import Image

# Safe for colour-blind readers: the scheme of Tol (2012, SRON/EPS/TN/09-002) for ten classes, and none of its colours.
COLOURS = (
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#882255", "#999933", "#AA4499", "#661100",
)  # fmt: skip
OTHER = "#BBBBBB"
FAINTEST = 0.25  # opacity where two classes are equally likely


def class_colours(class_PxP: np.ndarray, num_classes: int) -> dict[int, str]:
    """Class -> colour: of all, or, if they are too many, of the most frequent on the plane. The others have OTHER."""
    classes = range(num_classes)
    if num_classes > len(COLOURS):
        counts = np.bincount(class_PxP.ravel(), minlength=num_classes)
        classes = sorted(int(k) for k in np.argsort(-counts, kind="stable")[: len(COLOURS)] if counts[k])
    return dict(zip(classes, COLOURS, strict=False))


def regions_rgba(class_PxP: np.ndarray, lead_PxP: np.ndarray, colours: dict[int, str]) -> np.ndarray:
    """Pixels of Bokeh, uint32 [P, P]: the class's colour, the paler the smaller its lead."""
    rgba = np.empty((*class_PxP.shape, 4), np.uint8)
    rgba[..., :3] = _rgb(OTHER)
    for k, colour in colours.items():
        rgba[class_PxP == k, :3] = _rgb(colour)
    rgba[..., 3] = 255 * (FAINTEST + (0.85 - FAINTEST) * lead_PxP)
    return rgba.view(np.uint32)[..., 0]


def image_rgba(pixels_HxWx3: np.ndarray) -> np.ndarray:
    """Pixels of Bokeh, uint32 [H, W], whose first row is the lowest, of an image whose first row is the highest."""
    rgba = np.full((*pixels_HxWx3.shape[:2], 4), 255, np.uint8)
    rgba[..., :3] = pixels_HxWx3[::-1]
    return rgba.view(np.uint32)[..., 0]


def picture(pixels_HxWx3: np.ndarray, height: int) -> str:
    """An image as HTML, so many pixels high."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HxWx3)).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    style = f"height:{height}px;image-rendering:pixelated;border:1px solid #999;vertical-align:top"
    return f'<img src="data:image/png;base64,{data}" style="{style}">'


def chip(k: int, colours: dict[int, str]) -> str:
    """A class as HTML, on its colour."""
    colour = colours.get(k, OTHER)
    style = f"background:{colour};color:{ink(colour)};padding:0 5px;border-radius:3px;font-weight:bold"
    return f'<span style="{style}">{k}</span>'


def chips(classes: Iterable[int], colours: dict[int, str]) -> str:
    """Several of them."""
    return " ".join(chip(k, colours) for k in classes)


def ink(colour: str) -> str:
    """Black or white: what is legible on a colour."""
    r, g, b = _rgb(colour)
    return "#000000" if 0.299 * r + 0.587 * g + 0.114 * b > 140 else "#FFFFFF"


def _rgb(colour: str) -> tuple[int, int, int]:
    found = RGB.from_hex_string(colour)
    return found.r, found.g, found.b
