"""A spatial transformer in front of a net: it resamples every image by an affine map of its own choice.

Source: Jaderberg et al. 2015, 1506.02025, sections 3.1 to 3.3.

Danger: at the identity every sample lies on a pixel. Interpolation between the pixels floor(x) and ceil(x), as in
dm-pix, reads the same pixel twice there, its derivative by the map is exactly 0, and a transformer that starts as the
identity remains it for ever. Here the pixels are floor(x) and the next one, so that the derivative is one-sided.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from resjax.config import ConfigError
from resjax.models.layers import Linear

FEATURES = 16  # of the localisation net
SMALL = 4  # pixels across the maps that it ends with
# Of the dense layer's output in the map: gradient steps on the map are 1/100 of a plain layer's. At 1 and the usual
# rate of 0.1 images are shoved out of sight (digits, 20 epochs, 4 seeds: mul has 52 % OA, without a transformer 97).
SCALE = 0.1


class SpatialTransformer(nn.Module):
    """x_BxHxWxC resampled by the maps that a localisation net computes from it: of the same shape, and of `dtype`.

    The localisation net: 3x3 convolutions of stride 2, each with a ReLU, until at most 4x4 pixels are left, then a
    dense layer, whose output times `SCALE` is added to the identity. It begins as 0: images pass unchanged, bit for
    bit. Its N inputs are divided by sqrt(N): so its kernel moves the maps about as fast as its bias does, whatever the
    images' size.

    Raises ConfigError where x holds no images (`check_images`).
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        check_images("config.model.front='stn'", x_BxHxWxC.shape)
        x = h = x_BxHxWxC.astype(self.dtype)
        while max(h.shape[1:3]) > SMALL:
            h = nn.relu(Linear(FEATURES, 3, 2, self.dtype)(h))
        h = h.reshape(len(h), -1)
        exact = jnp.promote_types(self.dtype, jnp.float32)  # bfloat16 doesn't tell a pixel from the next
        zeros = nn.initializers.zeros
        change_Bx6 = nn.Dense(6, dtype=exact, kernel_init=zeros, name="theta")(h / h.shape[1] ** 0.5)
        identity_1x2x3 = jnp.eye(2, 3, dtype=exact)[None]
        return resample(x, identity_1x2x3 + SCALE * change_Bx6.reshape(-1, 2, 3))


def check_images(what: str, shape: tuple[int, ...]) -> None:
    """Raises ConfigError, about `what`, if arrays of this shape are not images [B, H, W, C] of at least 2x2 pixels."""
    if len(shape) != 4 or min(shape[1:3]) < 2:
        raise ConfigError(f"{what} transforms images [B, H, W, C] of at least 2x2 pixels; {list(shape)} are none")


def resample(x_BxHxWxC: Array, theta_Bx2x3: Array) -> Array:
    """Bilinear samples y_BxHxWxC: the pixel of y at (r, c) is that of x at theta (r, c, 1); beyond x, its nearest.

    Rows r and columns c are counted from the image's centre in units of half its height and width: it is [-1, 1]^2, to
    the outer edges of its pixels (eqs. 1 and 5, in the order of array axes).
    """
    B, H, W, C = x_BxHxWxC.shape
    (a, b, t), (c, d, u) = jnp.moveaxis(theta_Bx2x3, 0, -1)[..., None]  # [B, 1] each
    below, beside = jnp.mgrid[:H, :W].reshape(2, 1, H * W)  # [1, P] each
    middle_H, middle_W = (H - 1) / 2, (W - 1) / 2
    below, beside = below - middle_H, beside - middle_W
    # In pixels: where theta is the identity, these multiples of 1/2 are exact.
    row_BxP = jnp.clip(a * below + b * (H / W) * beside + t * (H / 2) + middle_H, 0, H - 1)
    column_BxP = jnp.clip(c * (W / H) * below + d * beside + u * (W / 2) + middle_W, 0, W - 1)
    top_BxP = jnp.minimum(jnp.floor(row_BxP), H - 2)
    left_BxP = jnp.minimum(jnp.floor(column_BxP), W - 2)
    down, right = (at[..., None].astype(x_BxHxWxC.dtype) for at in (row_BxP - top_BxP, column_BxP - left_BxP))
    index_BxPx1 = (top_BxP * W + left_BxP).astype(jnp.int32)[..., None]
    pixels_BxPxC = x_BxHxWxC.reshape(B, H * W, C)

    def corner(i: int, j: int) -> Array:
        return jnp.take_along_axis(pixels_BxPxC, index_BxPx1 + (i * W + j), axis=1, mode="clip")

    upper_BxPxC = (1 - right) * corner(0, 0) + right * corner(0, 1)
    lower_BxPxC = (1 - right) * corner(1, 0) + right * corner(1, 1)
    return ((1 - down) * upper_BxPxC + down * lower_BxPxC).reshape(B, H, W, C)
