"""The plane through three images, with its true distances: where to look at the function between them.

Coordinates are orthonormal: a distance on the plane is the Euclidean distance of the images, in the unit of their
(normalised) pixels. Somepalli et al. (2022, 2203.08124) draw decision regions on such planes.
"""

from typing import NamedTuple

import numpy as np

from resjax.config import ConfigError


class Plane(NamedTuple):
    """A plane in the space of images.

    Attributes:
      origin_HxWxC: the image at (0, 0), the first of the three.
      axes_2xHxWxC: orthonormal directions; the first points to the second image.
      corners_3x2: coordinates of the three images.
    """

    origin_HxWxC: np.ndarray
    axes_2xHxWxC: np.ndarray
    corners_3x2: np.ndarray

    def images(self, xy_Nx2: np.ndarray) -> np.ndarray:
        """The images at these coordinates, [N, H, W, C] float32."""
        return np.float32(self.origin_HxWxC + np.tensordot(np.asarray(xy_Nx2, float), self.axes_2xHxWxC, 1))

    def grid(self, points: int, margin: float) -> np.ndarray:
        """Coordinates [points, points, 2] of a square around the corners; the first axis is y, upwards.

        Args:
          points: of a side.
          margin: on each side, as a share of the longer extent of the corners.
        """
        low, high = self.corners_3x2.min(0), self.corners_3x2.max(0)
        half = (0.5 + margin) * (high - low).max()
        x, y = (np.linspace(centre - half, centre + half, points) for centre in (low + high) / 2)
        return np.stack(np.meshgrid(x, y), -1)


def through(images_3xHxWxC: np.ndarray) -> Plane:
    """The plane through three images. Raises ConfigError if they lie on a line."""
    a, b, c = np.asarray(images_3xHxWxC, float)
    first, length = _direction(b - a)
    along = np.vdot(first, c - a)
    second, height = _direction(c - a - along * first)
    if not (length and height > 1e-6 * max(length, abs(along))):
        raise ConfigError("the three images lie on a line: choose images that differ")
    return Plane(a, np.stack([first, second]), np.array([[0, 0], [length, 0], [along, height]]))


def _direction(difference: np.ndarray) -> tuple[np.ndarray, float]:
    length = float(np.linalg.norm(difference))
    return difference / (length or 1.0), length
