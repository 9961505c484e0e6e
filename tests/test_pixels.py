"""Whatever form an image is stored in, the pixels are what it shows, or one line says why not."""

import io

import numpy as np
import pytest
from PIL import Image

from resjax.data import pixels

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3) * 4
GREY = RGB[..., :1]
ALPHA = np.full((4, 5, 1), 255, np.uint8)


def encoded(array, format="PNG", mode=None, **options):
    file = io.BytesIO()
    image = Image.fromarray(array.squeeze())
    (image.convert(mode) if mode else image).save(file, format, **options)
    return file.getvalue()


def palette(array):
    """A PNG of colour indices: the colours of the image, in an order of their own."""
    colours, index = np.unique(array.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(index.reshape(array.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colours.ravel().tolist())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("file", "want"), [
    (encoded(RGB), RGB),
    (palette(RGB), RGB),
    (encoded(GREY), GREY.repeat(3, -1)),
    (encoded(GREY), GREY),
    (encoded(GREY.repeat(3, -1)), GREY),
    (encoded(GREY.repeat(3, -1), "GIF"), GREY),
    (encoded(np.concatenate([RGB, ALPHA], -1)), RGB),
    (encoded(np.concatenate([GREY, ALPHA], -1)), GREY),
    (encoded(np.concatenate([RGB, ALPHA // 2], -1)), np.concatenate([RGB, ALPHA // 2], -1)),
    (encoded(RGB), np.concatenate([RGB, ALPHA], -1)),
    (encoded(255 * (GREY > 99).astype(np.uint8), mode="1"), 255 * (GREY > 99).astype(np.uint8)),
    (encoded(RGB, "WEBP", lossless=True), RGB),
])  # fmt: skip
def test_every_exact_form(file, want):
    for shape in (want.shape, (None, None, want.shape[-1])):
        found = pixels.decode(file, shape)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, want)


def test_channels_that_are_not_declared_are_three():
    np.testing.assert_array_equal(pixels.decode(encoded(GREY), (None, None, None)), GREY.repeat(3, -1))


frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]


@pytest.mark.parametrize(("file", "shape", "why"), [
    (encoded(GREY.astype(np.uint16) * 256), (4, 5, 1), "16 bits per channel"),
    (encoded(RGB, "JPEG", "CMYK"), (4, 5, 3), "no exact form of CMYK"),
    (encoded(np.concatenate([RGB, ALPHA // 2], -1)), (4, 5, 3), "transparent in part, and 3 channels"),
    (encoded(np.concatenate([GREY, ALPHA // 2], -1)), (4, 5, 1), "transparent in part, and 1 channel"),
    (encoded(RGB), (4, 5, 1), "it has colours"),
    (encoded(RGB), (5, 4, 3), "it is 4x5x3, and 5x4x3 is declared"),
    (encoded(RGB), (None, 4, 3), r"it is 4x5x3, and \?x4x3 is declared"),
    (encoded(RGB, "GIF", save_all=True, append_images=frames[1:]), (4, 5, 3), "several frames"),
    (b"no image", (4, 5, 3), "cannot identify"),
])  # fmt: skip
def test_what_has_no_exact_form_is_refused(file, shape, why):
    with pytest.raises((ValueError, OSError), match=why):
        pixels.decode(file, shape)
