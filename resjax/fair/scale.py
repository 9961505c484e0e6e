"""The scale of a net's tangent kernel, by which architectures are matched before their features are compared.

A net f learns F = alpha (f - f0) to the targets. How far its weights move, and so how much its features change, goes
by alpha sqrt(K), with K the mean of K(x, x) = |df/dw(x)|^2 (Chizat, Oyallon & Bach 2019, 1812.07956): at equal alpha
the net with the smaller kernel moves farther and learns more features, whatever its architecture.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

BLOCK = 16  # samples whose Jacobian is in memory


def mean_kernel(apply_fn: Partial, params: Any, x: jax.Array) -> float:
    """Mean over samples and logits of K(x, x), the squared norm of the gradient of a logit by `params`.

    Args:
      apply_fn: `apply_fn(params, x [n, ...]) -> logits [n, C]`, sample by sample; its leaves are arguments of the
        compiled program.
      params: pytree of arrays.
      x: samples [n, ...].
    """
    return float(_mean_kernel(apply_fn, params, jnp.asarray(x)))


@jax.jit
def _mean_kernel(apply_fn: Partial, params: Any, x: jax.Array) -> jax.Array:
    def of_sample(x_one: jax.Array) -> jax.Array:
        J = jax.jacrev(lambda params: apply_fn(params, x_one[None])[0])(params)  # leaves [C, ...]
        squares = [jnp.sum(leaf**2) / len(leaf) for leaf in jax.tree.leaves(J)]
        return jnp.sum(jnp.stack(squares))

    return jnp.mean(lax.map(of_sample, x, batch_size=BLOCK))


def matched(alpha: float, kernel: float, reference: float) -> float:
    """The alpha at which a net of mean kernel `kernel` is as lazy as one of mean kernel `reference` at `alpha`."""
    return alpha * (reference / kernel) ** 0.5
