"""The function whose tangent kernel is meant: the net as it is used at test time, with its statistics frozen.

Danger: at initialisation the running statistics of BatchNorm are (0, 1), so that BatchNorm does nothing, and in
train mode it couples the samples of a batch. So calibrate the statistics on the training images first.
"""

from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from resjax.models.layers import MOMENTUM


def frozen(net: nn.Module, variables: dict[str, Any]) -> tuple[Partial, Any]:
    """The pair (apply_fn, params) of a net, with `apply_fn(params, x [n, ...]) -> logits [n, C]`.

    `apply_fn` is a `jax.tree_util.Partial` that carries the other collections as leaves: jitted functions that take
    it as an argument compile once for all replicas of a net.
    """
    stats = {name: collection for name, collection in variables.items() if name != "params"}
    return Partial(_apply(net), stats), variables["params"]


@lru_cache
def _apply(net: nn.Module):
    def apply(stats, params, x_BxHxWxC):
        return net.apply({"params": params, **stats}, x_BxHxWxC)

    return apply


def calibrated(net: nn.Module, variables: dict[str, Any], x_NxHxWxC: jax.Array) -> dict[str, Any]:
    """The variables with the running statistics that all of `x` together have in train mode.

    A net with dropout gets the statistics of one draw of it. What else the variables hold stays as it is.
    """
    if "batch_stats" not in variables:
        return variables
    return variables | {"batch_stats": _statistics(net, variables, x_NxHxWxC)}


@partial(jax.jit, static_argnames="net")
def _statistics(net: nn.Module, variables: dict[str, Any], x_NxHxWxC: jax.Array):
    rngs = {"dropout": jax.random.key(0)}
    variables = variables | {"batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    _, new = net.apply(variables, x_NxHxWxC, train=True, mutable=["batch_stats"], rngs=rngs)
    # new = momentum * old + (1 - momentum) * of this batch, and old is 0: nothing large is subtracted
    return jax.tree.map(lambda new: new / (1 - MOMENTUM), new["batch_stats"])
