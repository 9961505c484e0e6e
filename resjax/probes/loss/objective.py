"""The mean loss of a net over a subject's images as a function of one vector of parameters, and its derivatives."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from resjax.data import batches
from resjax.probes.subject import Subject


class Objective(flax.struct.PyTreeNode):
    """L(w): the mean loss over images, at frozen statistics (the net as it is used at test time), without weight decay.

    A pytree whose net and loss are static: a jitted function of it compiles once for all replicas of a net. The
    images lie in N chunks of equal size B; the last may repeat an image, with weight 0.

    Danger: a net with `stop_gradient` has the derivatives of the function in which what is stopped is a constant; one
    with a backward pass of its own has no Hessian, and `product` is then the derivative of what it calls its gradient.
    """

    net: nn.Module = flax.struct.field(pytree_node=False)
    loss: Callable[[jax.Array, jax.Array], jax.Array] = flax.struct.field(pytree_node=False)
    variables: dict[str, Any]
    x_NxBxHxWxC: jax.Array
    targets_NxBxK: jax.Array
    weights_NxB: jax.Array  # of the images in the mean; their sum is 1

    @classmethod
    def of(cls, at: Subject) -> "Objective":
        """The objective of a subject."""
        size = len(at.x_BxHxWxC)
        count = -(-size // batches.at_once(at.x_BxHxWxC.shape[1:]))
        index = jnp.arange(count * -(-size // count)).reshape(count, -1)
        weights = (index < size) / jnp.asarray(size, at.targets_BxK.dtype)
        index = jnp.minimum(index, size - 1)
        return cls(at.net, at.loss, at.variables, at.x_BxHxWxC[index], at.targets_BxK[index], weights)

    def vector(self) -> jax.Array:
        """w, [P]: the parameters in one vector."""
        return ravel_pytree(self.variables["params"])[0]

    def value(self, w: jax.Array) -> jax.Array:
        """L(w), []."""
        return self._sum(self._part, w)

    def value_and_gradient(self, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """L(w) [], and its gradient [P]."""
        return self._sum(jax.value_and_grad(self._part), w)

    def product(self, w: jax.Array, v: jax.Array) -> jax.Array:
        """H(w) v, [P], with H the Hessian of L: forward over reverse (Pearlmutter 1994)."""

        def part(w, *chunk):
            return jax.jvp(lambda w: jax.grad(self._part)(w, *chunk), (w,), (v,))[1]

        return self._sum(part, w)

    def _part(self, w: jax.Array, x: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        """What one chunk adds to L(w)."""
        params = ravel_pytree(self.variables["params"])[1](w)
        return jnp.sum(weights * self.loss(self.net.apply(self.variables | {"params": params}, x), targets))

    def _sum(self, part: Callable, w: jax.Array) -> Any:
        """The sum of `part(w, *chunk)` over chunks, whose derivatives are taken inside: nothing of a chunk is kept."""
        chunks = self.x_NxBxHxWxC, self.targets_NxBxK, self.weights_NxB
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, w, *(chunk[0] for chunk in chunks))
        )
        return lax.scan(lambda total, chunk: (jax.tree.map(jnp.add, total, part(w, *chunk)), None), zeros, chunks)[0]


@jax.jit
def value_and_gradient(objective: Objective, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L(w) [], and its gradient [P]: compiled once for all that look at nets of one architecture."""
    return objective.value_and_gradient(w)
