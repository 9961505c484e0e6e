"""The class-summed tangent kernel of many samples, in pieces that stay on the disk when the process is killed.

    K[i, j] = 1/C sum_c < df_c(x_i)/dparams, df_c(x_j)/dparams >

This is `empirical_ntk(..., mode="trace")`, in float32, for Jacobians that are many times as large as the memory. The
kernel is a sum over logits, and that is what saves work: where all C logits of few samples fit into memory, g of them
fit for C/g times as many, and the fewer strips the rows make, the fewer Jacobians are computed again.

Cost. Let a strip have r rows, held in memory with g logits each, and let n / r = S be the number of strips. The columns
of a strip run from its own diagonal to the end, and the C/g groups of logits follow each other, so that

    backward passes   n C (S + 1) / 2
    forward passes    n C/g (S + 1) / 2
    multiply-adds     n^2 C P / 2, with P parameters
    memory            r (4 g P + 4 n) bytes, and a block of columns with what its derivatives need.

`max_memory` M gives r = M / (4 g P + 4 n) or so. Of all g that divide C the one of least cost is taken, where a forward
pass counts as half a backward pass. A ResNet-8 of width 16 (P = 78,000, C = 10) on n = 10,000 samples with 2 GiB has
g = 1 and strips of 5,888 and 4,112 rows: 1.43 n C backward passes, where g = C would need 9.4 n C.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from resjax.config import ConfigError
from resjax.ntk.empirical import COPIES, MAX_MEMORY, Shape, mib
from resjax.ntk.factors import Factors, factors, product
from resjax.ntk.piece_files import Pieces, digest
from resjax.runtime.progress import TrainingProgress

BLOCK = 128  # samples whose Jacobians are multiplied together: products of smaller blocks wait for the memory
CALL = 8  # samples that are differentiated together: more are not faster on a CPU and hold more at once
FORWARD = 0.5  # the cost of a forward pass in backward passes
SHARE = 8  # a block of columns takes at most this part of the memory
PROBED = 2  # samples whose logits tell one function from another


class Plan(NamedTuple):
    """How the work is cut: logits held at once, samples per block, and rows per strip, a multiple of `block`."""

    logits: int
    block: int
    rows: int

    def strips(self, n: int) -> list[tuple[int, int]]:
        """(first, last + 1) row of each strip of n rows."""
        return [(start, min(start + self.rows, n)) for start in range(0, n, self.rows)]

    def blocks(self, n: int) -> int:
        """How many blocks of Jacobians all strips need for one group of logits."""
        return sum(math.ceil((n - start) / self.block) for start, _ in self.strips(n))

    def cost(self, n: int, C: int) -> float:
        """In backward passes of one sample and one logit."""
        return self.blocks(n) * self.block * (C + FORWARD * C / self.logits)


def kernel_in_pieces(
    apply_fn: Callable,
    params: Any,
    x: jax.Array | np.ndarray,
    path: str | os.PathLike,
    *,
    block: int | None = None,
    max_memory: int = MAX_MEMORY,
    progress: bool = False,
) -> np.ndarray:
    """The mean over logits of the kernels of `apply_fn(params, x [n, ...]) -> logits [n, C]`, in the file `path`.

    A call that finds pieces of the same kernel continues after them, as they were begun; a call that finds the whole
    kernel computes nothing. One process writes a path at a time. The work is that of the default device.

    Args:
      apply_fn: treats its samples one by one, as in `empirical_ntk`.
      params: what is differentiated, a pytree of floating-point arrays.
      x: [n, ...].
      path: ends with .npy. Beside it lie its record (.json) and, until it is whole, finished pieces (.pieces/).
      block: samples whose Jacobians are multiplied together; None: at most 128, fewer if memory asks for it.
      max_memory: bytes for Jacobians, their temporaries and a strip of the kernel, beyond params, `x` and the compiler
        (260 MiB for a ResNet-8). The finished kernel is put together in mapped pages, which the system takes back.
      progress: whether to show what is done and the time left.

    Returns:
      [n, n] float32, exactly symmetric, mapped from the file and read-only.

    Raises:
      ConfigError: bad sizes, a kernel that is not finite, too little memory, or a file that is damaged or that
        belongs to another net or to other samples; one line.
    """
    for name, value in {"max_memory": max_memory, "block": 1 if block is None else block}.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r}: must be a positive whole number")
    f = apply_fn if isinstance(apply_fn, Partial) else Partial(apply_fn)
    shape = Shape.of(f, params, x, None, "trace")
    logits = np.asarray(jax.jit(f)(params, x[:PROBED]))
    if not np.isfinite(logits).all():
        raise ConfigError("kernel_in_pieces: the logits are not finite: look for NaN in the samples and the parameters")
    pieces = Pieces(Path(path), digest(f, params, x), logits, shape.n1)
    kernel = pieces.finished()
    if kernel is not None:
        return kernel
    with jax.default_matmul_precision("highest"):  # without it a GPU would use TF32
        work = _Work.of(f, params, x, shape, pieces, block, max_memory)
        with TrainingProgress("kernel", work.total(), work.total(done=True), quiet=not progress) as bar:
            for start, stop in work.plan.strips(shape.n1):
                work.strip(start, stop, bar)
    return pieces.join(work.plan.strips(shape.n1))


def _some(f: Partial, logits_g: jax.Array, params: Any, x: jax.Array) -> jax.Array:
    """The logits with these numbers. The numbers are an argument of the compiled program: one serves all groups."""
    return f(params, x)[:, logits_g]


def _group(f: Partial, logits: int, number: int) -> Partial:
    return Partial(_some, f, jnp.arange(number * logits, (number + 1) * logits))


@partial(jax.jit, static_argnames="call")
def _block(f: Partial, params: Any, x_Bx: jax.Array, call: int) -> Factors:
    """The factors of a block of samples, `call` of them at a time."""
    calls = jax.lax.map(lambda x: factors(f, params, x, "trace"), x_Bx.reshape(-1, call, *x_Bx.shape[1:]))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), calls)


def _call(block: int) -> int:
    return max(size for size in range(1, CALL + 1) if block % size == 0)


def _planned(shape: Shape, bytes_of: dict[int, int], block: int | None, max_memory: int, extra: int | None) -> Plan:
    """The cheapest plan. `bytes_of` are those of a sample's factors by logits; `extra` the temporaries, if known."""
    n, C, plans, needs = shape.n1, shape.C, [], []
    for logits, sample_bytes in bytes_of.items():
        fit = max(1, min(BLOCK, n, max_memory // (SHARE * sample_bytes)))
        size = block or (fit if fit < CALL else fit // CALL * CALL)
        temporaries = COPIES * _call(size) * sample_bytes if extra is None else extra
        beside = size * sample_bytes + temporaries + 8 * shape.pairs * size**2
        row_of_blocks = size * (sample_bytes + 4 * n)
        count = min((max_memory - beside) // row_of_blocks, math.ceil(n / size))
        needs.append(beside + row_of_blocks)
        if count > 0:
            plans.append(Plan(logits, size, count * size))
    if not plans:
        raise ConfigError(
            f"kernel_in_pieces: max_memory={mib(max_memory)} is too little for {n} samples with factors of "
            f"{mib(bytes_of[1])} per logit: it needs {mib(min(needs))}"
        )
    return min(plans, key=lambda plan: plan.cost(n, C))


class _Work(NamedTuple):
    """The kernel that is computed, and how."""

    f: Partial
    params: Any
    x: jax.Array | np.ndarray
    C: int
    plan: Plan
    block: Callable[[Partial, Any, jax.Array], Factors]  # compiled
    pieces: Pieces

    @classmethod
    def of(cls, f: Partial, params: Any, x, shape: Shape, pieces: Pieces, block: int | None, max_memory: int):
        """Continues the plan of the pieces, or makes one from what the compiled derivatives need."""
        if pieces.plan:
            begun = pieces.plan["max_memory"]
            if begun > max_memory:
                raise ConfigError(
                    f"kernel_in_pieces: was begun with max_memory={begun}, now it is {max_memory}: give as much, or "
                    "choose another path"
                )
            plan = Plan(*(pieces.plan[name] for name in Plan._fields))
            return cls(f, params, x, shape.C, plan, _compiled(f, params, x, plan), pieces)
        divisors = [g for g in range(1, shape.C + 1) if shape.C % g == 0]
        bytes_of = {g: Shape.of(_group(f, g, 0), params, x, None, "trace").sample_bytes for g in divisors}
        plan = _planned(shape, bytes_of, block, max_memory, None)
        compiled = _compiled(f, params, x, plan)
        extra = compiled.memory_analysis().temp_size_in_bytes
        plan = _planned(shape, {plan.logits: bytes_of[plan.logits]}, plan.block, max_memory, extra)
        pieces.begin(plan._asdict() | {"max_memory": max_memory})
        return cls(f, params, x, shape.C, plan, compiled, pieces)

    def total(self, done: bool = False) -> int:
        """Blocks of Jacobians: all of them, or those of finished pieces."""
        n, plan = len(self.x), self.plan
        return sum(
            math.ceil((n - start) / plan.block) * (self.pieces.done(start, stop) if done else self.C // plan.logits)
            for start, stop in plan.strips(n)
        )

    def strip(self, start: int, stop: int, bar: TrainingProgress) -> None:
        """Adds the groups of logits that the rows from `start` to `stop` lack, and keeps a piece after each."""
        done = self.pieces.done(start, stop)
        if done == self.C // self.plan.logits:
            return
        sums = np.array(self.pieces.load(start, stop))
        for number in range(done, self.C // self.plan.logits):
            self._add(sums, start, stop, _group(self.f, self.plan.logits, number), bar)
            self.pieces.keep(start, stop, number + 1, sums)

    def _add(self, sums: np.ndarray, start: int, stop: int, f: Partial, bar: TrainingProgress) -> None:
        """Adds a group's part to sums [stop - start, n - start], from the diagonal to the right, block by block."""
        held, b = [], self.plan.block
        for j in range(start, len(self.x), b):
            column = self.block(f, self.params, _padded(self.x, j, b))
            if j < stop:
                held.append(column)
            for i, row in enumerate(held):
                into = sums[i * b : (i + 1) * b, j - start : j - start + b]
                part = np.asarray(product(row, column))[: into.shape[0], : into.shape[1]]
                if not np.isfinite(part).all():
                    raise ConfigError(
                        f"kernel_in_pieces: not finite for samples from {start + i * b} and from {j}, {b} each: look "
                        "for NaN in the samples and the parameters"
                    )
                into += part * (self.plan.logits / self.C)
            del column  # before the next one is computed
            bar.advance(1)


def _compiled(f: Partial, params: Any, x, plan: Plan):
    return _block.lower(_group(f, plan.logits, 0), params, _padded(x, 0, plan.block), _call(plan.block)).compile()


def _padded(x: jax.Array | np.ndarray, start: int, block: int) -> np.ndarray:
    """A whole block, filled up with copies of the last sample."""
    x_Bx = np.asarray(x[start : start + block])
    return np.concatenate([x_Bx, np.repeat(x_Bx[-1:], block - len(x_Bx), axis=0)])
