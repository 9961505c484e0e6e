"""Encoded images as pixels: one decoder for every set, and only conversions that lose nothing."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_PNG, _BITS_AT = b"\x89PNG\r\n\x1a\n", 24  # where a PNG says how many bits a channel has
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def decode(encoded: bytes, shape: Sequence[int | None]) -> np.ndarray:
    """An image, uint8 HxWxC, of the declared shape; None stands for any height or width, and for three channels.

    A palette is looked up, grey is given equal channels and equal channels become grey, opaque alpha comes and goes.

    Raises:
      ValueError: it is damaged, or can't have this shape without a loss.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        if encoded.startswith(_PNG) and encoded[_BITS_AT] > 8:
            raise ValueError("it has 16 bits per channel, and pixels here have 8")
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's; the first is the image
            raise ValueError("it has several frames")
        if image.mode not in _MODES:
            raise ValueError(f"there is no exact form of {image.mode} in RGB")
        pixels_HxWx4 = np.asarray(image.convert("RGBA"))
    channels = shape[-1] or 3
    if channels < 4 and pixels_HxWx4[..., 3].min() < 255:
        raise ValueError(f"it is transparent in part, and {channels} channels are declared")
    if channels == 1 and (pixels_HxWx4[..., :1] != pixels_HxWx4[..., 1:3]).any():
        raise ValueError("it has colours, and one channel is declared")
    pixels_HxWxC = pixels_HxWx4[..., :channels]
    if any(want not in (None, has) for want, has in zip(shape, pixels_HxWxC.shape, strict=True)):
        words = ["x".join("?" if n is None else str(n) for n in size) for size in (pixels_HxWxC.shape, shape)]
        raise ValueError(f"it is {words[0]}, and {words[1]} is declared")
    return np.ascontiguousarray(pixels_HxWxC)  # a view would keep four channels
