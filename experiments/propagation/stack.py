"""A plain stack of dense layers at initialisation: what its initialiser does to signal and gradients, layer by layer.

With weights of variance k/fan_in, layers of equal width and y_{l+1} = W act(y_l), the standard deviation of y changes
by sqrt(k E[act(y)^2] / E[y^2]) a layer, and that of the gradient by sqrt(k E[act'(y)^2]) on its way back: sqrt(k) both
of a linear stack, sqrt(k/2) both of a ReLU stack (Glorot & Bengio 2010; He et al. 2015, 1502.01852, section 2.2).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import lax
from jax.nn import initializers

from resjax.models.layers import ACTIVATIONS

INITIALIZERS = {  # name -> (k for layers of equal width, initialiser)
    "naive uniform": (1 / 3, initializers.variance_scaling(1 / 3, "fan_in", "uniform")),  # U(-1, 1) / sqrt(fan_in)
    "Xavier": (1.0, initializers.glorot_uniform()),
    "He": (2.0, initializers.he_normal()),
}


def predicted_ratio(initializer: str, activation: str) -> float:
    """Standard deviation after a layer over that before, forwards and backwards; activation is "none" or "relu"."""
    return math.sqrt(INITIALIZERS[initializer][0] * {"none": 1, "relu": 1 / 2}[activation])


def stack(
    initializer: str, activation: str, key: jax.Array, *, depth: int = 20, width: int = 256, samples: int = 256
) -> pd.DataFrame:
    """A row per layer of a stack of `depth` layers of `width` units that sees x ~ N(0, I).

    Columns:
      layer: 1 to depth.
      std: root mean square of y, what the layer gives before its activation, over units and samples.
      gradient_std: the same of the gradient at y of <cotangent, last y>, the cotangent drawn from N(0, 1).
      zero: share of act(y) = 0 among units and samples.
      never_active: share of the units with act(y) = 0 on all samples.
    """
    weights, inputs, cotangent = jax.random.split(key, 3)
    draw = INITIALIZERS[initializer][1]
    W_DxUxU = jnp.stack([draw(own, (width, width)) for own in jax.random.split(weights, depth)])
    x_BxU, cotangent_BxU = (jax.random.normal(own, (samples, width)) for own in (inputs, cotangent))
    measured = _measure(activation, W_DxUxU, x_BxU, cotangent_BxU)
    columns = ("std", "gradient_std", "zero", "never_active")
    table = pd.DataFrame(dict(zip(columns, jax.device_get(measured), strict=True)))
    return table.assign(layer=np.arange(1, depth + 1))[["layer", *columns]]


@partial(jax.jit, static_argnums=0)
def _measure(activation, W_DxUxU, x_BxU, cotangent_BxU):
    act = ACTIVATIONS[activation]

    def last(shifts_DxBxU):
        def layer(h_BxU, own):
            W_UxU, shift_BxU = own
            y_BxU = h_BxU @ W_UxU + shift_BxU
            return act(y_BxU), y_BxU

        y_DxBxU = lax.scan(layer, x_BxU, (W_DxUxU, shifts_DxBxU))[1]
        return y_DxBxU[-1], y_DxBxU

    _, backward, y_DxBxU = jax.vjp(last, jnp.zeros((len(W_DxUxU), *x_BxU.shape)), has_aux=True)
    (gradient_DxBxU,) = backward(cotangent_BxU)
    zero_DxBxU = act(y_DxBxU) == 0
    std_D, gradient_std_D = (jnp.sqrt(jnp.mean(jnp.square(a), (1, 2))) for a in (y_DxBxU, gradient_DxBxU))
    return std_D, gradient_std_D, jnp.mean(zero_DxBxU, (1, 2)), jnp.mean(jnp.all(zero_DxBxU, 1), 1)
