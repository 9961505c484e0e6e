"""The points of a net where shortcut and branch merge, made visible while it runs, and changed, but never rewritten.

A merge point is a call of a Linen submodule named `merge` with arguments `s` and `f`, by position or keyword and among
any others; what it returns is z. So `resjax.models.resnet` has them, and so may any other net.

Danger: values don't leave `nn.scan`, `nn.remat` and `nn.jit`: JAX reports a leaked tracer where one wraps the blocks.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from resjax.config import ConfigError


class Point(NamedTuple):
    """A merge point's shortcut and branch, [B, ..., C] both as the merge receives them, and its output."""

    s: jax.Array
    f: jax.Array
    z: jax.Array  # what goes on into the net: before an activation that may follow, and as `edit` made it


class Call(NamedTuple):
    """A merge that is about to happen.

    Attributes:
      name: of the point.
      s, f: shortcut and branch.
      arguments: all that the merge is called with, by name: of `resjax.models.resnet` also the block's input `h`.
      merge: (s, f) -> z, the merge itself with any s and f, and by keyword with any other of its arguments.
      module: the submodule that merges: of `resjax.models.resnet` it has an attribute `merge`, its declaration.
    """

    name: str
    s: jax.Array
    f: jax.Array
    arguments: Mapping[str, Any]
    merge: Callable[..., jax.Array]
    module: nn.Module


def as_it_is(call: Call) -> jax.Array:
    """The edit that changes nothing."""
    return call.merge(call.s, call.f)


def apply_with_points(
    net: nn.Module, variables: Mapping[str, Any], x: jax.Array, edit: Callable[[Call], jax.Array] = as_it_is, **kwargs
) -> tuple[Any, OrderedDict[str, Point]]:
    """`net.apply(variables, x, **kwargs)` with `edit(call)` in place of every z, and its merge points in their order.

    A point is named by the path of the module around it, such as "stage1_block2"; if that runs again, "...#2". The
    dictionary is an OrderedDict since JAX sorts the keys of a plain one, on the way out of `jit` for instance.

    An edit that adds zeros to s, f or z makes the gradient by these zeros the gradient at s, f or z.

    Args:
      net: any Linen module.
      variables: its collections.
      x: its input [B, ...].
      edit: gives the z of a point, of the shape that the merge would give.
      kwargs: keywords of `net.apply`, and of the net's call.

    Raises:
      ConfigError: the net has no merge points.
    """
    points = OrderedDict()

    def visit(call, args, kwargs, context):
        if context.module.name != "merge" or context.method_name != "__call__":
            return call(*args, **kwargs)
        bound = inspect.signature(context.orig_method).bind(*args, **kwargs)
        if not {"s", "f"} <= bound.arguments.keys():
            return call(*args, **kwargs)

        def merge(s, f, **others):
            bound.arguments.update(s=s, f=f, **others)
            return call(*bound.args, **bound.kwargs)

        block = "/".join(context.module.path[:-1])
        runs = sum(name.partition("#")[0] == block for name in points)
        name = f"{block}#{runs + 1}" if runs else block
        s, f = bound.arguments["s"], bound.arguments["f"]
        z = edit(Call(name, s, f, dict(bound.arguments), merge, context.module))
        points[name] = Point(s, f, z)
        return z

    with nn.intercept_methods(visit):
        out = net.apply(variables, x, **kwargs)
    if not points:
        raise ConfigError(f"{type(net).__name__} has no merge points: submodules named 'merge', called with s and f")
    return out, points
