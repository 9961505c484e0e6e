"""Linear layers, norms and activations of the nets: one definition for feature maps [B, H, W, C] and vectors [B, C]."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from resjax.config import ConfigError
from resjax.models.conv import conv2d, product

MOMENTUM = 0.9  # of BatchNorm's running statistics; PyTorch calls it .1

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "square": jnp.square,
    "none": lambda x: x,
}


def he_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Gaussian, variance 2/fan_in (He et al. 2015): the theory at initialisation assumes exactly this.

    The numbers of `nn.initializers.variance_scaling(2.0, "fan_in", "normal")`, but drawn along one axis: for the CPU
    XLA compiles that up to ten times as fast as a draw of four axes.
    """
    variance = jnp.array(2 / math.prod(shape[:-1]), dtype)
    return (jax.random.normal(key, (math.prod(shape),), dtype) * jnp.sqrt(variance)).reshape(shape)


class Linear(nn.Module):
    """A convolution of a map, [B, H, W, C] -> [B, H/stride, W/stride, features], or a dense layer of a vector; no bias.

    Padding is kernel // 2 on every side, as in PyTorch's ResNets, also where stride is 2.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (self.kernel, self.kernel) if x.ndim == 4 else ()
        w = self.param("kernel", he_init, (*window, x.shape[-1], self.features))
        x, w = x.astype(self.dtype), w.astype(self.dtype)
        return conv2d(x, w, self.stride) if x.ndim == 4 else product(x, w, 1)


class Norm(nn.Module):
    """The norm `kind` with the given inits of its scale g and bias b; "none" keeps the affine map alone.

    "bn" normalises a channel over the (global) batch; "ln" a sample over all its units, which keeps products from
    squaring each sample's norm; "gn" a sample over groups of at most eight channels.

    Raises:
      ConfigError: in training, BatchNorm of a single value per channel.
    """

    kind: str
    scale: float = 1.0
    bias: float = 0.0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None  # of pmap: BatchNorm averages over it

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inits = {
            "scale_init": nn.initializers.constant(self.scale),
            "bias_init": nn.initializers.constant(self.bias),
            "dtype": self.dtype,
        }
        if self.kind == "bn":
            if train and x.size == x.shape[-1] and not self.axis_name:
                raise ConfigError(
                    "config.batch_size=1: BatchNorm has one value per channel and nothing to normalise; take larger"
                    " batches, or config.model.norm=ln"
                )
            return nn.BatchNorm(
                use_running_average=not train, momentum=MOMENTUM, axis_name=self.axis_name, name="bn", **inits
            )(x)
        if self.kind == "ln":
            return nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)), feature_axes=-1, name="ln", **inits)(x)
        if self.kind == "gn":
            return nn.GroupNorm(num_groups=None, group_size=math.gcd(8, x.shape[-1]), name="gn", **inits)(x)
        return Affine(name="affine", **inits)(x)


class Affine(nn.Module):
    """`x * scale + bias` per channel: what is left of a norm when nothing is normalised."""

    scale_init: Callable
    bias_init: Callable
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape[-1:]).reshape(shape)
        bias = self.param("bias", self.bias_init, shape[-1:]).reshape(shape)
        return x * scale.astype(self.dtype) + bias.astype(self.dtype)
