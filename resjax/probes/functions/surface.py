"""The learned function around images, and on the plane through three of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from resjax.probes.functions import planes
from resjax.probes.functions.function import Function, groups, labels, probabilities, sharpness
from resjax.probes.subject import Subject


def smoothness(at: Subject) -> pd.DataFrame:
    """A row per image: how much a net's answer changes with its input.

    Columns:
      image: its position among the images.
      jacobian: Frobenius norm of the Jacobian of the class probabilities by the normalised pixels, the sensitivity of
        Novak et al. (2018, 1802.08760), at the temperature of `resjax.probes.functions.function`.
      jacobian_logits: that of g, which does not vanish where a net is sure.
    """
    scale = Function.of(at).scale
    factor = sharpness(at.targets_BxK.shape[1]) / scale
    found_2xB = jax.device_get(_jacobians(at.net, at.variables, at.x_BxHxWxC, factor))
    columns = {"jacobian": found_2xB[0], "jacobian_logits": found_2xB[1] / scale}
    return pd.DataFrame({"image": np.arange(len(at.x_BxHxWxC))} | columns)


@partial(jax.jit, static_argnames="net")
def _jacobians(net, variables, x_BxHxWxC, factor) -> jax.Array:
    """Norms [2, B], of softmax(factor logits) and of centred logits. One pass back per class: images don't mix."""

    def squares(answer):
        y_BxK, back = jax.vjp(answer, x_BxHxWxC)
        one_hot_KxK = jnp.eye(y_BxK.shape[1], dtype=y_BxK.dtype)

        def of_class(unit_K):
            (gradient,) = back(jnp.broadcast_to(unit_K[None], y_BxK.shape))
            return jnp.sum(jnp.square(gradient), range(1, gradient.ndim))

        return jnp.sum(jax.lax.map(of_class, one_hot_KxK), 0)

    def probabilities(x):
        return jax.nn.softmax(factor * net.apply(variables, x))

    def centred(x):
        y = net.apply(variables, x)
        return y - jnp.mean(y, -1, keepdims=True)

    return jnp.sqrt(jnp.stack([squares(probabilities), squares(centred)]))


def plane(at: Subject, *, points: int = 41, margin: float = 0.25) -> pd.DataFrame:
    """The net's classes on a square of the plane through three images of different classes (`corners`).

    Columns: x, y (coordinates of `planes.Plane`, in normalised pixels), label (the class that the net gives), margin
    (its probability less the next one's).

    Args:
      at: a replica.
      points: of a side.
      margin: of `planes.Plane.grid`.
    """
    through = planes.through(np.asarray(at.x_BxHxWxC[corners(labels(at))]))
    xy_Nx2 = through.grid(points, margin).reshape(-1, 2)
    p_NxK = probabilities(Function.of(at).g(through.images(xy_Nx2)))
    highest_NxK = np.sort(p_NxK, 1)
    columns = {"x": xy_Nx2[:, 0], "y": xy_Nx2[:, 1], "label": p_NxK.argmax(1)}
    return pd.DataFrame(columns | {"margin": highest_NxK[:, -1] - highest_NxK[:, -2]})


def corners(labels_B: np.ndarray) -> np.ndarray:
    """Positions [3] of the images that span the plane, the same for every net."""
    return groups(labels_B, 1, 3)[0]
