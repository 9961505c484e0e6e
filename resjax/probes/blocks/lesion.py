"""What a net can still do after a lesion: blocks skipped, cut down to their shortcut, held at their mean, exchanged.

An additive net behaves like an ensemble of paths: a lost block costs the paths through it, and the error rises smoothly
with the number of lost blocks (Veit et al. 2016, 1605.06431, section 4). In a product every path has a
factor from every block. A lesion is made of the finished net; nothing is trained again.
"""

import itertools
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import lax
from scipy.stats import kendalltau

from resjax.probes.blocks.merge_points import Call, Point, apply_with_points, as_it_is

REMOVALS = ("delete", "identity", "mean")  # what a mask says of a block: 0 that it is intact, i that it has the i-th


class Lesion(NamedTuple):
    """One lesion of a net of L blocks.

    Attributes:
      name: as in the column `lesion`.
      draw: counts the lesions of equal name and size.
      mask_L: as REMOVALS has it.
      order_L: the block whose variables each block has; 0, 1, ... in the intact net.
    """

    name: str
    draw: int
    mask_L: tuple[int, ...]
    order_L: tuple[int, ...]

    def touched(self) -> list[int]:
        """The blocks that are not as they were."""
        return [i for i, (mask, taken) in enumerate(zip(self.mask_L, self.order_L, strict=True)) if mask or taken != i]


def lesion(
    net: nn.Module,
    variables: dict[str, Any],
    x: jax.Array,
    targets_BxK: jax.Array,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    *,
    draws: int = 3,
    recalibrate: bool = False,
) -> pd.DataFrame:
    """A row per lesion: none, each block alone, random sets of blocks, each exchange of two, random exchanges.

    Columns:
      lesion: "none"; "delete": z is the block's input h (as "identity" where h has another shape, or the merge is not
        called with `h`); "identity": z is the merge's shortcut s, which differs from h where the merge normalises it;
        "mean": f is its mean over `x`, unit by unit, so that the branch is there but the same for every image (a third
        map computed from h, such as a highway's gate, stays as it is); "swap": two blocks have exchanged their
        variables; "permute": pairs of blocks have, again and again.
      blocks: those touched, by name, joined by ";".
      k: how many these are.
      draw: 0, 1, ... among the sets of equal lesion and size, and among the permutations of as many exchanges.
      tau: Kendall's tau of the order that the blocks are in, 1 for all but the exchanges.
      loss, accuracy: means over `x`.

    An activation after the merge still follows. Blocks that may be exchanged have, in every collection, variables of
    their own under their name, with the same names and shapes; those of a stage but for its first, usually. Where there
    are none, there are no such rows.

    Args:
      net: a hashable Linen net with merge points, called with (x, train).
      variables: its collections; none is changed.
      x: inputs [B, ...].
      targets_BxK: their classes, one-hot.
      loss: (logits [B, K], targets [B, K]) -> [B], module-level.
      key: of the random sets, which are the same for nets of as many blocks, whatever their merge.
      draws: random sets of each size from 2 on, all if there are fewer, and permutations of each number of exchanges.
      recalibrate: BatchNorm takes the statistics that `x` has after the lesion, and dropout drops (train mode): a
        control. Else it has those of training, which do not fit what comes after a lesion.

    Raises:
      ConfigError: the net has no merge points.
    """
    _, points = jax.eval_shape(partial(_run, net, recalibrate), variables, x)
    names = tuple(points)
    groups = exchangeable(variables, names)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    lesions = [*_removals(len(names), draws, rng), *_exchanges(len(names), groups, draws, rng)]
    masks_MxL = np.array([one.mask_L for one in lesions], np.int32)
    orders_MxL = np.array([one.order_L for one in lesions], np.int32)
    measured = _measured(net, loss, recalibrate, names, groups, variables, x, targets_BxK, masks_MxL, orders_MxL)
    rows = [
        {
            "lesion": one.name,
            "blocks": ";".join(names[i] for i in one.touched()),
            "k": len(one.touched()),
            "draw": one.draw,
            "tau": float(kendalltau(range(len(names)), one.order_L).statistic) if len(names) > 1 else 1.0,
        }
        for one in lesions
    ]
    return pd.DataFrame(rows).assign(**{name: np.asarray(column, float) for name, column in measured.items()})


def exchangeable(variables: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The points, by number, whose blocks can exchange their variables: groups of two or more."""
    groups = defaultdict(list)
    for i, name in enumerate(names):
        own = {kind: collection[name] for kind, collection in variables.items() if name in collection}
        leaves, tree = jax.tree.flatten(own)
        if leaves:
            groups[tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)].append(i)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def subsets(size: int, k: int, draws: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """`draws` different sets of `k` of the first `size` integers, or all if there are no more; in their order."""
    if math.comb(size, k) <= draws:
        return list(itertools.combinations(range(size), k))
    found = set()
    while len(found) < draws:
        found.add(tuple(sorted(rng.choice(size, k, replace=False).tolist())))
    return sorted(found)


def _removals(size: int, draws: int, rng: np.random.Generator) -> Iterator[Lesion]:
    """Nothing; then of each size the same sets for every removal."""
    intact = tuple(range(size))
    yield Lesion("none", 0, (0,) * size, intact)
    for k in range(1, size + 1):
        for draw, chosen in enumerate(subsets(size, k, size if k == 1 else draws, rng)):
            for mask, name in enumerate(REMOVALS, 1):
                yield Lesion(name, draw, tuple(mask if i in chosen else 0 for i in range(size)), intact)


def _exchanges(size: int, groups: Sequence[Sequence[int]], draws: int, rng: np.random.Generator) -> Iterator[Lesion]:
    """Every pair that can be exchanged; then for t = 1, 2, ..., size permutations made of t exchanges."""
    pairs = [pair for group in groups for pair in itertools.combinations(group, 2)]
    for draw, pair in enumerate(pairs):
        yield Lesion("swap", draw, (0,) * size, _order(size, [pair]))
    for t in range(1, size + 1) if pairs else ():
        for draw in range(draws):
            chosen = [pairs[i] for i in rng.integers(len(pairs), size=t)]
            yield Lesion("permute", draw, (0,) * size, _order(size, chosen))


def _order(size: int, pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    order = list(range(size))
    for a, b in pairs:
        order[a], order[b] = order[b], order[a]
    return tuple(order)


def _run(
    net: nn.Module, train: bool, variables: dict[str, Any], x: jax.Array, edit: Callable[[Call], jax.Array] = as_it_is
) -> tuple[jax.Array, OrderedDict[str, Point]]:
    kwargs = {"train": train, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}}
    (logits_BxK, _), points = apply_with_points(net, variables, x, edit, **kwargs)
    return logits_BxK, points


@partial(jax.jit, static_argnames=("net", "loss", "train", "names", "groups"))
def _measured(
    net, loss, train, names, groups, variables, x, targets_BxK, masks_MxL, orders_MxL
) -> dict[str, jax.Array]:
    """Loss and accuracy [M] of all lesions; masks are arrays, so that one compilation serves them all."""

    def of_lesion(mask_and_order):
        mask_L, order_L = mask_and_order

        def edit(call):
            return removed(call, mask_L[names.index(call.name)])

        logits_BxK, _ = _run(net, train, _reordered(variables, names, groups, order_L), x, edit)
        hits_B = jnp.argmax(logits_BxK, -1) == jnp.argmax(targets_BxK, -1)
        return {"loss": jnp.mean(loss(logits_BxK, targets_BxK)), "accuracy": jnp.mean(hits_B, dtype=jnp.float32)}

    return lax.map(of_lesion, (masks_MxL, orders_MxL))


def removed(call: Call, mask: jax.Array) -> jax.Array:
    """The z of a block with the mask, an integer []; 0: as it is."""
    delete, identity, mean = (mask == i for i in range(1, 1 + len(REMOVALS)))
    z = call.merge(call.s, jnp.where(mean, jnp.mean(call.f, 0, keepdims=True), call.f))
    h = call.arguments.get("h")
    skipped = call.s if h is None or h.shape != z.shape else h
    return jnp.where(delete, skipped, jnp.where(identity, call.s, z))


def _reordered(variables: dict[str, Any], names: Sequence[str], groups, order_L: jax.Array) -> dict[str, Any]:
    """The variables with those of block order_L[i] under the name of block i."""
    for group in groups:
        place = np.zeros(len(names), int)
        place[list(group)] = range(len(group))
        taken = jnp.asarray(place)[order_L[np.array(group)]]
        changed = {}
        for kind, collection in variables.items():
            own = [collection[names[i]] for i in group if names[i] in collection]
            if own:
                mixed = jax.tree.map(lambda *leaves: jnp.stack(leaves)[taken], *own)  # noqa: B023 - used at once
                changed[kind] = dict(collection) | {
                    names[i]: jax.tree.map(lambda leaf: leaf[j], mixed)  # noqa: B023
                    for j, i in enumerate(group)
                }
        variables = dict(variables) | changed
    return variables
