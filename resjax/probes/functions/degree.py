"""Of what degree is a function along a line or a circle through images?

On a line with t in [-1, 1] the energy at the Chebyshev polynomial T_k says how much is of degree k; on a circle with
angle theta the energy at the frequencies cos(k theta), sin(k theta) does. A polynomial of degree d has nothing beyond
k = d on either: a sum of affine branches has degree 1, a product of L residual blocks without activations 2^L.
"""

import numpy as np
import pandas as pd
from scipy.fft import dct

from resjax.probes.functions import planes
from resjax.probes.functions.function import Function, groups, labels
from resjax.probes.functions.lines import mixed
from resjax.probes.subject import Subject


def degree(at: Subject, *, count: int = 64, nodes: int = 64) -> pd.DataFrame:
    """The energy of g (`resjax.probes.functions.function`) by degree, over lines and classes together.

    Columns:
      path: "line", between two images of different classes, or "circle", through three.
      k: degree 1, 2, ..., nodes - 1 of a line, frequency 1, 2, ..., (nodes - 1) // 2 of a circle.
      energy: share; what is constant on a path does not count.

    Args:
      at: a replica.
      count: of lines, and of circles.
      nodes: of a path, and so what it resolves.
    """
    function, of = Function.of(at), labels(at)
    a, b = groups(of, count, 2).T
    paths = {"line": mixed(at.x_BxHxWxC, a, b, (1 - chebyshev_nodes(nodes)) / 2)}
    images = np.asarray(at.x_BxHxWxC)
    paths["circle"] = np.stack([on_circle(images[three], nodes) for three in groups(of, count, 3)])
    shares = {
        path: of_path(np.moveaxis(function.g(paths[path]), -1, 1).reshape(-1, nodes))
        for path, of_path in {"line": chebyshev_energy, "circle": fourier_energy}.items()
    }
    tables = {path: pd.DataFrame({"k": np.arange(1, len(e) + 1), "energy": e}) for path, e in shares.items()}
    return pd.concat(tables, names=["path", None]).reset_index("path").reset_index(drop=True)


def chebyshev_nodes(count: int) -> np.ndarray:
    """cos(pi (m + 1/2) / M), m = 0, ..., M - 1: from nearly 1 to nearly -1."""
    return np.cos(np.pi * (np.arange(count) + 0.5) / count)


def chebyshev_energy(f_LxM: np.ndarray) -> np.ndarray:
    """Share of the energy in degree 1, ..., M - 1 of L functions together, given at `chebyshev_nodes(M)`."""
    return _shares(np.sum((dct(f_LxM, type=2, axis=1) / f_LxM.shape[1]) ** 2, 0)[1:])


def fourier_energy(f_LxM: np.ndarray) -> np.ndarray:
    """Share of the energy at frequency 1, ..., (M - 1) // 2 of L functions together, given at the angles 2 pi m / M."""
    power = np.sum(np.abs(np.fft.rfft(f_LxM, axis=1)) ** 2, 0)
    return _shares(power[1 : (f_LxM.shape[1] + 1) // 2])


def _shares(power_K: np.ndarray) -> np.ndarray:
    return power_K / power_K.sum()


def on_circle(images_3xHxWxC: np.ndarray, nodes: int) -> np.ndarray:
    """Images [nodes, H, W, C] at equal angles of the circle through three."""
    plane = planes.through(images_3xHxWxC)
    corners = plane.corners_3x2
    centre = np.linalg.solve(2 * corners[1:], np.square(corners[1:]).sum(1))  # as far from the others as from (0, 0)
    angle_M = 2 * np.pi * np.arange(nodes) / nodes
    return plane.images(centre + np.linalg.norm(centre) * np.stack([np.cos(angle_M), np.sin(angle_M)], 1))
