"""The Hessian of the mean loss, without forming it: extreme eigenvalues, density, trace, and a step off a saddle.

Of the loss over the given images by the parameters, at frozen statistics, without weight decay: see `Objective`.

Lanczos from random directions (full reorthogonalisation) gives Ritz values and their weights. They are the
nodes of stochastic Lanczos quadrature: the sum of weight * g(node) estimates the mean of g over all eigenvalues
(Ubaru, Chen & Saad 2017; for nets Ghorbani et al. 2019, 1901.10159). Directions are orthonormal, so that as many as
there are parameters, with as many steps, give every number exactly.

A net whose backward pass is not that of its forward pass (`swap_*`) has no Hessian: what Lanczos sees is not
symmetric then, and what would be said of it is nan.

Danger: the nodes within the bulk of the spectrum, around 0, stand for many eigenvalues each, so that the share below
a threshold carries an error from the number of steps that its standard error, over directions, does not show: by 2
directions x 24 steps it came out as .17 +- .15 and .0096 +- .0013 where the Hessian of a ResNet-8 of width 4 (`add`,
5,142 parameters, 512 digits) has .164 before and .0159 after 20 epochs of training. The negative mass is too large by
less: .39 +- .03 for .36, and .17 +- .04 for .11; it takes 100 to 200 steps to have it right.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import lax

from resjax.ntk.lanczos import lanczos
from resjax.probes.loss.objective import Objective, value_and_gradient
from resjax.probes.subject import Subject

EPS = 1e-3  # of the spectral radius: an eigenvalue is negative where it is below -EPS * radius
ASYMMETRY = 0.01  # more than any rounding in single precision
OF_HESSIAN = "values_nxm", "weights_nxm", "errors_nxm", "lowest_nxP", "forms_k"  # in Krylov
LENGTHS = tuple(np.geomspace(0.01, 10, 10))  # of the steps that `escape` tries, in the unit of the parameters


class Krylov(NamedTuple):
    """What Lanczos finds of H from n directions with m steps, and forms of k directions.

    Attributes:
      values: Ritz values, ascending.
      weights: of each in the mean over eigenvalues; those of a direction sum to 1.
      errors: an eigenvalue lies within this of the Ritz value (the norm of the Ritz vector's residual).
      lowest: unit Ritz vectors of the smallest values.
      starts: the directions that Lanczos began with, orthonormal.
      forms: v.H.v of k orthonormal directions.
      asymmetry: of H as Lanczos saw it, relative to its size: rounding alone, if H is a Hessian.
    """

    values_nxm: np.ndarray
    weights_nxm: np.ndarray
    errors_nxm: np.ndarray
    lowest_nxP: np.ndarray
    starts_nxP: np.ndarray
    forms_k: np.ndarray
    asymmetry_n: np.ndarray


@partial(jax.jit, static_argnames=("probes", "steps", "samples"))
def _krylov(objective: Objective, key: jax.Array, probes: int, steps: int, samples: int) -> Krylov:
    w = objective.vector()
    product = partial(objective.product, w)
    directions = jnp.linalg.qr(jax.random.normal(key, (w.size, samples), w.dtype))[0].T

    def of_direction(v_P):
        basis_mxP, projected, residual = space = lanczos(product, v_P, steps)
        symmetric = (projected + projected.T) / 2
        values, vectors = space.eigh()
        errors = residual * jnp.abs(vectors[-1])
        asymmetry = jnp.linalg.norm(projected - symmetric) / jnp.linalg.norm(symmetric)
        lowest_P = vectors[:, 0] @ basis_mxP
        return Krylov(values, jnp.square(vectors[0]), errors, lowest_P, v_P, symmetric[0, 0], asymmetry)

    found = lax.map(of_direction, directions[:probes])
    if samples == probes:  # or an empty loop would cost its compilation
        return found
    more_k = lax.map(lambda v_P: v_P @ product(v_P), directions[probes:])
    return found._replace(forms_k=jnp.concatenate([found.forms_k, more_k]))


def krylov(objective: Objective, key: jax.Array, probes: int, steps: int, samples: int = 0) -> Krylov:
    """Lanczos with `steps` from `probes` random directions, and v.H.v of at least `samples` of them.

    Both are at most the number of parameters. Cost: about probes * steps + samples products with H. Without a Hessian
    all but starts and asymmetry is nan.
    """
    size = jax.eval_shape(Objective.vector, objective).size
    probes, steps = min(probes, size), min(steps, size)
    found = jax.device_get(_krylov(objective, key, probes, steps, min(max(samples, probes), size)))
    if (found.asymmetry_n > ASYMMETRY).any():
        lost = {name: np.full_like(getattr(found, name), np.nan) for name in OF_HESSIAN}
        return found._replace(**lost)
    return found


def curvature(at: Subject, *, probes: int = 2, steps: int = 24, samples: int = 6) -> pd.DataFrame:
    """One row; without a Hessian all but loss, grad_norm and parameters is nan.

    Columns:
      loss, grad_norm: L, and the norm of its gradient.
      lambda_max, lambda_min: the largest and the smallest Ritz value, so bounds of H's extreme eigenvalues from within.
      lambda_max_error, lambda_min_error: an eigenvalue lies within this of them.
      trace, trace_se: of H by Hutchinson's estimator, and its standard error.
      eps: EPS times the larger modulus of lambda_max and lambda_min.
      negative, negative_se: share of the eigenvalues below -eps, and its standard error over directions.
      negative_mass: minus the sum of the negative eigenvalues over the sum of the moduli of all.
      parameters: P.
      escape_length, escape_loss: the step along the eigenvector of lambda_min that lowers the loss most (`escape`),
        and the loss after it; nan, as what follows, where no lambda_min is negative.
      escape_even: the even part of what that step takes away of the loss, 1 - (L+ + L-)/(2 L) with the losses after
        it and after its opposite: curvature is in this part, the gradient, to which any direction owes something
        away from a critical point, is not.
      random_loss: the lowest loss after such steps along + or - a random unit direction of any of the lengths tried,
        mean over directions (those of Lanczos): what the search finds without an eigenvector.
      gradient_loss: the loss after a step of that length against the gradient.
      descent_loss: the lowest loss after such a step of any of the lengths tried.

    Args:
      at: a replica.
      probes: directions of Lanczos.
      steps: of Lanczos, from each of them.
      samples: directions of the trace, at least those of Lanczos.
    """
    objective = Objective.of(at)
    found = krylov(objective, jax.random.fold_in(at.key, 0), probes, steps, samples)
    loss, gradient = value_and_gradient(objective, objective.vector())
    top, bottom = (np.unravel_index(pick(found.values_nxm), found.values_nxm.shape) for pick in (np.argmax, np.argmin))
    radius = max(abs(found.values_nxm[top]), abs(found.values_nxm[bottom]))
    below_n = np.sum(found.weights_nxm * (found.values_nxm < -EPS * radius), 1)
    mass = np.sum(found.weights_nxm * np.abs(found.values_nxm))
    size = found.lowest_nxP.shape[1]
    trace, trace_se = _mean_and_error(size * found.forms_k, size)
    negative, negative_se = _mean_and_error(below_n, size)
    row = {
        "loss": float(loss), "grad_norm": float(jnp.linalg.norm(gradient)),
        "lambda_max": found.values_nxm[top], "lambda_max_error": found.errors_nxm[top],
        "lambda_min": found.values_nxm[bottom], "lambda_min_error": found.errors_nxm[bottom],
        "trace": trace, "trace_se": trace_se, "eps": EPS * radius,
        "negative": negative, "negative_se": negative_se,
        "negative_mass": np.sum(found.weights_nxm * np.maximum(-found.values_nxm, 0)) / mass if mass else math.nan,
        "parameters": size,
    }  # fmt: skip
    steps_taken = "escape_length", "escape_loss", "escape_even", "random_loss", "gradient_loss", "descent_loss"
    row |= dict.fromkeys(steps_taken, math.nan)
    if row["lambda_min"] < 0:
        tried = _tried(objective, found, gradient, LENGTHS)
        length = tried[["+", "-"]].min(axis="columns").idxmin()
        there = tried.loc[length]
        row["escape_length"], row["escape_loss"] = length, there[["+", "-"]].min()
        row["escape_even"] = 1 - (there["+"] + there["-"]) / (2 * row["loss"]) if row["loss"] else math.nan
        random = tried.filter(like="random").min()  # of each direction and sign, over lengths
        row["random_loss"] = random.groupby(random.index.str[:-2]).min().mean()
        row["gradient_loss"], row["descent_loss"] = there["gradient"], tried["gradient"].min()
    return pd.DataFrame([row])


def _mean_and_error(values: np.ndarray, size: int) -> tuple[float, float]:
    """The mean of n of `size` orthonormal directions, and its standard error, which is 0 where n is all."""
    n = len(values)
    left = 1 - n / size
    return float(np.mean(values)), float(np.std(values, ddof=1) * math.sqrt(left / n)) if n > 1 else math.nan


def density(at: Subject, *, probes: int = 2, steps: int = 24, samples: int = 6) -> pd.DataFrame:
    """The spectrum as the nodes of stochastic Lanczos quadrature: a row per direction and Ritz value.

    Columns: probe (0, 1, ... the direction), eigenvalue, weight (a share of all eigenvalues; a direction's sum to 1).
    Arguments are those of `curvature`.
    """
    found = krylov(Objective.of(at), jax.random.fold_in(at.key, 0), probes, steps, samples)
    probe = np.repeat(np.arange(len(found.values_nxm)), found.values_nxm.shape[1])
    return pd.DataFrame({"probe": probe, "eigenvalue": found.values_nxm.ravel(), "weight": found.weights_nxm.ravel()})


def escape(at: Subject, *, probes: int = 2, steps: int = 24, lengths: Sequence[float] = LENGTHS) -> pd.DataFrame:
    """The loss after steps along the eigenvector of the smallest eigenvalue, and against the gradient.

    Columns:
      direction: "+" and "-" of the eigenvector, whose sign means nothing, "gradient", or "random 0 +", "random 0 -",
        "random 1 +", ... of the directions that Lanczos began with.
      length: of the step, in the unit of the parameters.
      loss: after it.

    Where the gradient is 0 its step is none. Arguments are those of `curvature`.
    """
    objective = Objective.of(at)
    found = krylov(objective, jax.random.fold_in(at.key, 0), probes, steps)
    tried = _tried(objective, found, value_and_gradient(objective, objective.vector())[1], lengths)
    return tried.rename_axis("length").reset_index().melt("length", var_name="direction", value_name="loss")


def _tried(objective: Objective, found: Krylov, gradient_P: jax.Array, lengths: Sequence[float]) -> pd.DataFrame:
    """The losses after steps: a row per length, a column per direction."""
    lowest_P = found.lowest_nxP[np.argmin(found.values_nxm[:, 0])]
    norm = jnp.linalg.norm(gradient_P)
    directions = {"+": lowest_P, "-": -lowest_P, "gradient": -gradient_P / jnp.where(norm > 0, norm, 1)}
    for i, v_P in enumerate(found.starts_nxP):
        directions |= {f"random {i} +": v_P, f"random {i} -": -v_P}
    losses_dxl = _losses(objective, jnp.stack(list(directions.values())), jnp.asarray(lengths))
    return pd.DataFrame(jax.device_get(losses_dxl).T, index=[float(length) for length in lengths], columns=directions)


@jax.jit
def _losses(objective: Objective, directions_dxP: jax.Array, lengths_l: jax.Array) -> jax.Array:
    """Losses [d, l] after steps of these lengths."""
    w = objective.vector()
    return lax.map(lambda v: lax.map(lambda length: objective.value(w + length * v), lengths_l), directions_dxP)
