"""Zero-cost proxies of architecture search, at initialisation, after Abdelfattah et al. 2021 (2101.08134).

Their sums go over the weights of linear layers. A larger number means a better net, so all signs are -1. Here the batch
is the training set, and BatchNorm has frozen, calibrated statistics (the sources use those of the batch).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from resjax.predictors import programs
from resjax.predictors.evidence import Evidence
from resjax.predictors.registry import register

SURVEY = "; Abdelfattah et al. 2021, 2101.08134"


def _weights(evidence: Evidence, vector_P: np.ndarray) -> np.ndarray:
    """The entries that belong to weights of linear layers, the others set to 0."""
    out = np.zeros_like(vector_P)
    for layer in evidence.layers:
        out[layer.weight] = vector_P[layer.weight]
    return out


def _without_batchnorm(apply_fn: Partial) -> Partial:
    """Running means 0 and variances 1: what is left of BatchNorm is its scale and bias."""

    def neutral(path: tuple, leaf: jax.Array) -> jax.Array:
        name = getattr(path[-1], "key", "")
        return {"mean": jnp.zeros_like, "var": jnp.ones_like}.get(name, lambda leaf: leaf)(leaf)

    return jax.tree_util.tree_map_with_path(neutral, apply_fn)


@register("synflow", sign=-1, cost="1 pass", source="Tanaka et al. 2020, 2006.05467" + SURVEY, at="init")
def synflow(evidence: Evidence) -> float:
    """Logarithm of sum |w dR/dw|, R the sum of the logits of an input of ones in the net of absolute parameters.

    Without BatchNorm, as in the survey; LayerNorm and GroupNorm stay. Deep products exceed float32: then inf.
    """
    absolute = jax.tree.map(jnp.abs, evidence.params)
    data = jnp.ones_like(evidence.x[: evidence.n]), evidence.labels[: evidence.n]  # n times the same: no new program
    zeros = np.zeros(evidence.weights_P.size, np.float32)
    out = programs.local(_without_batchnorm(evidence.apply_fn), absolute, *data, zeros, zeros, np.bool_(True))
    gradient = np.asarray(out.gradient, np.float64)
    if not np.isfinite(out.loss) or not np.isfinite(gradient).all():
        return np.inf if np.isfinite(evidence.weights_P).all() else np.nan
    return np.log(np.sum(np.abs(_weights(evidence, evidence.weights_P * gradient))))


@register("snip", sign=-1, cost="1 pass", source="Lee et al. 2019, 1810.02340" + SURVEY, at="init")
def snip(evidence: Evidence) -> float:
    """Sum |w dL/dw|, L the mean cross-entropy."""
    return np.sum(np.abs(_weights(evidence, evidence.weights_P * evidence.gradient)))


@register("grasp", sign=-1, cost="2 passes", source="Wang et al. 2020, 2002.07376" + SURVEY, at="init")
def grasp(evidence: Evidence) -> float:
    """-w'Hg, g the gradient and H the Hessian of L by the weights."""
    weights, gradient = (_weights(evidence, v) for v in (evidence.weights_P, evidence.gradient))
    return -weights @ evidence.local(vector=gradient).curvature


@register("fisher", sign=-1, cost="1 pass", source="Theis et al. 2018, 1801.05787" + SURVEY, at="init")
def fisher(evidence: Evidence) -> float:
    """Sum over the output channels of linear layers of mean_i (sum over pixels of a dL_i/da)^2 / 2.

    Activations a aren't needed: they are linear in the channel's weights and bias, so that a dL/da summed over
    pixels is w dL/dw summed over these, for every sample i. (The survey's code also counts a channel once per weight.)
    """
    total, products = 0.0, evidence.per_sample.gradients * evidence.weights_P
    for layer in evidence.layers:
        saliency = products[:, layer.weight].reshape(evidence.n, -1, layer.shape[-1]).sum(1)
        if layer.bias is not None:
            saliency += products[:, layer.bias]
        total += np.sum(saliency**2) / (2 * evidence.n)
    return total


@register("jacob_cov", sign=-1, cost="C passes", source="Mellor et al. 2020, 2006.04647, version 1" + SURVEY, at="init")
def jacob_cov(evidence: Evidence) -> float:
    """-sum log(v + k) + 1/(v + k), k = 1e-5; v eigenvalues of the samples' correlations of d(sum of logits)/dx.

    Beyond D samples of D inputs the eigenvalues are 0 and their sum dominates: then compare equal n alone.
    """
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(evidence.per_sample.jacobians.sum(1))) + 1e-5
    return -np.sum(np.log(eigenvalues) + 1 / eigenvalues)


@register("naswot", sign=-1, cost="C passes", source="Mellor et al. 2021, 2006.04647" + SURVEY, at="init")
def naswot(evidence: Evidence) -> float:
    """Log-determinant of the samples' matrix of agreements of binary codes; -inf if two samples share a code.

    The code is the signs of d logits/dx, not those of the hidden units, which an `apply_fn` doesn't show: in a
    piecewise linear net units determine the Jacobian, so that samples of one linear region agree in either code.
    """
    code = (evidence.per_sample.jacobians > 0).reshape(evidence.n, -1).astype(np.float64)
    sign, log_det = np.linalg.slogdet(code @ code.T + (1 - code) @ (1 - code).T)
    return log_det if sign > 0 else -np.inf


@register("zico", sign=-1, cost="1 pass", source="Li et al. 2023, 2301.11300", at="init")
def zico(evidence: Evidence) -> float:
    """Sum over layers of log sum_w mean|dL_i/dw| / std|dL_i/dw|, over samples i (its code: over two batches)."""
    total = 0.0
    for layer in evidence.layers:
        magnitudes = np.abs(evidence.per_sample.gradients[:, layer.weight])
        spread = magnitudes.std(0)
        live = spread > 0
        if live.any():
            total += np.log(np.sum(magnitudes.mean(0)[live] / spread[live]))
    return total
