"""What happens to signal and gradients from block to block, measured: the other side of `resjax.theory.mean_field`.

The z of a row is the merge's output, before an activation that may follow; theory's, given a `post_activation`, is
after it. A unit is one entry of a sample's z: one channel at one position.
"""

import math
from collections import OrderedDict
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pandas as pd

from resjax.probes.blocks.merge_points import Point, apply_with_points, as_it_is


def propagation(
    net: nn.Module, variables: dict[str, Any], x: jax.Array, key: jax.Array, *, train: bool = True
) -> pd.DataFrame:
    """A row per merge point, in the order of execution.

    Columns:
      block: its name, as in `resjax.probes.blocks.merge_points`.
      stage: 1, 2, ...; a new one begins where z changes its shape.
      mean, power, kurtosis: E z, E z^2, E z^4 / (E z^2)^2, over units and samples.
      log_norm_mean, log_norm_std: of the natural logarithm of ||z_sample||, over samples whose z is not 0.
      typical: geometric mean of |z| over z != 0; 0 if there is none.
      alive: share of z != 0 among units and samples.
      dead_units: share of the units that are 0 on all samples.
      gradient_power: mean square, over units and samples, of the gradient at this z of <cotangent, last z>, where the
        cotangent is drawn from N(0, 1). So it is 1, up to chance, at the last point, and the head plays no part.
      gain: G, the gradient's power at the z before over that at this z. Both are summed over the units of a sample, so
        that it means the same where z changes its shape. nan at the first point.

    nan is also what can't be told: kurtosis and norms of a z that is 0, the gain where no gradient arrives.

    Args:
      net: a hashable Linen net with merge points, called with (x, train).
      variables: its collections; none is changed.
      x: inputs [B, ...] as the net is trained on them.
      key: of the cotangent and of dropout.
      train: BatchNorm takes the statistics of `x`, as in theory, and dropout drops; else the running statistics.

    Raises:
      ConfigError: the net has no merge points.
    """
    zeros = {name: jnp.zeros(z.shape, z.dtype) for name, z in _shapes(net, train, x.shape, x.dtype).items()}
    measured = jax.device_get(_statistics(net, train, variables, x, key, zeros))
    rows, stage, shape, gradient = [], 0, None, math.nan
    for name, columns in measured.items():
        shape_before, shape = shape, zeros[name].shape
        stage += shape != shape_before
        row = {"block": name, "stage": stage} | {column: float(value) for column, value in columns.items()}
        gradient_before, gradient = gradient, row["gradient_power"] * math.prod(shape[1:])  # of a sample
        rows.append(row | {"gain": gradient_before / gradient if gradient else math.nan})
    return pd.DataFrame(rows)


def _points(
    net: nn.Module, train: bool, variables: dict[str, Any], x: jax.Array, key: jax.Array, edit=as_it_is
) -> OrderedDict[str, Point]:
    kwargs = {"train": train, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
    return apply_with_points(net, variables, x, edit, **kwargs)[1]


@lru_cache
def _shapes(net: nn.Module, train: bool, shape: tuple[int, ...], dtype: jnp.dtype) -> dict[str, jax.ShapeDtypeStruct]:
    """Of every z; tracing the net takes longer than a look at it."""
    key, x = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct(shape, dtype)
    points = jax.eval_shape(partial(_points, net, train), jax.eval_shape(net.init, key, x), x, key)
    return {name: point.z for name, point in points.items()}


@partial(jax.jit, static_argnames=("net", "train"))
def _statistics(net, train, variables, x, key, zeros) -> OrderedDict[str, OrderedDict[str, jax.Array]]:
    """The columns that are measured, of each point; the gradients are those by `zeros`, added to every z."""
    dropout, cotangent = jax.random.split(key)

    def last(shifts):
        points = _points(net, train, variables, x, dropout, lambda call: as_it_is(call) + shifts[call.name])
        return next(reversed(points.values())).z, points

    z, backward, points = jax.vjp(last, zeros, has_aux=True)
    (gradients,) = backward(jax.random.normal(cotangent, z.shape, z.dtype))
    return OrderedDict((name, _of_point(point.z, gradients[name])) for name, point in points.items())


def _of_point(z: jax.Array, gradient: jax.Array) -> OrderedDict[str, jax.Array]:
    """The statistics of one point's z and gradient, [B, ...] both.

    Danger: a deep product's z spreads over so many decades that powers overflow and vanish: hence the peaks.
    """
    z_BxU, gradient_BxU = (a.reshape(len(a), -1).astype(jnp.promote_types(a.dtype, jnp.float32)) for a in (z, gradient))
    size_BxU = jnp.abs(z_BxU)
    nonzero_BxU = size_BxU > 0
    peak_Bx1 = jnp.max(size_BxU, 1, keepdims=True)
    log_norm_Bx1 = jnp.log(peak_Bx1) + jnp.log(jnp.sum(jnp.square(size_BxU / peak_Bx1), 1, keepdims=True)) / 2
    square_BxU = jnp.square(size_BxU / jnp.max(peak_Bx1))
    return OrderedDict(
        mean=jnp.mean(z_BxU),
        power=jnp.mean(jnp.square(z_BxU)),
        kurtosis=jnp.mean(jnp.square(square_BxU)) / jnp.square(jnp.mean(square_BxU)),
        log_norm_mean=jnp.mean(log_norm_Bx1, where=peak_Bx1 > 0),
        log_norm_std=jnp.std(log_norm_Bx1, where=peak_Bx1 > 0),
        typical=jnp.where(jnp.any(nonzero_BxU), jnp.exp(jnp.mean(jnp.log(size_BxU), where=nonzero_BxU)), 0.0),
        alive=jnp.mean(nonzero_BxU),
        dead_units=jnp.mean(~jnp.any(nonzero_BxU, 0)),
        gradient_power=jnp.mean(jnp.square(gradient_BxU)),
    )
