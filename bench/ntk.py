"""Tangent kernels and eigenlearning, side by side in one process: python -m bench.ntk [--rounds=3] [--quick]

python -m bench.ntk --large=10000 --path=kernel.npy  # that of so many CIFAR-10 images, which continues after a stop

Every round computes each kernel once by every implementation; a figure is the median over rounds of the ratio within
a round. Peak memory is the largest resident size during a call, less the size before it (Linux). Compilation is
apart. neural-tangents gets both our convolution and XLA's own, for which alone it has structured derivatives; the
faster one counts. Writes bench/ntk.md.
"""

import argparse
import ctypes
import datetime
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from scipy.optimize import brentq

from bench.training import machine
from resjax import config as base
from resjax.data import batches
from resjax.data.dataset import load
from resjax.models import build, layers
from resjax.models.frozen import calibrated, frozen
from resjax.ntk.empirical import LIBRARY, empirical_ntk, flat
from resjax.ntk.in_pieces import kernel_in_pieces
from resjax.theory.eigenlearning import predict

CASES = {  # name -> model entries, samples
    "ResNet-8, width 8, n = 128": ({"width": 8}, 128),
    "ResNet-8, width 16, n = 128": ({"width": 16}, 128),
    "ResNet-8, width 8, n = 512": ({"width": 8}, 512),
    "ResNet-8, width 32, n = 64": ({"width": 32}, 64),
    "mlp, depth 6, width 128, n = 256": ({"name": "mlp", "depth": 6, "width": 128}, 256),
}
SLOW = "ntk_vector_products"  # the time grows with n^2 C backward passes: first case only
PLAIN = " (XLA convolution)"


def xla_convolution(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    """What resjax.models.conv replaces."""
    padding = ((w.shape[0] // 2,) * 2,) * 2
    return lax.conv_general_dilated(x, w, (stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@contextmanager
def plain_convolution() -> Iterator[None]:
    """Nets that are traced inside use XLA's convolution."""
    ours, layers.conv2d = layers.conv2d, xla_convolution
    try:
        yield
    finally:
        layers.conv2d = ours


def contenders(entries: dict, n: int, slow: bool) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> a call that computes the kernel."""
    config = base.base()
    config.model.update({"merge": "mul_bn1"} | entries)
    net = build.build(config.model, 10)
    x = jax.random.normal(jax.random.key(0), (n, 8, 8, 1))
    f, params = frozen(net, calibrated(net, net.init(jax.random.key(1), x[:1]), x))
    print(f"  {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters", flush=True)
    quarter = _bytes(params) * 10 * n // 3
    kernel = n * n * 100 * 8
    calls = {
        "resjax": lambda: empirical_ntk(f, params, x),
        "resjax, small memory": lambda: empirical_ntk(f, params, x, max_memory=kernel + quarter),
    }
    is_mlp = entries.get("name") == "mlp"
    for name in LIBRARY[:3]:
        # Structured derivatives have no rule for our convolution, and would build terabytes.
        if (name != SLOW or slow) and (name != "structured_derivatives" or is_mlp):
            calls[name] = jitted(f, params, x, name)
    if not is_mlp:

        def copied(params, x):  # another function: JAX keeps what it traced of the first
            return f(params, x)

        for name in LIBRARY[:3]:
            if name != SLOW:
                calls[name + PLAIN] = jitted(copied, params, x, name, plain_convolution())
    return calls


def jitted(f: Callable, params, x: jax.Array, name: str, context=None) -> Callable[[], np.ndarray]:
    """The library's kernel, compiled once, as its users call it."""
    from resjax.ntk.neural_tangents import nt

    kernel = jax.jit(
        nt.empirical_ntk_fn(f, trace_axes=(), vmap_axes=0, implementation=nt.NtkImplementation[name.upper()])
    )
    if context is None:
        compiled = kernel.lower(x, None, params).compile()
    else:
        with context:
            compiled = kernel.lower(x, None, params).compile()
    return lambda: np.asarray(compiled(x, None, params))


def _bytes(params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def measured(call: Callable[[], np.ndarray]) -> tuple[float, float]:
    """Seconds, and peak MiB beyond what was resident before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
    before, began = _status("VmRSS"), time.perf_counter()
    call()
    return time.perf_counter() - began, _status("VmHWM") - before


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def row(name: str, calls: dict[str, Callable[[], np.ndarray]], rounds: int) -> str:
    """A line of the table: seconds and memory of ours, and ratios to the library's fastest and leanest."""
    ours = flat(calls["resjax"]())
    scale = np.abs(ours).max()
    for other, call in calls.items():  # warms up, and checks
        apart = np.abs(flat(np.asarray(call(), float)) - ours).max() / scale
        print(f"  {other}: differs by {apart:.1e}", flush=True)
    results = {other: [measured(call) for _ in range(1 if other == SLOW else rounds)] for other, call in calls.items()}
    seconds = {other: statistics.median(r[0] for r in found) for other, found in results.items()}
    memory = {other: max(r[1] for r in found) for other, found in results.items()}
    for other in calls:
        print(f"  {other}: {seconds[other]:.2f} s, {memory[other]:.0f} MiB", flush=True)
    library = [other for other in calls if not other.startswith("resjax")]
    best, small = min(library, key=seconds.get), "resjax, small memory"
    return (
        f"| {name} | {seconds['resjax']:.2f} | {seconds[best] / seconds['resjax']:.2f} | {memory['resjax']:.0f} | "
        f"{memory['resjax'] / memory[best]:.2f} | {seconds[best] / seconds[small]:.2f} | "
        f"{memory[small] / memory[best]:.2f} | {best} |"
    )


def resnet(n: int) -> tuple[Partial, dict, jax.Array]:
    """ResNet-8 of width 8 as a function, its parameters, and n images."""
    config = base.base()
    config.model.update({"merge": "mul_bn1", "width": 8})
    net = build.build(config.model, 10)
    x = jax.random.normal(jax.random.key(0), (n, 8, 8, 1))
    return *frozen(net, calibrated(net, net.init(jax.random.key(1), x[:1]), x)), x


def contraction(n: int = 1024) -> str:
    """The share of the machine's own matrix product that the whole kernel of n samples reaches."""
    f, params, x = resnet(n)
    size = 4096
    a = jax.random.normal(jax.random.key(2), (size, size))
    product = jax.jit(jnp.matmul)
    peak = 2 * size**3 / min(measured(lambda: product(a, a).block_until_ready())[0] for _ in range(4))
    empirical_ntk(f, params, x[:128])
    seconds, memory = measured(lambda: empirical_ntk(f, params, x))
    P = sum(leaf.size for leaf in jax.tree.leaves(params))
    rate = (10 * n) ** 2 * P / seconds
    return (
        f"n = {n}, C = 10, P = {P:,}: {seconds:.1f} s and {memory:,.0f} MiB (the kernel itself takes "
        f"{(10 * n) ** 2 * 8 / 2**20:,.0f}). The upper half of the Jacobian's product with itself in this "
        f"time would be {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of what a square matrix product reaches here."
    )


def in_pieces(n: int = 1024) -> str:
    """The class-summed kernel, in memory and in pieces on the disk, with a quarter of the Jacobian's memory."""
    f, params, x = resnet(n)
    memory = _bytes(params) * 10 * n // 4

    def on_disk() -> np.ndarray:
        with tempfile.TemporaryDirectory() as place:
            return np.array(kernel_in_pieces(f, params, x, Path(place) / "kernel.npy", max_memory=memory))

    def in_memory() -> np.ndarray:
        return empirical_ntk(f, params, x, mode="trace", max_memory=memory)

    ours = in_memory()
    apart = np.abs(on_disk() - ours).max() / np.abs(ours).max()
    (seconds, mib), (other, other_mib) = measured(on_disk), measured(in_memory)
    return (
        f"The kernel's mean over logits, n = {n}, `max_memory` {memory / 2**20:,.0f} MiB, a quarter of the Jacobian: "
        f"{seconds:.1f} s and {mib:,.0f} MiB in pieces (`kernel_in_pieces`, with compilation), {other:.1f} s and "
        f"{other_mib:,.0f} MiB at once (`empirical_ntk`); they differ by {apart:.0e}."
    )


def large(n: int, path: str) -> str:
    """The class-summed kernel of n CIFAR-10 images and a ResNet-8 of width 16, in pieces within the usual memory."""
    config = base.with_preset(base.base(), "cifar10")
    data = load(config.dataset)
    net = build.build(config.model, data.num_classes)
    x = batches.normalize(jnp.asarray(data.train.images_NxHxWxC[:n]), data.mean_C, data.std_C)
    f, params = frozen(net, calibrated(net, net.init(jax.random.key(1), x[:1]), x[:512]))
    kernel: list[np.ndarray] = []
    seconds, mib = measured(lambda: kernel.append(kernel_in_pieces(f, params, x, path, progress=True)))
    few = np.random.default_rng(0).choice(n, 64, replace=False)
    exact = empirical_ntk(f, params, x[np.sort(few)], mode="trace")
    apart = np.abs(kernel[0][np.ix_(np.sort(few), np.sort(few))] - exact).max() / np.abs(exact).max()
    return (
        f"n = {n:,}: {seconds / 60:.0f} minutes and {mib:,.0f} MiB, of which the memory-mapped kernel is "
        f"{n * n * 4 / 2**20:,.0f}; 64 of its rows and columns differ from `empirical_ntk` by {apart:.0e}."
    )


def eigenlearning(modes: int = 10_000, sizes: int = 100, targets: int = 10) -> str:
    """`predict` for all n and targets at once against a scalar solve for each."""
    eigenvalues = 1 / np.arange(1, modes + 1) ** 1.5
    coefficients = np.random.default_rng(0).normal(size=(modes, targets)) / np.arange(1, modes + 1)[:, None]
    ns = np.geomspace(10, 5000, sizes)

    def one(n: float, v: np.ndarray) -> float:
        kappa = np.exp(brentq(lambda u: np.sum(eigenvalues / (eigenvalues + np.exp(u))) - n, -40, 10))
        L = eigenvalues / (eigenvalues + kappa)
        return n / (n - np.sum(L**2)) * np.sum((1 - L) ** 2 * v**2)

    def loop() -> np.ndarray:
        return np.array([[one(n, v) for v in coefficients.T] for n in ns])

    def scalar() -> np.ndarray:
        return np.array([[predict(eigenvalues, v, n).test_mse for v in coefficients.T] for n in ns])

    together = predict(eigenvalues, coefficients, ns).test_mse
    apart = np.abs(loop() / together - 1).max()
    best = min(measured(lambda: predict(eigenvalues, coefficients, ns))[0] for _ in range(5))
    return (
        f"`predict` over {sizes} n x {targets} targets x {modes:,} modes: {best * 1e3:.0f} ms, "
        f"{measured(loop)[0] / best:.0f} times as fast as a loop of scalar solves (brentq on the same equation; "
        f"results differ by {apart:.0e}) and {measured(scalar)[0] / best:.0f} times as fast as scalar calls of itself."
    )


HEAD = """# Speed and memory of tangent kernels

Full empirical kernels [n, n, 10, 10] of 8x8 images, float32 Jacobians; median of {rounds} rounds. "Library": the
implementation of neural-tangents that was fastest for the case. MiB is peak memory. "Small": the same ratios
with `max_memory` a third of the whole Jacobian beyond the kernel. `make bench` writes this page.

{machine}; {date}

| case | resjax, s | library / resjax, s | resjax, MiB | resjax / library, MiB | small: s | small: MiB | library |
|---|---|---|---|---|---|---|---|
"""


TAIL = """
The goals are twice the library's speed with a quarter of its memory. Wide ResNets on few images miss the first: there
the Jacobians of the convolutions take most of the time, and the library's structured derivatives are as fast.

`python -m bench.ntk --large=10000`, the class-summed kernel of 10,000 CIFAR-10 images and a ResNet-8 of width 16 in
pieces, with 2 GiB: 21 minutes on two AMD cores, continued after it had been killed in its third minute; 2,824 MiB, of
which the memory-mapped kernel is 381; 64 of its rows and columns differ from `empirical_ntk` by 2e-07.
"""


def main() -> None:
    """Runs all cases and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the first case alone")
    parser.add_argument("--large", type=int, metavar="N", help="that many CIFAR-10 images, and nothing else")
    parser.add_argument("--path", default="kernel.npy", help="of that kernel; %(default)s")
    args = parser.parse_args()
    if args.large:
        print(large(args.large, args.path))
        return
    page = HEAD.format(rounds=args.rounds, machine=machine(), date=datetime.date.today())
    for i, (name, (entries, n)) in enumerate(CASES.items()):
        print(name, flush=True)
        page += row(name, contenders(entries, n, slow=i == 0), args.rounds) + "\n"
        print(page.splitlines()[-1], flush=True)
        jax.clear_caches()
        if args.quick:
            return
    page += f"\n{contraction()}\n\n{in_pieces()}\n\n{eigenlearning()}\n{TAIL}"
    print(page)
    Path(__file__).with_name("ntk.md").write_text(page)


if __name__ == "__main__":
    main()
