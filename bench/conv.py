"""Convolutions of the nets, shape by shape, on one core: python -m bench.conv [--rounds=7] [--dtype=bfloat16]

The 3x3 convolution, its gradient by the input and its gradient by the weights, as `resjax.models.conv` computes them,
as XLA does by itself, and as oneDNN does in PyTorch where that is installed (channels last). All run in one process on
one core, in interleaved rounds, in loops of four as in training; a figure is the smallest CPU time of the rounds.
Writes bench/conv.md.
"""

import argparse
import datetime
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX counts the cores

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bench.training import machine
from resjax.models import conv

BATCH, LOOP = 128, 4
SHAPES = [  # pixels, input channels, output channels, stride
    (32, 3, 16, 1), (32, 16, 16, 1), (32, 16, 32, 2), (16, 32, 32, 1), (16, 32, 64, 2), (8, 64, 64, 1),
    (8, 1, 16, 1), (8, 16, 16, 1), (8, 16, 32, 2), (4, 32, 32, 1),
]  # fmt: skip
OPERATIONS = "forward", "by the input", "by the weights"
Call = Callable[[], None]


def in_jax(maps: dict[str, Callable], x: jax.Array, w: jax.Array, dy: jax.Array) -> dict[str, Call]:
    """Calls that do each operation LOOP times."""
    arguments = {"forward": (x, w), "by the input": (dy, w), "by the weights": (x, dy)}

    def repeated(f: Callable, a: jax.Array, b: jax.Array) -> Call:
        @jax.jit
        def loop(a, b):
            def body(i, total):
                return total + jnp.sum(f(a * (1 + i).astype(a.dtype), b).astype(jnp.float32))

            return lax.fori_loop(0, LOOP, body, jnp.float32(0))

        return lambda: loop(a, b).block_until_ready()

    return {name: repeated(maps[name], *arguments[name]) for name in OPERATIONS}


def ours(x: jax.Array, stride: int) -> dict[str, Callable]:
    """The three maps of `resjax.models.conv`."""
    size = x.shape[1:3]
    return {
        "forward": lambda x, w: conv.conv2d(x, w, stride),
        "by the input": lambda dy, w: conv._dx_p.bind(dy, w, stride=stride, size=size),
        "by the weights": lambda x, dy: conv._dw_p.bind(x, dy, stride=stride),
    }


def plain(x: jax.Array, stride: int) -> dict[str, Callable]:
    """The same by XLA's convolution and autodiff."""
    return {
        "forward": partial(conv._xla_conv, stride=stride),
        "by the input": partial(conv._xla_dx, stride=stride, size=x.shape[1:3]),
        "by the weights": partial(conv._xla_dw, stride=stride),
    }


def in_torch(x: np.ndarray, w: np.ndarray, dy: np.ndarray, stride: int, dtype: str) -> dict[str, Call]:
    """The same by oneDNN; empty without PyTorch."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)

    def tensor(a: np.ndarray, axes: tuple[int, ...]) -> "torch.Tensor":
        found = torch.tensor(a.transpose(axes), dtype=getattr(torch, dtype))
        return found.contiguous(memory_format=torch.channels_last)

    x, dy, w = tensor(x, (0, 3, 1, 2)), tensor(dy, (0, 3, 1, 2)), tensor(w, (3, 2, 0, 1))
    backward = torch.ops.aten.convolution_backward
    shared = None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1
    calls = {
        "forward": lambda: torch.nn.functional.conv2d(x, w, stride=stride, padding=1),
        "by the input": lambda: backward(dy, x, w, *shared, [True, False, False]),
        "by the weights": lambda: backward(dy, x, w, *shared, [False, True, False]),
    }
    return {name: lambda call=call: [call() for _ in range(LOOP)] for name, call in calls.items()}


def rows(shape: tuple[int, ...], rounds: int, dtype: str) -> list[str]:
    """Lines of the table: GFLOP/s of each contender, and oneDNN's time over ours."""
    H, C, F, stride = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, H, H, C)).astype(np.float32)
    w = rng.normal(size=(3, 3, C, F)).astype(np.float32)
    dy = rng.normal(size=(BATCH, H // stride, H // stride, F)).astype(np.float32)
    arrays = [jnp.asarray(a, dtype) for a in (x, w, dy)]
    contenders = {
        "ours": in_jax(ours(x, stride), *arrays),
        "XLA": in_jax(plain(x, stride), *arrays),
        "oneDNN": in_torch(x, w, dy, stride, dtype),
    }
    contenders = {name: calls for name, calls in contenders.items() if calls}
    flop = 2 * BATCH * (H // stride) ** 2 * 9 * C * F
    lines = []
    for operation in OPERATIONS:
        seconds = {name: [] for name in contenders}
        for turn in range(rounds + 1):
            for name, calls in contenders.items():
                began = time.process_time()
                calls[operation]()
                if turn:  # the first compiles
                    seconds[name].append((time.process_time() - began) / LOOP)
        best = {name: min(found) for name, found in seconds.items()}
        speeds = [f"{flop / best[name] / 1e9:.0f}" if name in best else "-" for name in ("ours", "XLA", "oneDNN")]
        ratio = f"{best['ours'] / best['oneDNN']:.2f}" if "oneDNN" in best else "-"
        cells = [f"{H}x{H}, {C} -> {F}, stride {stride}", operation, f"{best['ours'] * 1e3:.2f}", *speeds, ratio]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


HEAD = """# Convolutions on one core

The 3x3 convolution of the nets and its two gradients, {dtype}, {batch} examples, in loops as in training. `make bench`
writes this page. GFLOP/s count the products with zero padding; the last column is our time over oneDNN's.

{machine}; {date}

| shape | operation | ours, ms | ours, GFLOP/s | XLA | oneDNN | ours / oneDNN |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Measures every shape and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", default=str(Path(__file__).with_name("conv.md")), metavar="PATH")
    args = parser.parse_args()
    page = HEAD.format(dtype=args.dtype, batch=BATCH, machine=machine(), date=datetime.date.today())
    print(page, end="", flush=True)
    for shape in SHAPES:
        lines = rows(shape, args.rounds, args.dtype)
        print("\n".join(lines), flush=True)
        page += "\n".join(lines) + "\n"
    Path(args.out).write_text(page)


if __name__ == "__main__":
    main()
