"""One convolution, `conv2d`, that is fast on every platform and under every transformation.

XLA's own convolution is left alone on accelerators. On the CPU it has three weaknesses, each worth a factor:

- Autodiff emits the two gradients as convolutions with permuted dimension numbers. Inside loops (`lax.scan`,
  `lax.map`, `fori_loop`) the CPU compiler leaves them so and runs naive loop nests: a training step of a small
  ResNet took 200 ms instead of 7. So the gradients are written out here, in forms that are fast everywhere.
- Maps of 2x2 pixels run at 16 GFLOP/s, a matrix product at 340.
- With 16 output channels it reaches 100 GFLOP/s, with 32 and more 230.

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
        return x_BxHxWxC[:, ::stride, ::stride] @ kernel_KxKxCxF[0, 0]
    if stride == 1 and x_BxHxWxC.shape[1:3] == (2, 2):
        return _dense_2x2(x_BxHxWxC, kernel_KxKxCxF)
    return _conv_p.bind(x_BxHxWxC, kernel_KxKxCxF, stride=stride)


def _dense_2x2(x_Bx2x2xC: Array, kernel_3x3xCxF: Array) -> Array:
    """A 2x2 map sees 16 of the 36 products of taps and pixels: one matrix [4C, 4F] is exact and 20x faster."""
    B, _, _, C = x_Bx2x2xC.shape
    taps = [kernel_3x3xCxF[1 - p : 3 - p, 1 - q : 3 - q] for p in (0, 1) for q in (0, 1)]  # of output (p, q)
    matrix = jnp.stack(taps, axis=3)  # [2, 2, C, 4, F]: input pixel (i, j) meets tap (i - p + 1, j - q + 1)
    return (x_Bx2x2xC.reshape(B, 4 * C) @ matrix.reshape(4 * C, -1)).reshape(B, 2, 2, -1)


# The three bilinear maps: y(x, w), and its transposes dx(dy, w) and dw(x, dy).


def patches(x: Array, stride: int, width: int = 1) -> Array:
    """The windows of `width` neighbouring outputs, [B, H', W'/width, 3 * (width + 2) * C]."""
    H, W = (-(-n // stride) for n in x.shape[1:3])
    x, step = jnp.pad(x, _PAD), stride * width
    spans = [(i, j) for i in range(3) for j in range((width - 1) * stride + 3)]
    rows, columns = (H - 1) * stride + 1, (W // width - 1) * step + 1
    return jnp.concatenate([x[:, i : i + rows : stride, j : j + columns : step] for i, j in spans], axis=3)


def _widen(w: Array) -> Array:
    """Kernels [3, 4, C, 2F] that yield two neighbouring columns at once, 1/3 more products, double width."""
    return jnp.concatenate([jnp.pad(w, ((0, 0), (o, 1 - o), (0, 0), (0, 0))) for o in (0, 1)], axis=3)


def _matmul_conv(x: Array, w: Array, stride: int) -> Array:
    return jnp.tensordot(patches(x, stride), w.reshape(-1, w.shape[3]), 1)


def _matmul_dx(dy: Array, w: Array, stride: int, size: tuple[int, int]) -> Array:
    x = jax.ShapeDtypeStruct((dy.shape[0], *size, w.shape[2]), dy.dtype)
    return jax.linear_transpose(lambda x: _matmul_conv(x, w, stride), x)(dy)[0]


def _matmul_dw(x: Array, dy: Array, stride: int) -> Array:
    dw = jnp.tensordot(patches(x, stride), dy, ((0, 1, 2), (0, 1, 2)))
    return dw.reshape(3, 3, x.shape[3], dy.shape[3])


def _xla_conv(x: Array, w: Array, stride: int) -> Array:
    return lax.conv_general_dilated(x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=_NHWC)


def _xla_dx(dy: Array, w: Array, stride: int, size: tuple[int, int]) -> Array:
    x = jax.ShapeDtypeStruct((dy.shape[0], *size, w.shape[2]), dy.dtype)
    return jax.linear_transpose(lambda x: _xla_conv(x, w, stride), x)(dy)[0]


def _xla_dw(x: Array, dy: Array, stride: int) -> Array:
    w = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), dy.dtype)
    return jax.linear_transpose(lambda w: _xla_conv(x, w, stride), w)(dy)[0]


def _cpu_conv(x: Array, w: Array, stride: int) -> Array:
    """Measured per shape, one core, AVX-512: GFLOP/s of the choice against XLA's convolution."""
    _, H, W, C = x.shape
    F = w.shape[3]
    if stride == 2:  # 226 : 170 at 8x8, 90 : 200 at 32x32
        return _matmul_conv(x, w, 2) if H * W <= 64 else _xla_conv(x, w, 2)
    if F > 16 or W % 2:
        return _xla_conv(x, w, 1)  # 220 to 240: the peak of the core
    if C <= 4:  # 119 : 24 with 3 channels at 32x32
        return jnp.tensordot(patches(x, 1, 2), _widen(w).reshape(-1, 2 * F), 1).reshape(*x.shape[:3], F)
    y = lax.conv_general_dilated(x, _widen(w), (1, 2), ((1, 1), (1, 1)), dimension_numbers=_NHWC)
    return y.reshape(*x.shape[:3], F)  # 1.2 to 1.8 times as fast with 16 channels at 8x8 and 32x32


def _cpu_dx(dy: Array, w: Array, stride: int, size: tuple[int, int]) -> Array:
    if stride == 2:  # 120 to 250 : 20 to 180
        return _matmul_dx(dy, w, 2, size)
    return _cpu_conv(dy, w[::-1, ::-1].swapaxes(2, 3), 1)


def _cpu_dw(x: Array, dy: Array, stride: int) -> Array:
    if stride == 2:  # 70 to 130 : 30 to 100
        return _matmul_dw(x, dy, 2)
    # Maps as kernels, examples as channels: 150 at 4x4, 110 at 8x8, 90 at 16x16.
    dw = _xla_conv(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), 1)
    return dw.transpose(1, 2, 0, 3)


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
