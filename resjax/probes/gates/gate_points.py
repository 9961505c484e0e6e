"""The gates of a net's merge points: what their merges declare, and the arrays that the gates are made of."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from resjax.config import ConfigError
from resjax.models.merges import Merge
from resjax.probes.blocks.merge_points import Call, apply_with_points, as_it_is


class Around(NamedTuple):
    """A merge point and what is computed around it; [B, ..., C] all, but for `m`, which broadcasts against them.

    Attributes:
      s, f, z: of the `merge_points.Point`.
      m: the third map of the merge; None if it has none.
      out: what leaves the module around the merge: z after an activation that may follow.
      factors: name -> logistic, of those whose product `m` is (`resjax.models.merges.Gate`); they broadcast as `m`.
    """

    s: jax.Array
    f: jax.Array
    z: jax.Array
    m: jax.Array | None
    out: jax.Array
    factors: Mapping[str, jax.Array] = MappingProxyType({})


def apply_with_gates(
    net: nn.Module, variables: Mapping[str, Any], x: jax.Array, edit: Callable[[Call], jax.Array] = as_it_is, **kwargs
) -> tuple[Any, OrderedDict[str, Around], dict[str, Merge | None]]:
    """`apply_with_points`, with what lies around the points, and the merge that each declares.

    A point's module declares its merge by an attribute `merge`; None: it does not. Of a merge with `extra`, the third
    map is what the module's submodule of that name returns.

    Args:
      net: of `apply_with_points`, as all the others.
      variables: its collections.
      x: its input [B, ...].
      edit: gives the z of a point; it calls the merge once.
      **kwargs: keywords of `net.apply` and of the net's call; `mutable`, if given, is a list.

    Returns:
      What the net returns, without what Linen captures; and both by the names of the points.

    Raises:
      ConfigError: the net has no merge points, or a block that calls its merge more than once in a run.
    """
    merges: dict[str, Merge | None] = {}

    def declaring(call: Call) -> jax.Array:
        declared = getattr(call.module, "merge", None)
        merges[call.name] = declared if isinstance(declared, Merge) else None
        return edit(call)

    kwargs = {"mutable": []} | kwargs
    (out, state), points = apply_with_points(net, variables, x, declaring, capture_intermediates=True, **kwargs)
    around = OrderedDict()
    for name, point in points.items():
        path, _, run = name.partition("#")
        run, captured, merge = int(run or 1) - 1, state["intermediates"], merges[name]
        for part in filter(None, path.split("/")):
            captured = captured[part]
        if run >= len(captured.get("__call__", ())):
            raise ConfigError(f"{name}: what leaves the block is not told by its merge, called more than once in a run")
        third = captured["merge"][merge.extra] if merge and merge.extra else None
        m = third["__call__"][run] if third else None
        factors = [of for gate in merge.gates for of in gate.factors if of in third] if merge else []
        leaving = captured["__call__"][run]
        leaving = leaving[0] if isinstance(leaving, tuple) else leaving  # beside it: what a connection carries on
        around[name] = Around(*point, m, leaving, {of: third[of][run] for of in factors})
    return out, around, merges
