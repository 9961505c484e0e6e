"""Lanczos' algorithm for symmetric operators of any rank, with vectors that stay orthogonal to rounding.

Where the products of a start vector span few dimensions (kernels of few inputs dimensions, of repeated images, of dead
nets), what is left after a step is rounding. Its direction is no longer orthogonal to those before, and would bring
eigenvalues that the operator does not have, above its trace. Here a step that leaves nothing begins anew with a random
vector, and every vector is orthogonalised again after it is normalised.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

NOTHING = 1e-5  # of the largest entry so far: what a step leaves is rounding, of products in single precision


class Projection(NamedTuple):
    """An operator A on the space that a start vector and its products span.

    Attributes:
      basis_mxP: orthonormal rows; the first is the start's direction.
      projected_mxm: basis A basis^T, whose entries below the subdiagonal are 0: tridiagonal, to rounding, if A is
        symmetric.
      residual: norm of what A does to the last row beyond the basis.
    """

    basis_mxP: jax.Array
    projected_mxm: jax.Array
    residual: jax.Array

    def eigh(self) -> tuple[jax.Array, jax.Array]:
        """Ritz values [m], ascending, and in columns their coordinates [m, m] in the basis, if A is symmetric."""
        symmetric = (self.projected_mxm + self.projected_mxm.T) / 2
        return jnp.linalg.eigh(jnp.triu(jnp.tril(symmetric, 1), -1))


def lanczos(product: Callable[[jax.Array], jax.Array], start_P: jax.Array, steps: int) -> Projection:
    """`steps` products; `steps` is at most P, and the start is not 0."""
    size = len(start_P)

    def orthogonal(v_P: jax.Array, basis_mxP: jax.Array) -> jax.Array:
        return v_P - (basis_mxP @ v_P) @ basis_mxP

    def next_vector(k: jax.Array, left_P: jax.Array, basis_mxP: jax.Array, nothing: jax.Array) -> jax.Array:
        def anew(_: jax.Array) -> jax.Array:
            v_P = jax.random.normal(jax.random.fold_in(jax.random.key(1), k), (size,), start_P.dtype)
            return orthogonal(v_P, basis_mxP)

        v_P = lax.cond(nothing, anew, lambda left_P: left_P, left_P)
        v_P = orthogonal(v_P / _positive(jnp.linalg.norm(v_P)), basis_mxP)
        return v_P / _positive(jnp.linalg.norm(v_P))

    def step(k: jax.Array, carry: tuple) -> tuple:
        basis_mxP, projected_mxm, v_P, _ = carry
        basis_mxP = basis_mxP.at[k].set(v_P)
        image_P = product(v_P)
        column_m = basis_mxP @ image_P
        left_P = orthogonal(image_P - column_m @ basis_mxP, basis_mxP)
        residual = jnp.linalg.norm(left_P)
        projected_mxm = projected_mxm.at[:, k].set(column_m)
        nothing = residual <= NOTHING * jnp.max(jnp.abs(projected_mxm))
        below = jnp.where(nothing, 0, residual)
        projected_mxm = projected_mxm.at[k + 1, k].set(below, mode="drop")
        return basis_mxP, projected_mxm, next_vector(k, left_P, basis_mxP, nothing), below

    zeros_mxP, zeros_mxm = jnp.zeros((steps, size), start_P.dtype), jnp.zeros((steps, steps), start_P.dtype)
    first_P = start_P / jnp.linalg.norm(start_P)
    basis_mxP, projected_mxm, _, residual = lax.fori_loop(
        0, steps, step, (zeros_mxP, zeros_mxm, first_P, jnp.zeros((), start_P.dtype))
    )
    return Projection(basis_mxP, projected_mxm, residual)


def _positive(norm: jax.Array) -> jax.Array:
    """1 in the place of 0, or nothing would become nan."""
    return jnp.where(norm > 0, norm, 1)
