"""The points of a net where shortcut and branch merge, made visible while it runs, and moved, but never rewritten.

A merge point is a call of a Linen submodule named `merge` with arguments `s` and `f`, by position or keyword and among
any others; what it returns is z. So `resjax.models.resnet` has them, and so may any other net.

Danger: values don't leave `nn.scan`, `nn.remat` and `nn.jit`: JAX reports a leaked tracer where one wraps the blocks.
"""

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from resjax.config import ConfigError


class Point(NamedTuple):
    """A merge point's shortcut and branch, [B, ..., C] both as the merge receives them, and its output."""

    s: jax.Array
    f: jax.Array
    z: jax.Array  # what goes on into the net: before an activation that may follow, and with its shift


def apply_with_points(
    net: nn.Module, variables: Mapping[str, Any], x: jax.Array, shifts: Mapping[str, jax.Array], **words
) -> tuple[Any, OrderedDict[str, Point]]:
    """`net.apply(variables, x, **words)`, and its merge points in the order of execution.

    A point is named by the path of the module around it, such as "stage1_block2"; if that runs again, "...#2". The
    dictionary is an OrderedDict since JAX sorts the keys of a plain one, on the way out of `jit` for instance.

    Args:
      net: any Linen module.
      variables: its collections.
      x: its input [B, ...].
      shifts: name of a point -> what is added to its z, of the same shape; the gradient by a shift of zeros is the
        gradient at z. Points that are not named stay as they are.
      words: keywords of `net.apply`, and of the net's call.

    Raises:
      ConfigError: the net has no merge points, or none of a name in `shifts`.
    """
    points = OrderedDict()

    def visit(call, args, kwargs, context):
        z = call(*args, **kwargs)
        if context.module.name != "merge" or context.method_name != "__call__":
            return z
        arguments = inspect.signature(context.orig_method).bind(*args, **kwargs).arguments
        if not {"s", "f"} <= arguments.keys():
            return z
        block = "/".join(context.module.path[:-1])
        runs = sum(name.partition("#")[0] == block for name in points)
        name = f"{block}#{runs + 1}" if runs else block
        z = z + shifts[name] if name in shifts else z
        points[name] = Point(arguments["s"], arguments["f"], z)
        return z

    with nn.intercept_methods(visit):
        out = net.apply(variables, x, **words)
    if not points:
        raise ConfigError(f"{type(net).__name__} has no merge points: submodules named 'merge', called with s and f")
    if unknown := shifts.keys() - points.keys():
        raise ConfigError(f"shifts of {', '.join(sorted(unknown))}: the merge points are {', '.join(points)}")
    return out, points
