"""The third map `m` of the merges that need one: attention gates, transform gates and second-order terms.

Every class is called with the block's input `h`, the shortcut `s` and the branch output `f` (all [B, H, W, C] or
[B, C]; `h` before a change of shape) and returns a map that broadcasts against `f`.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import zeros
from jax import lax

from resjax.models.layers import Linear


def spatial_axes(x: jax.Array) -> tuple[int, ...]:
    """(1, 2) of a map, () of a vector."""
    return tuple(range(1, x.ndim - 1))


class ThirdMap(nn.Module):
    """What the classes below share. `norm` makes a norm; `bias` is the merge's `extra_bias`."""

    norm: partial
    dtype: jnp.dtype = jnp.float32
    bias: float = 0.0
    granularity: str = "channel"
    stride: int = 1


class SE(ThirdMap):
    """Squeeze-and-excitation (Hu et al., 1709.01507, eqs. 2-3), reduction 16 but at least 4 hidden units."""

    @nn.compact
    def __call__(self, h, s, f, train):
        pooled = jnp.mean(f, spatial_axes(f), keepdims=True)
        return nn.sigmoid(_ChannelMLP(self.dtype, name="mlp")(pooled))


class CBAM(ThirdMap):
    """Channel gate times spatial gate (Woo et al. 2018, eqs. 2-3); of a vector, the channel gate alone. Sows both."""

    @nn.compact
    def __call__(self, h, s, f, train):
        mlp, axes = _ChannelMLP(self.dtype, name="mlp"), spatial_axes(f)
        channel = nn.sigmoid(mlp(jnp.mean(f, axes, keepdims=True)) + mlp(jnp.max(f, axes, keepdims=True)))
        self.sow("intermediates", "channel_gate", channel)
        if not axes:
            return channel
        gated = f * channel
        summary = jnp.concatenate([jnp.mean(gated, -1, keepdims=True), jnp.max(gated, -1, keepdims=True)], -1)
        spatial = nn.sigmoid(nn.Conv(1, (7, 7), use_bias=False, dtype=self.dtype, name="spatial")(summary))
        self.sow("intermediates", "spatial_gate", spatial)
        return channel * spatial


class _ChannelMLP(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        hidden = nn.relu(nn.Dense(max(channels // 16, 4), dtype=self.dtype, name="squeeze")(x))
        return nn.Dense(channels, dtype=self.dtype, name="excite")(hidden)


class ECA(ThirdMap):
    """A 1-D convolution over channels, whose size is (log2 C + 1)/2 made odd (Wang et al. 2020, eq. 12)."""

    @nn.compact
    def __call__(self, h, s, f, train):
        size = int(abs((math.log2(f.shape[-1]) + 1) / 2))
        size += 1 - size % 2
        pooled = jnp.mean(f, spatial_axes(f))
        mixed = nn.Conv(1, (size,), use_bias=False, dtype=self.dtype, name="conv")(pooled[..., None])[..., 0]
        return nn.sigmoid(mixed).reshape(f.shape[0], *(1,) * len(spatial_axes(f)), f.shape[-1])


class SimAM(ThirdMap):
    """Parameter-free full gate, always above sig(1/2) = .622, which it is for a vector (Yang et al. 2021, eq. 5)."""

    @nn.compact
    def __call__(self, h, s, f, train):
        axes = spatial_axes(f)
        deviation = jnp.square(f - jnp.mean(f, axes, keepdims=True))
        units = max(math.prod(f.shape[a] for a in axes) - 1, 1)
        variance = jnp.sum(deviation, axes, keepdims=True) / units
        return nn.sigmoid(deviation / (4 * (variance + 1e-4)) + 0.5)


class PooledSigmoid(ThirdMap):
    """sig of `f` averaged to one value a "scalar" (sample), "channel", "spatial" position, or unit ("full")."""

    @nn.compact
    def __call__(self, h, s, f, train):
        axes = {
            "scalar": tuple(range(1, f.ndim)),
            "channel": spatial_axes(f),
            "spatial": (f.ndim - 1,),
            "full": (),
        }[self.granularity]
        return nn.sigmoid(jnp.mean(f, axes, keepdims=True) if axes else f)


class TransformGate(ThirdMap):
    """t = sig(norm(W h)) of a highway block; the bias is the norm's."""

    @nn.compact
    def __call__(self, h, s, f, train):
        mixed = Linear(f.shape[-1], 3, self.stride, self.dtype, name="linear")(h)
        return nn.sigmoid(self.norm(bias=self.bias, name="out_norm")(mixed, train))


class ShortcutGate(ThirdMap):
    """g = sig(W h + b), W a 1x1 convolution."""

    @nn.compact
    def __call__(self, h, s, f, train):
        mixed = Linear(f.shape[-1], 1, self.stride, self.dtype, name="linear")(h)
        bias = self.param("bias", nn.initializers.constant(self.bias), (f.shape[-1],)).astype(self.dtype)
        return nn.sigmoid(mixed + bias.reshape((1,) * (f.ndim - 1) + bias.shape))


class NormProduct(ThirdMap):
    """norm(s*f)."""

    @nn.compact
    def __call__(self, h, s, f, train):
        return self.norm(name="norm")(s * f, train)


class NormProjectedProduct(ThirdMap):
    """norm(W (s*f)), W a 1x1 convolution."""

    @nn.compact
    def __call__(self, h, s, f, train):
        return self.norm(name="norm")(Linear(f.shape[-1], 1, 1, self.dtype, name="linear")(s * f), train)


class LowRank(ThirdMap):
    """A (B s), both over channels, rank C/8 but at least 1; A is 0 at init (LAuReL-LR, 2411.07501, section 2.2)."""

    @nn.compact
    def __call__(self, h, s, f, train):
        rank = max(1, s.shape[-1] // 8)
        low = nn.Dense(rank, use_bias=False, dtype=self.dtype, name="down")(s)
        return nn.Dense(s.shape[-1], use_bias=False, dtype=self.dtype, kernel_init=zeros, name="up")(low)


class DeltaUpdate(ThirdMap):
    """beta (v - k.s) k at each position, over channels: k = f/|f|, beta = 2 sig(b.f + bias), v = w.f, all learned.

    beta = 0 leaves s, 1 replaces its part along k by v, 2 reflects it (2601.00417, equation 5, with one value).
    """

    @nn.compact
    def __call__(self, h, s, f, train):
        k = f * lax.rsqrt(jnp.sum(jnp.square(f), -1, keepdims=True) + 1e-6)
        bias = nn.initializers.constant(self.bias)
        beta = 2 * nn.sigmoid(nn.Dense(1, dtype=self.dtype, kernel_init=zeros, bias_init=bias, name="logit")(f))
        v = nn.Dense(1, use_bias=False, dtype=self.dtype, name="value")(f)
        self.sow("intermediates", "beta", beta)
        return beta * (v - jnp.sum(k * s, -1, keepdims=True)) * k


class BranchGate(ThirdMap):
    """sig(norm(W h)), W a 1x1 convolution: a gate for each unit of the branch."""

    channels_per_gate = 1

    @nn.compact
    def __call__(self, h, s, f, train):
        gates = max(1, f.shape[-1] // self.channels_per_gate)
        mixed = Linear(gates, 1, self.stride, self.dtype, name="linear")(h)
        gate = nn.sigmoid(self.norm(bias=self.bias, name="out_norm")(mixed, train))
        return jnp.repeat(gate, f.shape[-1] // gates, -1)


class BranchGateGroup(BranchGate):
    """The same with one gate for eight channels, as for a head."""

    channels_per_gate = 8


MAPS: dict[str, type[ThirdMap]] = {
    "se": SE,
    "cbam": CBAM,
    "eca": ECA,
    "simam": SimAM,
    "pooled_sigmoid": PooledSigmoid,
    "transform_gate": TransformGate,
    "shortcut_gate": ShortcutGate,
    "norm_product": NormProduct,
    "norm_projected_product": NormProjectedProduct,
    "low_rank": LowRank,
    "delta_update": DeltaUpdate,
    "branch_gate": BranchGate,
    "branch_gate_group": BranchGateGroup,
}
PARAMETER_FREE = frozenset({"pooled_sigmoid", "simam"})  # what is learned of them lies in the branch
