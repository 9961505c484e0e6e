"""The learned function between two images of different classes: regions, borders, detours, bends, and mixtures.

The g and p are those of `functions.function`; a line is x_t = (1 - t) a + t b for t in [0, 1], in equal steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from resjax.probes.functions.function import Function, groups, labels, probabilities
from resjax.probes.subject import Subject


def lines(at: Subject, *, count: int = 64, points: int = 65) -> pd.DataFrame:
    """A row per line.

    Columns:
      image_a, image_b: its ends, positions among the images.
      regions: pieces of the line that have one class each (1 plus the changes from point to point).
      third: share of the points whose class is that of neither end.
      way: how far (p of a's class) - (p of b's class), the classes as labelled, goes up and down in all.
      back: the part of it against its direction as a whole; 0 where it is monotone, at most half of `way`.
      curvature: the mean over t of |g''(t)|, the norm over classes of the second difference over its squared step: of
        a polynomial up to degree 3 the second derivative itself. Danger: a piecewise linear net has kinks instead, and
        those nearer to each other than a step count together: a net reads more with more points. Compare at equal ones.

    Args:
      at: a replica.
      count: of lines.
      points: of a line.
    """
    function = Function.of(at)
    a, b = groups(labels(at), count, 2).T
    x_LxMxHxWxC = mixed(at.x_BxHxWxC, a, b, np.linspace(0, 1, points))
    g_LxMxK = function.g(x_LxMxHxWxC)
    p_LxMxK, class_LxM = probabilities(g_LxMxK), g_LxMxK.argmax(-1)
    ends_Lx1 = class_LxM[:, :1], class_LxM[:, -1:]
    at_line = np.arange(count)
    lead_LxM = p_LxMxK[at_line, :, labels(at)[a]] - p_LxMxK[at_line, :, labels(at)[b]]
    step_LxM = np.diff(lead_LxM, axis=1)
    way_L = np.abs(step_LxM).sum(1)
    second_LxMxK = np.diff(g_LxMxK, 2, axis=1) * (points - 1) ** 2
    columns = {
        "image_a": a,
        "image_b": b,
        "regions": 1 + (class_LxM[:, 1:] != class_LxM[:, :-1]).sum(1),
        "third": ((class_LxM != ends_Lx1[0]) & (class_LxM != ends_Lx1[1])).mean(1),
        "way": way_L,
        "back": (way_L - np.abs(step_LxM.sum(1))) / 2,
        "curvature": np.linalg.norm(second_LxMxK, axis=-1).mean(1),
    }
    return pd.DataFrame(columns)


def mixing(at: Subject, *, count: int = 128, points: int = 11) -> pd.DataFrame:
    """How far the net is from linear between images, which is what mixup asks of it (Zhang et al. 2018, 1710.09412).

    Columns:
      mix: weight of the second image, 0 to 1.
      gap: total variation sum_k |p_k - q_k| / 2 between the probabilities of the mixture, and the mixture of the
        probabilities; mean over the lines. It is 0 of a net whose probabilities are linear, and at most 1.

    Args:
      at: a replica.
      count: of lines.
      points: of a line.
    """
    function = Function.of(at)
    a, b = groups(labels(at), count, 2).T
    mix_M = np.linspace(0, 1, points)
    p_LxMxK = probabilities(function.g(mixed(at.x_BxHxWxC, a, b, mix_M)))
    chord_LxMxK = (1 - mix_M[:, None]) * p_LxMxK[:, :1] + mix_M[:, None] * p_LxMxK[:, -1:]
    return pd.DataFrame({"mix": mix_M, "gap": np.abs(p_LxMxK - chord_LxMxK).sum(-1).mean(0) / 2})


def mixed(x_BxHxWxC: jax.Array, a_L: np.ndarray, b_L: np.ndarray, t_M: np.ndarray) -> jax.Array:
    """The images (1 - t) x[a] + t x[b], [L, M, H, W, C]."""
    t_Mx1 = jnp.asarray(t_M, x_BxHxWxC.dtype).reshape(-1, *[1] * (x_BxHxWxC.ndim - 1))
    return (1 - t_Mx1)[None] * x_BxHxWxC[a_L][:, None] + t_Mx1[None] * x_BxHxWxC[b_L][:, None]
