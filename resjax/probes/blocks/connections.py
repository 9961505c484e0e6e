"""What blocks read of earlier outputs and streams, and write to them: weights, mixing matrices, learned scalars.

Per block a row for each number, with the columns block, quantity, i, j and value:

  attention   weight of the i-th earlier output (0 is the stem's), mean over images and positions; also of the head
  mixing      weight of stream i in the next stream j, the same mean
  modulus     of the i-th eigenvalue of that mean matrix, descending
  distance    largest |sum - 1| over rows and columns of the mixing matrices of all images and positions
  beta        of a delta update, whose eigenvalue along its direction is 1 - beta: mean, least and largest (i = 0, 1, 2)
  NAME        every learned scalar of the merge and of the connection
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
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
    if getattr(at.net, "connection", None):
        reads, writes = _recorded(at)
        for block, carried, p in reads if at.net.connection.read is streams.ATTENTION.read else ():
            weights = streams.attention(carried, p["query"])
            rows += [(block, "attention", i, 0, value) for i, value in enumerate(_mean(weights[..., 0]))]
        for block, carried, p in writes if at.net.connection.write in MIXING else ():
            rows += _mixing(block, np.asarray(MIXING[at.net.connection.write](carried, p)))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def _mean(weights: Any) -> np.ndarray:
    """Over all but the first axis."""
    return np.asarray(weights).mean(tuple(range(1, weights.ndim)))


def _mixing(block: str, weights: np.ndarray) -> Iterator[tuple]:
    """Of weights [n, B, ..., n]."""
    matrix = np.moveaxis(weights, -1, 1).reshape(len(weights), len(weights), -1).mean(-1)
    yield from ((block, "mixing", i, j, value) for (i, j), value in np.ndenumerate(matrix))
    moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1]
    yield from ((block, "modulus", i, 0, value) for i, value in enumerate(moduli))
    yield block, "distance", 0, 0, max(np.abs(weights.sum(axis) - 1).max() for axis in (0, -1))


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


def _recorded(at: Subject) -> tuple[Reads, Reads]:
    """What the blocks and the head read from, and what the blocks write to, with the parameters there."""
    connection, net = at.net.connection, at.net
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

    _with(net, replace(connection, read=read, write=write, last=last)).apply(at.variables, at.x_BxHxWxC)
    return reads, writes


def _with(net: nn.Module, connection: Connection) -> nn.Module:
    merge = replace(net.block.keywords["merge"], connection=connection)
    return net.clone(connection=connection, block=partial(net.block, merge=merge))
