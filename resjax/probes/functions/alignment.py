"""Does a spatial transformer undo what was done to an image?"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from resjax.config import ConfigError
from resjax.models.transformer import SCALE
from resjax.probes.functions.symmetry import senses, transformed
from resjax.probes.subject import Subject

AMOUNTS = {"rotation": (-20, -10, 0, 10, 20), "shift": (-1, -0.5, 0, 0.5, 1), "scale": (0.8, 0.9, 1, 1.1, 1.25)}


def alignment(at: Subject) -> pd.DataFrame:
    """A row per transformation: how much of it the transformer takes back.

    Columns:
      transformation: "rotation" and "scale" about the centre, "shift" down.
      undone: less the slope, over the amounts and within images, of the angle, shift or log zoom of the transformer's
        map on that of what was done to the image: 1 of a transformer that aligns all images, 0 of one that gives an
        image the same map whatever was done to it.

    Args:
      at: a replica with a spatial transformer (`resjax.models.transformer`) in front.

    Raises:
      ConfigError: it has none.
    """
    if "transformer" not in at.variables["params"]:
        raise ConfigError("alignment is of nets with config.model.front='stn'")
    rows = []
    for name, amounts in AMOUNTS.items():
        done, found = [], []
        for amount in amounts:
            matrix_2x3 = _matrix(name, amount)
            theta_Bx2x3 = np.asarray(_theta(at.net, at.variables, transformed(at.x_BxHxWxC, matrix_2x3)), float)
            theta_Bx2x3[:, :, 2] *= np.array(at.x_BxHxWxC.shape[1:3]) / 2  # to pixels
            done.append(_amount(name, matrix_2x3[None])[0])
            found.append(_amount(name, theta_Bx2x3))
        done_A, found_AxB = np.array(done) - np.mean(done), np.array(found)
        rows.append({"transformation": name, "undone": -np.mean(done_A @ found_AxB) / (done_A @ done_A)})
    return pd.DataFrame(rows)


def _matrix(name: str, amount: float) -> np.ndarray:
    if name == "shift":
        return np.array([[1, 0, amount], [0, 1, 0]])
    if name == "scale":
        return senses(name, amount)[0]
    angle = np.deg2rad(amount)
    return np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0]])


def _amount(name: str, maps_Bx2x3: np.ndarray) -> np.ndarray:
    """Angle, shift down or log zoom of affine maps."""
    (a, b, down), (c, d, _) = np.moveaxis(maps_Bx2x3, 0, -1)
    if name == "rotation":
        return np.arctan2(b - c, a + d)
    return down if name == "shift" else np.log(np.abs(a * d - b * c)) / 2


@partial(jax.jit, static_argnames="net")
def _theta(net, variables, x_BxHxWxC) -> jax.Array:
    """The maps [B, 2, 3] of the transformer."""

    def of_theta(module, method):
        return module.name == "theta" and method == "__call__"

    _, state = net.apply(variables, x_BxHxWxC, capture_intermediates=of_theta, mutable=["intermediates"])
    change_Bx6 = state["intermediates"]["transformer"]["theta"]["__call__"][0]
    return jnp.eye(2, 3)[None] + SCALE * change_Bx6.reshape(-1, 2, 3)
