"""What blocks read of earlier outputs and streams, and write to them: weights, mixing matrices, learned scalars.

Per block a row for each number, with the columns block, quantity, i, j and value:

  attention   weight of the i-th earlier output (0 is the stem's), mean over images and positions; also of the head
  mixing      weight of stream i in the next stream j, the same mean
  modulus     of the i-th eigenvalue of that mean matrix, descending
  distance    largest |sum - 1| over rows and columns of the mixing matrices of all images and positions
  beta        of a delta update, whose eigenvalue along its direction is 1 - beta: mean, least and largest (i = 0, 1, 2)
  NAME        every learned scalar of the merge and of the connection
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pandas as pd

from resjax.models import streams
from resjax.models.streams import Connection, Maps, Parameters
from resjax.probes.subject import Subject

COLUMNS = ["block", "quantity", "i", "j", "value"]
HEAD = "head"
MIXING = {streams.HC.write: streams.hc_mixing, streams.MHC.write: streams.mhc_mixing}
Reads = list[tuple[str, Maps, Parameters]]


def connections(at: Subject) -> pd.DataFrame:
    """The rows of one net, on the images of `at`; none if its merge has neither connection, delta nor scalars."""
    params = at.variables["params"]
    rows = [*_scalars(params)]
    if any("delta_update" in own.get("merge", {}) for own in params.values()):
        rows += _betas(at)
    for block, own in weights(at.net, at.variables, at.x_BxHxWxC).items():
        mean = np.asarray(own).mean(tuple(range(1, own.ndim - 1)))
        if at.net.connection.write not in MIXING:
            rows += [(block, "attention", i, 0, value) for i, value in enumerate(mean[:, 0])]
        else:
            rows += _mixing(block, mean, np.asarray(own))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def weights(net: nn.Module, variables: Any, x_BxHxWxC: jax.Array) -> OrderedDict[str, jax.Array]:
    """What each block reads or mixes, by its name: none for other connections.

    That is attention to L earlier outputs [L, B, ..., 1], also of the head, or the mixing of n streams [n, B, ..., n].
    """
    found = OrderedDict()
    if getattr(net, "connection", None):
        reads, writes = _recorded(net, variables, x_BxHxWxC)
        for block, carried, p in reads if net.connection.read is streams.ATTENTION.read else ():
            found[block] = streams.attention(carried, p["query"])
        for block, carried, p in writes if net.connection.write in MIXING else ():
            found[block] = MIXING[net.connection.write](carried, p)
    return found


def _mixing(block: str, matrix: np.ndarray, own: np.ndarray) -> Iterator[tuple]:
    """Of the mean matrix [n, n] and its values everywhere, [n, B, ..., n]."""
    yield from ((block, "mixing", i, j, value) for (i, j), value in np.ndenumerate(matrix))
    moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1]
    yield from ((block, "modulus", i, 0, value) for i, value in enumerate(moduli))
    yield block, "distance", 0, 0, max(np.abs(own.sum(axis) - 1).max() for axis in (0, -1))


def _scalars(params: Any) -> Iterator[tuple]:
    for block, own in params.items():
        for part in ("merge", "connection"):
            for name, value in own.get(part, {}).items() if hasattr(own, "get") else ():
                if getattr(value, "ndim", None) == 0:
                    yield block, name, 0, 0, float(value)


def _betas(at: Subject) -> Iterator[tuple]:
    _, state = at.net.apply(at.variables, at.x_BxHxWxC, mutable=["intermediates"])
    for block, own in state.get("intermediates", {}).items():
        for (beta,) in [m["beta"] for m in own.get("merge", {}).values() if "beta" in m]:
            for i, of in enumerate((np.mean, np.min, np.max)):
                yield block, "beta", i, 0, of(np.asarray(beta))


def _recorded(net: nn.Module, variables: Any, x_BxHxWxC: jax.Array) -> tuple[Reads, Reads]:
    """What the blocks and the head read from, and what the blocks write to, with the parameters there."""
    connection = net.connection
    reads: Reads = []
    writes: Reads = []
    names = [f"stage{i}_block{j}" for i, (blocks, *_) in enumerate(net.stages, 1) for j in range(1, blocks + 1)]

    def read(h, carried: Maps, p: Parameters):
        reads.append((names[len(reads)], carried, p))
        return connection.read(h, carried, p)

    def write(carried: Maps, s, f, z, p: Parameters):
        writes.append((names[len(writes)], carried, p))
        return connection.write(carried, s, f, z, p)

    def last(h, carried: Maps, p: Parameters):
        reads.append((HEAD, carried, p))
        return connection.last(h, carried, p)

    _with(net, replace(connection, read=read, write=write, last=last)).apply(variables, x_BxHxWxC)
    return reads, writes


def _with(net: nn.Module, connection: Connection) -> nn.Module:
    merge = replace(net.block.keywords["merge"], connection=connection)
    return net.clone(connection=connection, block=partial(net.block, merge=merge))
