"""The empirical neural tangent kernel of any function, in blocks of bounded memory.

    K[i, j, c, d] = < df_c(x_i)/dparams, df_d(x_j)/dparams >

The Jacobian of a group of rows is held while blocks of columns stream past it; of a symmetric kernel only the upper
half is multiplied out. The whole Jacobian is never in memory. Jacobians are float32 with full-precision products, the
kernel is float64 on the host, where eigenvalues and solves belong.

Danger: for more than one logit the full kernel is the reference. The shortcuts `trace` and `pseudo` are of the right
size for additive nets and hide most of what a product does (regression errors on digits are off by up to 2x).
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from rich.progress import Progress

from resjax.config import ConfigError
from resjax.ntk.factors import Factors, factors, product

MODES = ("full", "trace", "pseudo")
LIBRARY = ("jacobian_contraction", "ntk_vector_products", "structured_derivatives", "auto")
MAX_MEMORY = 2 * 2**30  # bytes
BLOCK = 32  # samples whose Jacobian is computed in one call
# A block's Jacobian exists as such, in the layout the derivative leaves it in, and as the cotangents behind it.
COPIES = 3


def empirical_ntk(
    apply_fn: Callable,
    params: Any,
    x1: jax.Array,
    x2: jax.Array | None = None,
    *,
    mode: str = "full",
    block_size: int | None = None,
    max_memory: int = MAX_MEMORY,
    implementation: str = "blocked",
    devices: Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> np.ndarray:
    """The kernel of `apply_fn(params, x [n, ...]) -> logits [n, C]`, float64.

    Args:
      apply_fn: treats its samples one by one (BatchNorm: frozen statistics, see `resjax.models.frozen`). Given as a
        `jax.tree_util.Partial`, its leaves are arguments of the compiled program, not part of it.
      params: what is differentiated, a pytree of floating-point arrays.
      x1: [n1, ...].
      x2: [n2, ...]; None: x1, and the kernel is exactly symmetric.
      mode: "full" [n1, n2, C, C]; "trace" [n1, n2], the mean over logits c = d; "pseudo" [n1, n2], the kernel of the
        sum of the logits over sqrt(C) (Mohamadi et al. 2023, 2206.12543).
      block_size: samples per block; None: at most 32, fewer if memory asks for it.
      max_memory: bytes for Jacobians, their temporaries and the kernel.
      implementation: "blocked", or one of neural-tangents' by name (which knows no `max_memory`).
      devices: that share the rows; None: all local ones.
      progress: whether to show a bar.

    Raises:
      ConfigError: sizes that do not match, samples or parameters that are not finite, a kernel that is not finite,
        or one that does not fit `max_memory`; one line with the sizes.
    """
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}: choose from {', '.join(MODES)}")
    if implementation not in ("blocked", *LIBRARY):
        raise ConfigError(f"implementation={implementation!r}: choose from blocked, {', '.join(LIBRARY)}")
    for name, value in {"max_memory": max_memory, "block_size": 1 if block_size is None else block_size}.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r}: must be a positive whole number")
    f = apply_fn if isinstance(apply_fn, Partial) else Partial(apply_fn)
    shape = Shape.of(f, params, x1, x2, mode)
    if implementation == "blocked":
        devices = list(devices or jax.local_devices())
        plan = _Plan.of(shape, block_size, max_memory, len(devices))
        with Progress(disable=not progress) as bar:
            matrix = _blocked(f, params, x1, x2, mode, shape, plan, devices, bar)
    else:
        matrix = _by_library(f, params, x1, x2, mode, implementation)
    bad = matrix.size - np.isfinite(matrix).sum()
    if bad:
        raise ConfigError(
            f"empirical_ntk: {bad} of {matrix.size} entries of the kernel are not finite ({shape.n1} x {shape.n2} "
            f"samples, {shape.rows} rows each): look for NaN in the samples and the parameters"
        )
    if mode != "full":
        return matrix
    return matrix.reshape(shape.n1, shape.C, shape.n2, shape.C).transpose(0, 2, 1, 3)


class Shape(NamedTuple):
    """Sizes: samples n1 and n2, logits C, rows per sample (C, or 1 for the shortcuts), bytes of a sample's factors."""

    n1: int
    n2: int
    C: int
    rows: int
    sample_bytes: int
    pairs: int  # of positions in a layer of `Factors`, at most: a product holds so many numbers per entry
    symmetric: bool

    @classmethod
    def of(cls, f: Partial, params: Any, x1: jax.Array, x2: jax.Array | None, mode: str) -> "Shape":
        """Checks the arguments against each other. Raises ConfigError."""
        if x2 is not None and x1.shape[1:] != x2.shape[1:]:
            raise ConfigError(f"empirical_ntk: samples of x1 {x1.shape} and x2 {x2.shape} differ in shape")
        if not len(x1) or (x2 is not None and not len(x2)):
            raise ConfigError(f"empirical_ntk: no samples in x1 {x1.shape} or x2 {getattr(x2, 'shape', x1.shape)}")
        out = jax.eval_shape(f, params, x1[:1])
        if getattr(out, "ndim", None) != 2 or out.shape[0] != 1:
            raise ConfigError(f"empirical_ntk: apply_fn must give logits [n, C]; for x {x1[:1].shape} it gave {out}")
        sample = jax.eval_shape(partial(factors, mode=mode), f, params, x1[:1])
        pairs = max((x.shape[1] ** 2 for x, _ in sample.layers), default=0)
        sample_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(sample))
        C = out.shape[1]
        rows = C if mode == "full" else 1
        return cls(len(x1), len(x1) if x2 is None else len(x2), C, rows, sample_bytes, pairs, x2 is None)

    @property
    def kernel_bytes(self) -> int:
        """Of the result."""
        return self.n1 * self.n2 * self.rows**2 * 8


class _Plan(NamedTuple):
    """Samples per block, and blocks of rows that are held at once."""

    block: int
    group: int

    @classmethod
    def of(cls, shape: Shape, block_size: int | None, max_memory: int, devices: int) -> "_Plan":
        """The largest group that memory allows, at most half the samples of a device. Raises ConfigError."""
        free = (max_memory - shape.kernel_bytes) // devices

        def product(block: int) -> int:
            """Bytes that the product of two blocks holds meanwhile."""
            return 8 * shape.pairs * (block * shape.rows) ** 2

        def group(block: int) -> int:
            fit = (free - product(block)) // shape.sample_bytes  # samples whose factors fit on a device
            return min(fit // block - COPIES, math.ceil(shape.n1 / (2 * devices * block)))

        block = block_size or max(
            1, min(BLOCK, math.ceil(shape.n1 / (2 * devices)), free // (2 * COPIES * shape.sample_bytes))
        )
        while block_size is None and block > 1 and group(block) < 1:
            block //= 2
        if group(block) < 1:
            need = shape.kernel_bytes + devices * ((1 + COPIES) * block * shape.sample_bytes + product(block))
            raise ConfigError(
                f"empirical_ntk: max_memory={mib(max_memory)} is too little for a kernel of {shape.n1} x {shape.n2} "
                f"samples with {shape.rows} rows each ({mib(shape.kernel_bytes)}) and factors of "
                f"{mib(shape.sample_bytes)} a sample: it needs {mib(need)}; take fewer samples or classes"
            )
        return cls(block, group(block))


def mib(size: int) -> str:
    """Bytes as users read them."""
    return f"{size / 2**20:,.1f} MiB"


def _blocked(f: Partial, params, x1, x2, mode: str, shape: Shape, plan: _Plan, devices, bar: Progress) -> np.ndarray:
    """The kernel [n1 * rows, n2 * rows], group by group of rows; each device takes every so many groups."""
    kernel = np.empty((shape.n1 * shape.rows, shape.n2 * shape.rows))
    b = plan.block
    x1, count1 = _padded(x1, b)
    x2, count2 = (x1, count1) if x2 is None else _padded(x2, b)
    task = bar.add_task("kernel", total=sum(count2 - i if shape.symmetric else count2 for i in range(count1)))

    def fill(first: int, device: jax.Device) -> None:
        """The rows of the group that begins with block `first`; of a symmetric kernel, right of the diagonal."""
        # Here, not around the pool: JAX's contexts belong to one thread. Without it a GPU would use TF32.
        with jax.default_matmul_precision("highest"):
            fill_group(first, device)

    def fill_group(first: int, device: jax.Device) -> None:
        here = jax.device_put((f, params), device)

        def of_block(x: np.ndarray, i: int) -> Factors:
            return factors(*here, jax.device_put(x[i * b : (i + 1) * b], device), mode)

        group = range(first, min(first + plan.group, count1))
        held = [of_block(x1, i) for i in group]
        for j in range(first if shape.symmetric else 0, count2):
            column = held[j - first] if shape.symmetric and j in group else of_block(x2, j)
            for i, row in zip(group, held, strict=True):
                if shape.symmetric and i > j:
                    break
                into = kernel[i * b * shape.rows : (i + 1) * b * shape.rows, j * b * shape.rows :]
                found = np.asarray(product(row, column))[: into.shape[0], : into.shape[1]]
                into[:, : found.shape[1]] = found
                bar.advance(task)

    starts = range(0, count1, plan.group)
    with ThreadPoolExecutor(len(devices)) as pool:
        # A thread a device: what one group needs is computed and freed before its device takes the next.
        list(pool.map(lambda k: [fill(s, devices[k]) for s in starts[k :: len(devices)]], range(len(devices))))
    return mirrored(kernel) if shape.symmetric else kernel


def _padded(x, block: int) -> tuple[np.ndarray, int]:
    """Whole blocks, the last one filled up with copies of the last sample, and their number."""
    count = math.ceil(len(x) / block)
    x = np.asarray(x)
    return np.concatenate([x, np.repeat(x[-1:], count * block - len(x), axis=0)]), count


def mirrored(kernel: np.ndarray) -> np.ndarray:
    """The lower half from the upper one, in place and in strips: no second kernel in memory."""
    for start in range(0, len(kernel), 512):
        stop = min(start + 512, len(kernel))
        kernel[stop:, start:stop] = kernel[start:stop, stop:].T
        square = kernel[start:stop, start:stop]
        square[:] = np.triu(square) + np.triu(square, 1).T
    return kernel


def _by_library(f: Partial, params, x1, x2, mode: str, implementation: str) -> np.ndarray:
    """The same by neural-tangents, in the layout of `_blocked`."""
    from resjax.ntk.neural_tangents import nt  # seconds to import, and needed here only

    def outputs(params, x):
        logits = f(params, x)
        return jnp.sum(logits, 1, keepdims=True) / math.sqrt(logits.shape[1]) if mode == "pseudo" else logits

    with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
        kernel = jax.jit(
            nt.empirical_ntk_fn(
                outputs,
                trace_axes=(-1,) if mode == "trace" else (),
                vmap_axes=0,
                implementation=nt.NtkImplementation[implementation.upper()],
            )
        )(x1, x2, params)
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 2:
        return kernel
    n1, n2, rows, _ = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(n1 * rows, n2 * rows)


def flat(kernel: np.ndarray) -> np.ndarray:
    """A full kernel [n1, n2, C, C] as the matrix [n1 * C, n2 * C], sample by sample; a matrix stays as it is."""
    if kernel.ndim == 2:
        return kernel
    n1, n2, C, _ = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(n1 * C, n2 * C)
