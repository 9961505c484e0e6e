"""Slices of the loss surface: a plane around a net, and the line between two.

Danger: a slice shows what it shows. Random planes miss what few directions do; and in a net with norms the size of a
step means nothing by itself, hence directions whose filters have the norms of the net's own (Li et al. 2018).
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import lax
from jax.flatten_util import ravel_pytree

from resjax.config import ConfigError
from resjax.models.frozen import calibrated
from resjax.probes.loss.objective import Objective
from resjax.probes.subject import Subject


def loss_surface(at: Subject, *, points: int = 17, reach: float = 1.0) -> pd.DataFrame:
    """The loss on a plane through the net that two random, filter-normalised directions span, on a square grid.

    A direction is Gaussian; each filter of it (the weights of one output channel) is scaled to the norm of the net's
    own, and biases and the norms' parameters stay as they are (Li et al. 2018, 1712.09913, section 4).

    Columns: a, b (the coordinates, 1 moves each filter by its own norm), loss (mean over images, frozen statistics).

    Args:
      at: a replica.
      points: of an axis; odd, so that the net itself is one.
      reach: the coordinates go from -reach to reach.
    """
    axis = np.linspace(-reach, reach, points)
    a, b = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    losses = _plane(Objective.of(at), jax.random.fold_in(at.key, 1), jnp.asarray(np.stack([a, b], 1)))
    return pd.DataFrame({"a": a, "b": b, "loss": np.asarray(losses)})


@jax.jit
def _plane(objective: Objective, key: jax.Array, points_Nx2: jax.Array) -> jax.Array:
    w = objective.vector()
    params = objective.variables["params"]
    d, e = (ravel_pytree(filter_normalised(k, params))[0] for k in jax.random.split(key))
    return lax.map(lambda point: objective.value(w + point[0] * d + point[1] * e), points_Nx2)


def filter_normalised(key: jax.Array, params: dict) -> dict:
    """A Gaussian direction, each filter with the norm of that of `params`; 0 at parameters of fewer than two axes."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def of_leaf(key, w):
        if w.ndim < 2:
            return jnp.zeros_like(w)
        d = jax.random.normal(key, w.shape, w.dtype)
        own, drawn = (jnp.linalg.norm(a.reshape(-1, a.shape[-1]), axis=0) for a in (w, d))
        return d * (own / drawn).reshape((1,) * (w.ndim - 1) + (-1,))

    return jax.tree.unflatten(structure, [of_leaf(k, w) for k, w in zip(keys, leaves, strict=True)])


def interpolation(subjects: Mapping[int, Subject], *, points: int = 11) -> pd.DataFrame:
    """The loss on the line from each replica's parameters to the next replica's, of the last one to the first one's.

    Each replica so is in two pairs. The running statistics of BatchNorm on the way are interpolated as well, or taken
    anew from the images at each point: without that the middle is bad by its statistics alone (Jordan et al. 2023,
    REPAIR).

    Columns: seed and other (of the pair), alpha (0 at seed, 1 at other), statistics ("interpolated" or "recomputed"),
    loss and error (mean over images; share of wrong classes).

    Args:
      subjects: seed -> replica, of one net, on the same images.
      points: of a line.

    Raises:
      ConfigError: there is one replica alone.
    """
    seeds = list(subjects)
    if len(seeds) < 2:
        raise ConfigError("interpolation needs two replicas that did not diverge: raise config.seeds")
    alphas = np.linspace(0, 1, points)
    tables = []
    for seed, other in list(zip(seeds, seeds[1:] + seeds[:1], strict=True))[: 1 if len(seeds) == 2 else None]:
        at, ends = subjects[seed], (subjects[seed].variables, subjects[other].variables)
        for statistics in ("interpolated", "recomputed"):
            found = _line(at.net, at.loss, statistics == "recomputed", *ends, at.x_BxHxWxC, at.targets_BxK, alphas)
            loss, error = jax.device_get(found)
            words = {"seed": seed, "other": other, "alpha": alphas, "statistics": statistics}
            tables.append(pd.DataFrame(words | {"loss": loss, "error": error}))
    return pd.concat(tables, ignore_index=True)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _line(net, loss, recomputed, here, there, x_BxHxWxC, targets_BxK, alphas) -> tuple[jax.Array, jax.Array]:
    """Mean loss and error at each alpha."""

    def of_point(alpha):
        variables = jax.tree.map(lambda a, b: (1 - alpha) * a + alpha * b, here, there)
        if recomputed:
            variables = calibrated(net, variables, x_BxHxWxC)
        logits_BxK = net.apply(variables, x_BxHxWxC)
        wrong_B = jnp.argmax(logits_BxK, -1) != jnp.argmax(targets_BxK, -1)
        return jnp.mean(loss(logits_BxK, targets_BxK)), jnp.mean(wrong_B)

    return lax.map(of_point, jnp.asarray(alphas))
