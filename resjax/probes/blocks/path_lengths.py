"""How long the paths are that carry the gradient (Veit et al. 2016, 1605.06431, section 5).

Backwards, a block has two edges: z = phi(s, f) passes the gradient d on as (dphi/ds) d into its shortcut and as
(dphi/df) d into its branch. A path takes one of them in each of L blocks, and its length is the number of branches that
it takes. The gradients of all 2^L paths add up to the gradient, for every merge.

Of a sum the shortcut's edge is the identity: a path knows nothing of the branches that it passes by. Of a product s*f
it is multiplication by f, and the branch's edge is multiplication by s: the gradient of every path, that of length 0
too, has a factor from every block, made by the forward pass. So a length says through how many branches the gradient
goes, but not that the others could be missing.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import lax

from resjax.probes.blocks.lesion import subsets
from resjax.probes.blocks.merge_points import Call, apply_with_points


def path_lengths(
    net: nn.Module,
    variables: dict[str, Any],
    x: jax.Array,
    targets_BxK: jax.Array,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    *,
    draws: int = 16,
) -> pd.DataFrame:
    """A row per length 0, 1, ..., L of a path through the net's L blocks.

    Columns:
      length: number of branches on the path.
      paths: how many have this length, C(L, length).
      sampled: how many were measured.
      gradient_norm: of the gradient of a sample's loss by its input along one path, mean over samples and paths.
      share: paths * gradient_norm over its sum over all lengths. The net's effective length is sum(length * share).

    Norms of paths are added, which cancel in part: shares say where gradient goes, not what it comes to. BatchNorm has
    its running statistics, so that no gradient passes from one sample to another.

    Args:
      net: a hashable Linen net with merge points, called with (x, train).
      variables: its collections.
      x: inputs [B, ...].
      targets_BxK: their classes, one-hot.
      loss: (logits [B, K], targets [B, K]) -> [B], module-level.
      key: of the sample of paths, which is the same for nets of as many blocks, whatever their merge.
      draws: paths of each length; all if there are no more.

    Raises:
      ConfigError: the net has no merge points.
    """
    points = jax.eval_shape(partial(apply_with_points, net, train=False), variables, x)[1]
    size, rng = len(points), np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = [(k, set(path)) for k in range(size + 1) for path in subsets(size, k, draws, rng)]
    paths_PxL = np.array([[i in path for i in range(size)] for _, path in chosen], np.float32)
    norm_P = np.asarray(_norms(net, loss, tuple(points), variables, x, targets_BxK, paths_PxL), float)
    table = pd.DataFrame({"length": [k for k, _ in chosen], "gradient_norm": norm_P})
    table = table.groupby("length", as_index=False).agg(
        sampled=("gradient_norm", "size"), gradient_norm=("gradient_norm", "mean")
    )
    table.insert(1, "paths", [math.comb(size, k) for k in table["length"]])
    weight = table["paths"] * table["gradient_norm"]
    return table.assign(share=weight / weight.sum())


@partial(jax.jit, static_argnames=("net", "loss", "names"))
def _norms(net, loss, names, variables, x, targets_BxK, paths_PxL) -> jax.Array:
    """Mean over samples of the norm of each path's gradient, [P]."""

    def norm(path_L):
        gradient_BxU = path_gradient(net, loss, names, variables, x, targets_BxK, path_L).reshape(len(x), -1)
        peak = jnp.maximum(jnp.max(jnp.abs(gradient_BxU)), jnp.finfo(x.dtype).tiny)  # squares of products vanish
        return peak * jnp.mean(jnp.linalg.norm(gradient_BxU / peak, axis=1))

    return lax.map(norm, paths_PxL)


def path_gradient(
    net: nn.Module,
    loss: Callable,
    names: Sequence[str],
    variables: dict[str, Any],
    x: jax.Array,
    targets_BxK: jax.Array,
    path_L: jax.Array,
) -> jax.Array:
    """Gradient of each sample's loss by its own input, [B, ...], along the path that takes a branch where path_L is 1.

    `names` are those of the merge points; the others are arguments of `path_lengths`.
    """

    def edit(call):
        return along(call, path_L[names.index(call.name)])

    def total(x):
        return jnp.sum(loss(apply_with_points(net, variables, x, edit, train=False)[0], targets_BxK))

    return jax.grad(total)(x)


def along(call: Call, branch: jax.Array) -> jax.Array:
    """The z of a block with its value, and with the derivative by the branch alone (1) or the shortcut alone (0).

    What else the merge is called with, such as the h from which a highway makes its gate, goes with the branch.
    """

    def passed(share, value):
        fixed = lax.stop_gradient(value)
        return fixed + share * (value - fixed)

    others = {
        name: passed(branch, value)
        for name, value in call.arguments.items()
        if name not in ("s", "f") and isinstance(value, jax.Array)
    }
    return call.merge(passed(1 - branch, call.s), passed(branch, call.f), **others)
