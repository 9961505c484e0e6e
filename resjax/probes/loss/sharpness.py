"""How much the loss rises within a ball around the weights: readings of flatness (Q15).

All are max L(w + d) - L(w) over a ball, by Frank-Wolfe's method with unit steps: the next d is the point of the ball
farthest along the gradient at w + d. Its first point is that of SAM; where L is convex on the ball no later one is
lower. The highest loss found counts, so that every reading is a lower bound.

Danger: a norm after a layer makes its weights' scale meaningless: the net with weights c*w (and its statistics) is the
same function, and its plain sharpness (`sam`, `box`, and the Hessian's eigenvalues) another (Dinh et al. 2017). Nets
with different merges have weights of different size, so only `asam` compares them fairly. No reading is known to
predict generalisation in general (Andriushchenko et al. 2023, 2302.07011).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import pandas as pd
from jax import lax

from resjax.probes.loss.curvature import krylov
from resjax.probes.loss.objective import Objective
from resjax.probes.subject import Subject


def _box(w_P: jax.Array, gradient_P: jax.Array, radius: jax.Array) -> jax.Array:
    """|d_i| <= radius * (|w_i| + 1) (Keskar et al. 2017, 1609.04836, eq. 3, A = I)."""
    return radius * (jnp.abs(w_P) + 1) * jnp.sign(gradient_P)


def _sphere(w_P: jax.Array, gradient_P: jax.Array, radius: jax.Array) -> jax.Array:
    """||d|| <= radius (Foret et al. 2021, SAM)."""
    return radius * _unit(gradient_P)


def _adaptive(w_P: jax.Array, gradient_P: jax.Array, radius: jax.Array) -> jax.Array:
    """||d/w|| <= radius (Kwon et al. 2021, ASAM, eta = 0: a scale that a norm removes plays no part)."""
    size_P = jnp.abs(w_P)
    return radius * size_P * _unit(size_P * gradient_P)


def _unit(v: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(v)
    return v / jnp.where(norm > 0, norm, 1)


BALLS = {"box": _box, "sam": _sphere, "asam": _adaptive}  # column -> the point of the ball farthest along the gradient
RADII = {"box": 5e-4, "sam": 0.05, "asam": 0.5}  # as their authors have them


def sharpness(
    at: Subject, *, ascent: int = 3, steps: int = 16, samples: int = 4, radii: tuple[float, ...] = tuple(RADII.values())
) -> pd.DataFrame:
    """One row.

    Columns:
      loss: L, over the given images at frozen statistics.
      box: 100 * (max L(w + d) - L) / (1 + L) over the box |d_i| <= radius * (|w_i| + 1), in percent.
      sam: max L(w + d) - L over ||d|| <= radius.
      asam: the same over ||d/w|| <= radius, with elementwise division.
      lambda_max, trace: of the Hessian (`resjax.probes.loss.curvature`), nan without one.

    Args:
      at: a replica.
      ascent: points of Frank-Wolfe's method.
      steps: of Lanczos.
      samples: directions of the trace.
      radii: of box, sam and asam.
    """
    objective = Objective.of(at)
    loss, highest = jax.device_get(_highest(objective, jnp.asarray(radii), ascent))
    found = krylov(objective, jax.random.fold_in(at.key, 0), 1, steps, samples)
    rise = {name: float(value) - float(loss) for name, value in zip(BALLS, highest, strict=True)}
    rise["box"] *= 100 / (1 + float(loss))
    trace = float(found.forms_k.mean()) * found.lowest_nxP.shape[1]
    return pd.DataFrame([{"loss": float(loss)} | rise | {"lambda_max": float(found.values_nxm.max()), "trace": trace}])


@partial(jax.jit, static_argnames="ascent")
def _highest(objective: Objective, radii: jax.Array, ascent: int) -> tuple[jax.Array, jax.Array]:
    """L(w), and the highest loss found in each ball."""
    w = objective.vector()
    loss, gradient = objective.value_and_gradient(w)

    def climb(kind_and_radius):
        kind, radius = kind_and_radius

        def further(_, best_and_gradient):
            best, gradient = best_and_gradient
            d = lax.switch(kind, list(BALLS.values()), w, gradient, radius)
            value, gradient = objective.value_and_gradient(w + d)
            return jnp.maximum(best, value), gradient

        return lax.fori_loop(0, ascent, further, (jnp.full_like(loss, -math.inf), gradient))[0]

    return loss, lax.map(climb, (jnp.arange(len(BALLS)), radii.astype(w.dtype)))
