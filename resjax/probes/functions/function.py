"""The function that a net has learned, in units in which nets can be compared, and where to look at it."""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.special import softmax

from resjax.data import batches
from resjax.data.subsets import stream
from resjax.probes.subject import Subject

SURE = 0.99


class Function(NamedTuple):
    """What a net, as it is used at test time, makes of images.

    Logits have a mean over classes that no probability sees, and a scale that training raises without end. So g are
    the logits without the former and in units of the latter: their root mean square over the subject's images and
    classes is 1. And p are the class probabilities at one temperature for all nets, softmax(sharpness(K) g): a net that
    is only surer of itself has the same g and p.

    Attributes:
      at: the replica.
      scale: of its centred logits on its images.
    """

    at: Subject
    scale: float

    @classmethod
    def of(cls, at: Subject) -> "Function":
        """The function of a replica."""
        found = _centred(logits(at.net, at.variables, at.x_BxHxWxC))
        return cls(at, float(jnp.sqrt(jnp.mean(jnp.square(found)))))

    def g(self, x: jax.Array) -> np.ndarray:
        """The values g, [..., K] float64, of images [..., H, W, C]."""
        inside = self.at.x_BxHxWxC.ndim - 1
        found = logits(self.at.net, self.at.variables, jnp.asarray(x).reshape(-1, *x.shape[-inside:]))
        return np.asarray(_centred(found), float).reshape(*x.shape[:-inside], -1) / self.scale


def probabilities(g: np.ndarray) -> np.ndarray:
    """The probabilities p [..., K] of values g [..., K]."""
    return softmax(sharpness(g.shape[-1]) * g, axis=-1)


def sharpness(num_classes: int) -> float:
    """The factor of g at which a net that is equally sure of all images gives each one's class the probability SURE.

    Of such a net the class leads the others by K / sqrt(K - 1).
    """
    others = num_classes - 1
    return math.log(SURE / (1 - SURE) * others) * math.sqrt(others) / num_classes


def _centred(logits_BxK: jax.Array) -> jax.Array:
    return logits_BxK - jnp.mean(logits_BxK, -1, keepdims=True)


@partial(jax.jit, static_argnames="net")
def logits(net: nn.Module, variables: dict[str, Any], x: jax.Array) -> jax.Array:
    """[B, K] of images [B, ...], in passes of `batches.at_once` images; the last pass may repeat one."""
    size = len(x)
    count = -(-size // batches.at_once(x.shape[1:]))
    index_NxB = jnp.minimum(jnp.arange(count * -(-size // count)), size - 1).reshape(count, -1)
    logits_NxBxK = lax.map(lambda index_B: net.apply(variables, x[index_B]), index_NxB)
    return logits_NxBxK.reshape(-1, logits_NxBxK.shape[-1])[:size]


def groups(labels_B: np.ndarray, count: int, size: int) -> np.ndarray:
    """Positions [count, size] of images of `size` different classes each, the same for every net; classes permitting.

    Args:
      labels_B: classes of the images.
      count: of groups.
      size: of a group.
    """
    rng = stream(0, f"groups of {size}")
    out = []
    for _ in range(count):
        order = rng.permutation(len(labels_B))
        _, first = np.unique(labels_B[order], return_index=True)  # the first image of every class, in this order
        rest = np.setdiff1d(np.arange(len(order)), first)
        out.append(order[np.concatenate([np.sort(first), rest])[:size]])
    return np.stack(out)


def labels(at: Subject) -> np.ndarray:
    """Classes of the subject's images, [B]."""
    return np.asarray(at.targets_BxK).argmax(1)
