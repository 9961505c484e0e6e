"""The masks that merges lay over feature maps: where they look, and what they cost."""

from collections import OrderedDict
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from resjax.config import ConfigError
from resjax.models.merges import Merge
from resjax.probes.gates.gate_points import Around, apply_with_gates
from resjax.probes.subject import Subject


def masks(at: Subject) -> pd.DataFrame:
    """A row per merge point, image and position of its feature map.

    Columns:
      block: name of the merge point (`resjax.probes.blocks.merge_points`).
      image: index into the images.
      row, column: of the position, from 0.
      mask: what the other path is multiplied by there: the mean over channels of the gate (of f or m where there are
        several), or of |f| where the merge declares none: the mask of a product, and of a sum none at all.
      relative: mask over its mean over the positions of that image: 1 is the share of no attention.
      ink: mean over the input's channels, averaged down to the position.

    Args:
      at: a net of feature maps; it runs as at test time.

    Raises:
      ConfigError: the net has no merge points, or one of them is not of maps [B, H, W, C].
    """
    found, tables = jax.device_get(_masks(at.net, at.variables, at.x_BxHxWxC)), []
    for name, (mask_BxHxW, ink_BxHxW) in found.items():
        image, row, column = (axis.ravel() for axis in np.indices(mask_BxHxW.shape))
        relative = mask_BxHxW / mask_BxHxW.mean((1, 2), keepdims=True)
        columns = {"mask": mask_BxHxW.ravel(), "relative": relative.ravel(), "ink": ink_BxHxW.ravel()}
        tables.append(pd.DataFrame({"block": name, "image": image, "row": row, "column": column} | columns))
    return pd.concat(tables, ignore_index=True)


@partial(jax.jit, static_argnames="net")
def _masks(net: nn.Module, variables: dict, x: jax.Array) -> OrderedDict[str, tuple[jax.Array, jax.Array]]:
    """Mask and ink, [B, H, W] both, of every point."""
    _, points, merges = apply_with_gates(net, variables, x)
    found = OrderedDict()
    for name, point in points.items():
        if point.f.ndim != 4:
            raise ConfigError(f"a mask is of maps [B, H, W, C]; at {name} they have the shape {point.f.shape}")
        mask_BxHxW = mask(point, merges[name])
        ink_BxHxW = jax.image.resize(jnp.mean(x, -1, dtype=mask_BxHxW.dtype), mask_BxHxW.shape, "linear")
        found[name] = mask_BxHxW, ink_BxHxW
    return found


def factor(point: Around, merge: Merge | None) -> jax.Array:
    """What the other path is multiplied by at a point: the gate, or |f| where `merge` declares none.

    Of several gates the last, which is of f or m. It broadcasts against f [B, ..., C].
    """
    gates = merge.gates if merge else ()
    gate = gates[-1].value(getattr(point, gates[-1].of)) if gates else jnp.abs(point.f)
    return gate.astype(jnp.promote_types(gate.dtype, jnp.float32))  # means of bfloat16 lose digits, pandas lacks it


def mask(point: Around, merge: Merge | None) -> jax.Array:
    """The mean of `factor` over channels, [B, H, W] of maps [B, H, W, C]."""
    return jnp.broadcast_to(jnp.mean(factor(point, merge), -1), point.f.shape[:-1])
