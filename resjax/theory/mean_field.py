"""Signal and gradients at initialisation of a wide net of residual blocks, for any merge, from its own `combine`.

Mean-field theory: He weights, blocks of equal shapes, and a branch `norm(W2 act(norm(W1 h)))`, so that f is
N(bias, g^2) over units and samples, and independent of s. That is the one Gaussian assumption: the law of s is carried
from block to block as it comes out. Gradients that arrive at a block are taken as independent of its values. What
convolutions lose at zero-padded borders is left out (2 % of G for maps of 16 x 16).

Danger: BatchNorm fixes the power of a channel, but a product squares that of a sample, and the spread of samples
doubles in every block. E z^2 of `mul` is right for three blocks of width 1024 (12 % above), and at four it is twice the
theory's. With LayerNorm it is right on average; single nets scatter, by some 10 % after five blocks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.nn import relu, sigmoid
from scipy.optimize import brentq

from resjax.config import ConfigError
from resjax.theory.laws import Law, gaussian, nodes

_COARSE, _FINE = 128, 2048  # bins of a law in a double integral, and between blocks
_U = np.linspace(-6.5, 6.5, 25)  # trapezoidal rule for smooth functions of N(0, 1)


@dataclass(frozen=True)
class BlockSignal:
    """What `block` predicts for z, the block's output: E z is `z.mean`, q = E z^2 `z.power`, and so on (`Law`)."""

    z: Law
    kurtosis_factor: float  # kurtosis of z over that of the block's input
    A: float  # E[(dz/ds)^2]
    B: float  # E[(dz/df)^2]
    gain: float  # G: gradient power at the block's input over that at its output


def block(
    merge: Any,
    h: Law,
    *,
    norm: str = "bn",
    activation: Callable = relu,
    post_activation: Callable | None = None,
    index: int = 0,
) -> BlockSignal:
    """One block: the law of its output, and `G = a^2 A + g^2 (c/v) B`, the gain of gradient power.

    g is the scale of the norms that feed the merge; v the variance of the block's input (BatchNorm) or its power
    (LayerNorm: over units W h has mean 0); a is 1 for an identity shortcut, and g over the standard deviation of h for
    a normalised one; c is `branch_constant`, and 2 of a branch of products ("glu"), where both factors pass gradients.
    A gate sig(u) with a linear layer of its own adds `k E[(dz/du)^2]`, where k is 1/v if a norm follows the layer, else
    2. Slopes are reverse mode's: custom rules and stop_gradient count.

    Args:
      merge: a `resjax.models.merges.Merge` at its init; `dataclasses.replace` another branch_scale or params.
      h: law of the block's input: a stem's is `gaussian().through(jax.nn.relu)`.
      norm: "bn" or "ln", of branch and shortcut.
      activation: inside the branch.
      post_activation: after the merge; A and B include its slope.
      index: of the block in the net, which some inits depend on.

    Raises:
      ConfigError: another norm, an input without variance, a map m that is neither elementwise nor constant, a branch
        that is not Gaussian, or a connection: see `resjax.theory.population`.
    """
    if merge.branch == "pure" or merge.connection:
        what = "connection" if merge.connection else "branch, whose output is not Gaussian"
        raise ConfigError(f"merge {merge.name!r}: the theory of two operands does not cover its {what}")
    v, g = normaliser(norm, h), merge.branch_scale
    a = g / math.sqrt(h.variance) if merge.shortcut_norm else 1.0
    s = Law(merge.shortcut_bias + a * (h.x - h.mean) if merge.shortcut_norm else h.x, h.w).compressed(_COARSE)
    # The catalogue has its kinks at s = 0, f = 0 and |s| = |f|; elsewhere they cost digits.
    f, w_f = nodes(merge.branch_bias, g, np.stack([np.zeros_like(s.x), s.x, -s.x], -1))
    more = merge.inits(index) | ({"t": 0.0} if merge.scheduled else {})
    third = third_map(merge, more, s, h, v)
    u, w_u = (third.mean + third.std * _U, np.exp(-np.square(_U) / 2)) if third.std else (np.zeros(1), np.ones(1))

    def merged(s: Array, f: Array, u: Array) -> Array:
        z = merge.combine(s, f, **more, **({"m": third.of(s, f, u)} if merge.extra else {}))
        return z if post_activation is None else post_activation(z)

    inputs = np.broadcast_arrays(s.x[:, None, None], f[..., None], u)
    w = (s.w[:, None] * w_f)[..., None] * (w_u / w_u.sum())
    with jax.enable_x64():
        z, backward = jax.vjp(merged, *inputs)
        A, B, gate = (float(np.sum(w * np.square(slope))) for slope in backward(np.ones(z.shape)))
    z = Law(np.asarray(z).ravel(), w.ravel()).compressed(_FINE)
    c = 2.0 if merge.branch == "glu" else branch_constant(norm, activation)
    gain = a**2 * A + g**2 * c / v * B + third.gain * gate
    return BlockSignal(z, z.kurtosis / h.kurtosis, A, B, gain)


def blocks(merge: Any, h: Law, depth: int, *, first: int = 0, **kwargs) -> list[BlockSignal]:
    """`block` iterated, [depth]: the input of each is the z of the one before; `kwargs` are its keywords.

    `first` is the index in the net of the first of them.
    """
    out = []
    for index in range(first, first + depth):
        out.append(block(merge, h, index=index, **kwargs))
        h = out[-1].z
    return out


def stages(merge: Any, depths: Sequence[int], *, norm: str = "bn", **kwargs) -> list[BlockSignal]:
    """`block` iterated over stages of so many blocks, [sum of depths], as a ResNet has them, after a ReLU stem.

    A stage begins with a change of shape, where the shortcut is a normalised 1x1 convolution (option B): s and f are
    Gaussian, and a gradient passes either in inverse proportion to what the norms divide by. Its gain compares powers
    that are summed over the units of a sample.
    """
    out, h = [], gaussian().through(relu)
    for i, depth in enumerate(depths):
        if i:
            start = block(merge, gaussian(), norm=norm, index=len(out), **kwargs)
            kurtosis, gain = start.z.kurtosis / h.kurtosis, start.gain / normaliser(norm, h)
            out.append(replace(start, kurtosis_factor=kurtosis, gain=gain))
        out += blocks(merge, out[-1].z if i else h, depth - bool(i), first=len(out), norm=norm, **kwargs)
        h = out[-1].z
    return out


def safe_depth(merge: Any, h: Law, *, factor: float = math.e, limit: int = 200, **kwargs) -> int:
    """Blocks until E z^2, or the product of the gains, leaves [1/factor, factor] times its start; at most `limit`.

    For `mul_res` those grow by 1 + g^2 and 1 + g^2 (1 + c) a block: the depth goes like 1/g^2, and g like depth^(-1/2).
    """
    z, gain = h, 1.0
    for depth in range(limit):
        signal = block(merge, z, index=depth, **kwargs)
        z, gain = signal.z, gain * signal.gain
        if not all(1 / factor <= ratio <= factor for ratio in (z.power / h.power, gain)):
            return depth
    return limit


def critical(family: Callable[[float], object], low: float, high: float) -> float:
    """The alpha in [low, high] at which the merge `family(alpha)` keeps E z^2 = E h^2 for h ~ N(0, 1).

    For a gate on the shortcut that is E[gate^2] = 1; for `alpha sig(f - ln(alpha - 1))` it is 1.475886.

    Raises:
      ValueError: E z^2 - 1 has the same sign at `low` and `high`.
    """
    return brentq(lambda alpha: block(family(alpha), gaussian()).z.power - 1, low, high, xtol=1e-10)


def branch_constant(norm: str = "bn", activation: Callable = relu) -> float:
    """c, the gain of gradient power through a branch with g = v = 1: `E[act'(y)^2] / Var act(y)`, y ~ N(0, 1).

    For a ReLU pi/(pi - 1) = 1.466942. With LayerNorm the divisor is E[act(y)^2], and c of a ReLU is 1.
    """
    y = gaussian()
    slope = y.through(lambda x: jax.vjp(activation, x)[1](np.ones(x.shape))[0])
    return slope.power / normaliser(norm, y.through(activation))


def normaliser(norm: str, law: Law) -> float:
    """What a norm divides W x by, squared, for x of this law and weights of variance 1/fan_in."""
    if norm not in ("bn", "ln"):
        raise ConfigError(f"norm={norm!r}: mean-field theory has bn and ln; gn averages few units, none scales nothing")
    if not law.variance > 0:
        raise ConfigError(f"the input of a norm has variance {law.variance:g}: there is no signal left to scale")
    return law.variance if norm == "bn" else law.power


@dataclass(frozen=True)
class ThirdMap:
    """m = of(s, f, u) with u ~ N(mean, std^2); gradient power at u reaches the block's input times `gain`."""

    of: Callable[[Array, Array, Array], Array | float]
    mean: float = 0.0
    std: float = 0.0
    gain: float = 0.0


def third_map(merge, more: dict[str, float], s: Law, h: Law, v: float) -> ThirdMap:
    """What `merge.extra`, a name of `resjax.models.gates.MAPS`, is in mean-field theory."""
    b, g, bias = merge.branch_bias, merge.branch_scale, merge.extra_bias
    if merge.extra == "norm_product":
        mean = s.mean * b
        std = math.sqrt(s.power * (b**2 + g**2) - mean**2)
        return ThirdMap(lambda s, f, u: (s * f - mean) / std)
    if merge.extra in ("transform_gate", "branch_gate", "branch_gate_group"):
        return ThirdMap(lambda s, f, u: sigmoid(u), bias, 1.0, 1 / v)
    if merge.extra == "shortcut_gate":
        return ThirdMap(lambda s, f, u: sigmoid(u), bias, math.sqrt(2 * h.power), 2.0)
    if merge.extra in ("low_rank", "delta_update"):  # the first's last layer starts at 0; one direction of many is none
        return ThirdMap(lambda s, f, u: 0.0)
    if merge.extra == "simam":  # of vectors; on maps the gate lies above this, by how f varies over positions
        return ThirdMap(lambda s, f, u: sigmoid(0.5))
    x = gaussian().x
    if not merge.extra or np.array_equal(*(merge.combine(x, x[::-1], m=m, **more) for m in (0.0, 1.0))):
        return ThirdMap(lambda s, f, u: 0.0)  # none, or hidden behind a learned scalar that is 0
    raise ConfigError(
        f"merge {merge.name!r}: its map {merge.extra!r} mixes many units or positions and is not constant at init, so"
        " that z is no elementwise function of s and f"
    )
