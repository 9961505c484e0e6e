"""How much the loss rises within a ball around the weights w: flatness (Q15).

All are max L(w + d) - L(w) over a ball of d. `box` and `ball` climb from d = 0; the highest loss on the way counts, so
that each is a lower bound of the maximum. Both know the loss by a function alone, `Slope`: the probe `sharpness` below
and the predictors of generalisation give their own, with radii and numbers of steps of their own.

Danger: a norm after a layer makes its weights' scale meaningless: the net with weights c*w (and its statistics) is the
same function, and its plain sharpness (`sam`, `box`, and the Hessian's eigenvalues) another (Dinh et al. 2017). Nets
with different merges have weights of different size, so only `asam` compares them fairly. No reading is known to
predict generalisation in general (Andriushchenko et al. 2023, 2302.07011).
"""

from collections.abc import Callable

import jax
import numpy as np
import pandas as pd

from resjax.probes.loss.curvature import krylov
from resjax.probes.loss.objective import Objective, value_and_gradient
from resjax.probes.subject import Subject

Slope = Callable[[np.ndarray], tuple[float, np.ndarray]]  # d [P] -> L(w + d), and its gradient [P] there
RADII = {"box": 5e-4, "sam": 0.05, "asam": 0.5}  # the probe's columns; values that their authors use


def box(slope: Slope, w_P: np.ndarray, radius: float, *, steps: int, stride: float) -> float:
    """100 * (max L(w + d) - L(w)) / (1 + L(w)), in percent, over |d_i| <= radius * (|w_i| + 1).

    Keskar et al. 2017 (1609.04836), metric 2.1 with A = I.

    Args:
      slope: the loss around w.
      w_P: the weights.
      radius: epsilon of the source, which takes 1e-3 and 5e-4.
      steps: of the ascent.
      stride: of a step, along the signs of the gradient and back into the box, as a share of the half side of the box;
        2 goes from any point to the corner that the gradient points to (the method of Frank and Wolfe).
    """
    half_P = radius * (np.abs(w_P) + 1)

    def further(d_P: np.ndarray, gradient_P: np.ndarray) -> np.ndarray:
        return np.clip(d_P + stride * half_P * np.sign(gradient_P), -half_P, half_P)

    loss, highest = _climbed(slope, w_P.size, further, steps)
    return 100 * (highest - loss) / (1 + loss)


def ball(slope: Slope, unit_P: np.ndarray, radius: float, *, steps: int) -> float:
    """The maximum of L(w + d) - L(w) over ||d / unit|| <= radius, elementwise; 0 at a stationary point.

    With unit 1 the sharpness that SAM minimises (Foret et al. 2021, 2010.01412, equation 1), with unit |w| + eta that
    of adaptive SAM (Kwon et al. 2021, 2102.11600). A step goes to the point of the ball that the gradient points to:
    one step is their approximation, more are the method of Frank and Wolfe.
    """

    def further(d_P: np.ndarray, gradient_P: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(unit_P * gradient_P)
        return radius * unit_P**2 * gradient_P / norm if norm > 0 else np.zeros_like(unit_P)

    loss, highest = _climbed(slope, unit_P.size, further, steps)
    return highest - loss


def _climbed(slope: Slope, size: int, further: Callable, steps: int) -> tuple[float, float]:
    """L(w), and the highest loss on the way there; nan as soon as a loss is."""
    d_P = np.zeros(size)
    loss, gradient_P = slope(d_P)
    way = [loss]
    for _ in range(steps):
        d_P = further(d_P, gradient_P)
        value, gradient_P = slope(d_P)
        way.append(value)
    return loss, float(np.max(way))


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
    w_P = objective.vector()

    def slope(d_P: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient_P = jax.device_get(value_and_gradient(objective, w_P + d_P.astype(w_P.dtype)))
        return float(loss), gradient_P

    here, size_P = np.asarray(w_P), np.abs(np.asarray(w_P))
    for_box, for_sam, for_asam = radii
    row = {
        "loss": slope(np.zeros(here.size))[0],
        "box": box(slope, here, for_box, steps=ascent, stride=2),
        "sam": ball(slope, np.ones_like(here), for_sam, steps=ascent),
        "asam": ball(slope, size_P, for_asam, steps=ascent),
    }
    found = krylov(objective, jax.random.fold_in(at.key, 0), 1, steps, samples)
    trace = float(found.forms_k.mean()) * found.lowest_nxP.shape[1]
    return pd.DataFrame([row | {"lambda_max": float(found.values_nxm.max()), "trace": trace}])
