"""One convolution, `conv2d`, that is fast on every platform and under every transformation.

XLA's own convolution is left alone on accelerators. On the CPU it has four weaknesses, each worth a factor:

- Autodiff emits the two gradients as convolutions with permuted dimension numbers. Inside loops (`lax.scan`,
  `lax.map`, `fori_loop`) the CPU compiler leaves them so and runs naive loop nests: a training step of a small
  ResNet took 200 ms instead of 7. So the gradients are written out here, in forms that are fast everywhere.
- A gradient by the weights sums over examples and pixels. Done at once, its operands are copied through memory; in
  pieces of a few examples they stay in the cache, and it takes half the time.
- Maps of 2x2 pixels run at 16 GFLOP/s, a matrix product at 340.
- Few channels fill no vector: with 16 output channels it has half the speed that it has with 32.

`bench/conv.md` has the speed of every shape of the nets, and `python -m bench.conv` measures it anew.

The 3x3 convolution is a bilinear map with two transposes. The three are primitives whose derivatives are each
other, so forward mode, reverse mode, any order and mixture of them, `vmap` and `jit` all work.
Shapes: B examples, H rows, W columns, K taps, C input channels, F output channels.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_NHWC = ("NHWC", "HWIO", "NHWC")
_PAD = ((0, 0), (1, 1), (1, 1), (0, 0))


def conv2d(x_BxHxWxC: Array, kernel_KxKxCxF: Array, stride: int = 1) -> Array:
    """Convolve with K x K kernels, zero-padded by K // 2 on every side, to y_BxH'xW'xF, H' = ceil(H / stride).

    K is 1 or 3, the stride 1 or 2. Results equal `lax.conv_general_dilated` up to rounding.
    """
    K, K2, C, _ = kernel_KxKxCxF.shape
    if K != K2 or K not in (1, 3) or stride not in (1, 2) or x_BxHxWxC.ndim != 4 or x_BxHxWxC.shape[3] != C:
        raise ValueError(f"conv2d: no {x_BxHxWxC.shape} by {kernel_KxKxCxF.shape} with stride {stride}")
    if K == 1:
        return product(x_BxHxWxC[:, ::stride, ::stride], kernel_KxKxCxF[0, 0], 1)
    if stride == 1 and x_BxHxWxC.shape[1:3] == (2, 2):
        return _dense_2x2(x_BxHxWxC, kernel_KxKxCxF)
    return _conv_p.bind(x_BxHxWxC, kernel_KxKxCxF, stride=stride)


def _dense_2x2(x_Bx2x2xC: Array, kernel_3x3xCxF: Array) -> Array:
    """A 2x2 map sees 16 of the 36 products of taps and pixels: one matrix [4C, 4F] is exact and 20x faster."""
    B, _, _, C = x_Bx2x2xC.shape
    taps = [kernel_3x3xCxF[1 - p : 3 - p, 1 - q : 3 - q] for p in (0, 1) for q in (0, 1)]  # of output (p, q)
    matrix = jnp.stack(taps, axis=3)  # [2, 2, C, 4, F]: input pixel (i, j) meets tap (i - p + 1, j - q + 1)
    return product(x_Bx2x2xC.reshape(B, 4 * C), matrix.reshape(4 * C, -1), 1).reshape(B, 2, 2, -1)


def product(a: Array, b: Array, axes: int | tuple) -> Array:
    """`jnp.tensordot` that adds in float32 at least: with bfloat16 sums a CPU takes ten times as long."""
    sums = jnp.tensordot(a, b, axes, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))
    return sums.astype(a.dtype)


# The three bilinear maps: y(x, w), and its transposes dx(dy, w) and dw(x, dy).


def patches(x: Array, stride: int) -> Array:
    """The windows of the outputs, [B, H', W', 9 C]."""
    H, W = (-(-n // stride) for n in x.shape[1:3])
    x = jnp.pad(x, _PAD)
    rows, columns = (H - 1) * stride + 1, (W - 1) * stride + 1
    spans = [(i, j) for i in range(3) for j in range(3)]
    return jnp.concatenate([x[:, i : i + rows : stride, j : j + columns : stride] for i, j in spans], axis=3)


def _widen(w: Array, columns: int) -> Array:
    """Kernels [3, columns + 2, C, columns * F] that yield so many neighbouring columns at once."""
    shifted = [jnp.pad(w, ((0, 0), (o, columns - 1 - o), (0, 0), (0, 0))) for o in range(columns)]
    return jnp.concatenate(shifted, axis=3)


def _matmul_conv(x: Array, w: Array, stride: int) -> Array:
    return product(patches(x, stride), w.reshape(-1, w.shape[3]), 1)


def _matmul_dx(dy: Array, w: Array, stride: int, size: tuple[int, int]) -> Array:
    x = jax.ShapeDtypeStruct((dy.shape[0], *size, w.shape[2]), dy.dtype)
    return jax.linear_transpose(lambda x: _matmul_conv(x, w, stride), x)(dy)[0]


def _matmul_dw(x: Array, dy: Array, stride: int) -> Array:
    dw = product(patches(x, stride), dy, ((0, 1, 2), (0, 1, 2)))
    return dw.reshape(3, 3, x.shape[3], dy.shape[3])


def _xla_conv(x: Array, w: Array, stride: int) -> Array:
    return lax.conv_general_dilated(x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=_NHWC)


def _xla_dx(dy: Array, w: Array, stride: int, size: tuple[int, int]) -> Array:
    x = jax.ShapeDtypeStruct((dy.shape[0], *size, w.shape[2]), dy.dtype)
    return jax.linear_transpose(lambda x: _xla_conv(x, w, stride), x)(dy)[0]


def _xla_dw(x: Array, dy: Array, stride: int) -> Array:
    w = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), dy.dtype)
    return jax.linear_transpose(lambda w: _xla_conv(x, w, stride), w)(dy)[0]


# The CPU's forms. Their choices are of bench/conv.md.
FEW = 16  # output channels that leave vectors empty: several columns at once fill them, as so many channels more
PIECE = 2**18  # bytes of maps in a piece of a gradient by the weights, which has 8 examples at least


def _columns(W: int, C: int, F: int) -> int:
    """How many columns at once: some products more, but full vectors."""
    if F > FEW or W % 2:
        return 1
    return 4 if C <= 4 and W % 4 == 0 and W > 8 else 2


def _cpu_conv(x: Array, w: Array, stride: int) -> Array:
    _, H, W, C = x.shape
    F = w.shape[3]
    if stride == 2:
        return _matmul_conv(x, w, 2) if H * W <= 64 else _xla_conv(x, w, 2)
    if (columns := _columns(W, C, F)) == 1:
        return _xla_conv(x, w, 1)
    wide, strides = _widen(w, columns), (1, columns)
    y = lax.conv_general_dilated(x, wide, strides, ((1, 1), (1, 1)), dimension_numbers=_NHWC)
    return y.reshape(*x.shape[:3], F)


def _cpu_dx(dy: Array, w: Array, stride: int, size: tuple[int, int]) -> Array:
    if stride == 2:
        return _matmul_dx(dy, w, 2, size)
    return _cpu_conv(dy, w[::-1, ::-1].swapaxes(2, 3), 1)


def _cpu_dw(x: Array, dy: Array, stride: int) -> Array:
    """The sum over pieces of the batch: loops, so that what is copied of a piece stays in the cache."""
    B, wide = len(x), jnp.promote_types(dy.dtype, jnp.float32)
    example = (x.size + dy.size) // B * x.dtype.itemsize
    size = max(8, 2 ** (PIECE // example).bit_length() // 2)  # a power of 2
    whole = B // size * size

    def add(total: Array, pieces: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _maps_as_kernels(*pieces, stride), None

    dw = jnp.zeros((3, 3, x.shape[3], dy.shape[3]), wide)
    if whole:
        dw, _ = lax.scan(add, dw, tuple(a[:whole].reshape(-1, size, *a.shape[1:]) for a in (x, dy)))
    if whole < B:
        dw = dw + _maps_as_kernels(x[whole:], dy[whole:], stride)
    return dw.astype(dy.dtype)


def _maps_as_kernels(x: Array, dy: Array, stride: int) -> Array:
    """The convolution of x with dy, with examples as channels and channels as examples: its nine outputs are dw.

    With a stride dy's pixels lie apart. With few channels its columns are dealt out to kernels of their own, whose
    outputs are one column apart.
    """
    _, H, W, C = x.shape
    B, h, w, F = dy.shape
    columns = _columns(w, C + 4, F) if stride == 1 else 1
    kernels_HxWxBxF = dy.reshape(B, h, w // columns, columns * F).transpose(1, 2, 0, 3)
    padding = [(1, 1 - (stride - 1) * (1 - n % 2)) for n in (H, W)]
    dw = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), kernels_HxWxBxF, (1, 1), padding,
        rhs_dilation=(stride, stride * columns), dimension_numbers=_NHWC,
    ).reshape(C, 3, -1, columns, F)  # fmt: skip
    return sum(dw[:, :, k : k + 3, k] for k in range(columns)).transpose(1, 2, 0, 3)


def _abstract(matmul: Callable, a: Array, b: Array, **params) -> jax.core.ShapedArray:
    y = jax.eval_shape(partial(matmul, **params), *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (a, b)))
    return jax.core.ShapedArray(y.shape, y.dtype)


def _primitive(name: str, everywhere: Callable, cpu: Callable, matmul: Callable) -> Primitive:
    """A primitive: `cpu` on the CPU, `everywhere` on other platforms, `matmul` for batches of kernels."""
    p = Primitive(name)
    statics = ("stride", "size") if name == "conv2d_dx" else ("stride",)
    p.def_impl(jax.jit(lambda a, b, **params: p.bind(a, b, **params), static_argnames=statics))
    p.def_abstract_eval(partial(_abstract, matmul))
    mlir.register_lowering(p, mlir.lower_fun(everywhere, multiple_results=False))
    mlir.register_lowering(p, mlir.lower_fun(cpu, multiple_results=False), platform="cpu")

    def batch(args: tuple[Array, Array], axes: tuple, **params) -> tuple[Array, int]:
        a, b = args
        if axes[1] is None and name != "conv2d_dw":  # one kernel: the batch joins the examples
            a = jnp.moveaxis(a, axes[0], 0)
            y = p.bind(a.reshape(-1, *a.shape[2:]), b, **params)
            return y.reshape(*a.shape[:2], *y.shape[1:]), 0
        return jax.vmap(partial(matmul, **params), axes)(a, b), 0

    batching.primitive_batchers[p] = batch
    return p


_conv_p = _primitive("conv2d", _xla_conv, _cpu_conv, _matmul_conv)
_dx_p = _primitive("conv2d_dx", _xla_dx, _cpu_dx, _matmul_dx)
_dw_p = _primitive("conv2d_dw", _xla_dw, _cpu_dw, _matmul_dw)

ad.defbilinear(
    _conv_p,
    lambda ct, x, w, stride: _dx_p.bind(ct, w, stride=stride, size=x.aval.shape[1:3]),
    lambda ct, x, w, stride: _dw_p.bind(x, ct, stride=stride),
)
ad.defbilinear(
    _dx_p,
    lambda ct, dy, w, stride, size: _conv_p.bind(ct, w, stride=stride),
    lambda ct, dy, w, stride, size: _dw_p.bind(ct, dy, stride=stride),
)
ad.defbilinear(
    _dw_p,
    lambda ct, x, dy, stride: _dx_p.bind(dy, ct, stride=stride, size=x.aval.shape[1:3]),
    lambda ct, x, dy, stride: _conv_p.bind(x, ct, stride=stride),
)
