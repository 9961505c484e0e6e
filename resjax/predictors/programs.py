"""The two compiled programs through which predictors look at a net.

Compiling a ResNet takes seconds on a CPU, and a call milliseconds. So there are two programs and no more, and
`apply_fn` is an argument like any other: a `jax.tree_util.Partial` is a pytree, so nets that differ in its leaves only
(the seeds of one architecture) share a compilation. Loops over calls are left to Python.

Shapes: B samples of any shape x, D numbers in one of them, C logits, P parameters in the order of `ravel_pytree`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

PRECISION = "highest"  # of products: the default of a GPU keeps three digits, too few for differences of losses


class PerSample(NamedTuple):
    """Of every sample by itself."""

    logits: Array  # [B, C]
    losses: Array  # [B] cross-entropy, nats
    gradients: Array  # [B, P] of the cross-entropy
    jacobians: Array  # [B, C, D] of the logits by the input


class Local(NamedTuple):
    """Of the mean over all samples, at one point of parameter space."""

    loss: Array  # []
    logits: Array  # [B, C]
    gradient: Array  # [P]
    curvature: Array  # [P] the Hessian times `vector`


@jax.jit
def per_sample(apply_fn: Partial, params: Any, x_Bx: Array, labels_B: Array) -> PerSample:
    """Logits, cross-entropy, its gradient and the input-output Jacobian, sample by sample."""

    def of_one(x: Array, label: Array) -> PerSample:
        logits_C, pull = jax.vjp(lambda params, x: apply_fn(params, x[None])[0], params, x)
        loss, slope_C = jax.value_and_grad(optax.softmax_cross_entropy_with_integer_labels)(logits_C, label)
        gradient_P = ravel_pytree(pull(slope_C)[0])[0]
        jacobian_Cx = jax.vmap(lambda row: pull(row)[1])(jnp.eye(logits_C.size, dtype=logits_C.dtype))
        return PerSample(logits_C, loss, gradient_P, jacobian_Cx.reshape(logits_C.size, -1))

    with jax.default_matmul_precision(PRECISION):
        return jax.vmap(of_one)(x_Bx, labels_B)


@jax.jit
def local(
    apply_fn: Partial, params: Any, x_Bx: Array, labels_B: Array, offset_P: Array, vector_P: Array, of_logits: Array
) -> Local:
    """Loss, gradient and a Hessian-vector product at `params + offset`.

    The loss is the mean cross-entropy, or the mean sum of the logits if `of_logits` (a bool) is true.
    """
    center_P, unflatten = ravel_pytree(params)

    def loss_of(w_P: Array) -> tuple[Array, Array]:
        logits_BxC = apply_fn(unflatten(w_P), x_Bx)
        # Zeros instead of the logits that aren't meant: those of SynFlow overflow, and 0 * inf would be nan.
        finite_BxC = jnp.where(of_logits, 0.0, logits_BxC)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(finite_BxC, labels_B).mean()
        return jnp.where(of_logits, logits_BxC.sum(1).mean(), cross_entropy), logits_BxC

    def slope_along_vector(w_P: Array) -> tuple[Array, tuple]:
        (loss, logits_BxC), gradient_P = jax.value_and_grad(loss_of, has_aux=True)(w_P)
        return gradient_P @ vector_P, (loss, logits_BxC, gradient_P)

    with jax.default_matmul_precision(PRECISION):
        # Reverse over reverse mode: merges with a backward pass of their own have no forward mode.
        curvature_P, (loss, logits_BxC, gradient_P) = jax.grad(slope_along_vector, has_aux=True)(center_P + offset_P)
    return Local(loss, logits_BxC, gradient_P, curvature_P)
