"""Zeros and dead units of the ReLUs of a `resjax.models.resnet`: the one after the stem, and one inside each branch."""

from collections import OrderedDict
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pandas as pd
from flax.traverse_util import flatten_dict

_BEFORE_A_RELU = ("stem_norm", "norm1")


def activity(net: nn.Module, variables: dict[str, Any], x: jax.Array, *, train: bool) -> tuple[pd.DataFrame, jax.Array]:
    """A row per ReLU, in the order of execution, and the logits [B, K].

    Columns:
      layer: path of the norm before it.
      zero: share of zeros among units and samples; a unit is one channel at one position.
      never_active: share of the units that are 0 on all samples: these are dead, as far as `x` can tell.
      dead_channels: share of the channels that are 0 everywhere on all samples: their kernels get no gradient.

    Args:
      net: of `resjax.models.build` with activation "relu".
      variables: its collections; none is changed.
      x: images [B, H, W, C] or vectors [B, C].
      train: BatchNorm takes the statistics of `x`; else the running statistics.
    """
    logits_BxK, found = jax.device_get(_activity(net, train, variables, x))
    columns = ["zero", "never_active", "dead_channels"]
    rows = [{"layer": layer} | dict(zip(columns, map(float, values), strict=True)) for layer, values in found.items()]
    return pd.DataFrame(rows), logits_BxK


@partial(jax.jit, static_argnames=("net", "train"))
def _activity(net, train, variables, x):
    logits_BxK, kept = net.apply(
        variables,
        x,
        train=train,
        capture_intermediates=lambda module, _: module.name in _BEFORE_A_RELU,
        mutable=["intermediates", "batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    found = OrderedDict()  # of a plain one JAX sorts the keys
    for path, (y,) in flatten_dict(kept["intermediates"]).items():
        zero = y <= 0
        never = jnp.all(zero, 0)
        dead = jnp.all(never, tuple(range(never.ndim - 1)))
        found["/".join(path[:-1])] = tuple(jnp.mean(a) for a in (zero, never, dead))
    return logits_BxK, found
