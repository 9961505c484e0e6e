"""Predictors of the net itself: sensitivity, gradients of the samples, sharpness, margins and norms.

The loss is the mean cross-entropy over the training set with the statistics of BatchNorm frozen, in nats.
"""

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from resjax.predictors.evidence import Evidence
from resjax.predictors.registry import register
from resjax.probes.loss import noise, sharpness

# --- Sensitivity to the input ---------------------------------------------------------------------------------------


@register("input_jacobian", sign=+1, cost="C passes", source="Novak et al. 2018, 1802.08760", at="both")
def input_jacobian(evidence: Evidence) -> float:
    """Mean Frobenius norm of d logits/d x over the training set.

    The source takes probabilities and test points, as `resjax.probes.functions.surface.smoothness` does.
    """
    return np.linalg.norm(evidence.per_sample.jacobians, axis=(1, 2)).mean()


# --- Gradients of the samples: mean g, variance over samples s^2 ----------------------------------------------------


def _variances(evidence: Evidence) -> np.ndarray:
    """[P] over samples, of the cross-entropy's gradient."""
    return evidence.per_sample.gradients.var(0)


@register("gradient_variance", sign=+1, cost="1 pass", source="Jiang et al. 2020, 1912.02178", at="both")
def gradient_variance(evidence: Evidence) -> float:
    """Sum over parameters of s^2."""
    return _variances(evidence).sum()


@register("gsnr", sign=-1, cost="1 pass", source="Liu et al. 2020, 2001.07384", at="both")
def gsnr(evidence: Evidence) -> float:
    """Gradient signal-to-noise ratio g^2/s^2 of all training samples, the mean over parameters with s^2 > 0."""
    return noise.gsnr(evidence.gradient, _variances(evidence))


@register(
    "gradient_noise_scale", sign=+1, cost="1 pass", source="McCandlish et al. 2018, 1812.06162, B_simple", at="both"
)
def gradient_noise_scale(evidence: Evidence) -> float:
    """Sum s^2 / |g|^2, in samples. Sign: that of noise; the source doesn't relate it to test error."""
    return noise.noise_scale(evidence.gradient, _variances(evidence))


# --- Sharpness: what the loss gains near the trained parameters w ---------------------------------------------------

KESKAR_EPSILON = 1e-3  # half the box's side, relative to |w_i| + 1; of the source
KESKAR_STEPS, KESKAR_STRIDE = 8, 1 / 4  # of the ascent
SAM_RADIUS = 0.05  # the source's default
ASAM_RADIUS, ASAM_ETA = 0.5, 0.01  # of the source


def _slope(evidence: Evidence) -> sharpness.Slope:
    """The mean cross-entropy and its gradient at an offset from w."""

    def slope(offset_P: np.ndarray) -> tuple[float, np.ndarray]:
        there = evidence.local(offset_P)
        return float(there.loss), there.gradient

    return slope


@register(
    "sharpness_keskar", sign=+1, cost="8 passes", source="Keskar et al. 2017, 1609.04836, metric 2.1", at="trained"
)
def sharpness_keskar(evidence: Evidence) -> float:
    """100 (max L - L)/(1 + L) over the box |z_i| <= .001 (|w_i| + 1), in eight steps of a quarter of the box.

    Ascent by projected signs of the gradient instead of L-BFGS-B: a lower bound of the maximum.
    """
    slope = _slope(evidence)
    return sharpness.box(slope, evidence.weights_P, KESKAR_EPSILON, steps=KESKAR_STEPS, stride=KESKAR_STRIDE)


@register("sharpness_sam", sign=+1, cost="2 passes", source="Foret et al. 2021, 2010.01412, equation 2", at="trained")
def sharpness_sam(evidence: Evidence) -> float:
    """What the loss gains by one step of length .05 along the gradient."""
    return sharpness.ball(_slope(evidence), np.ones(evidence.weights_P.size), SAM_RADIUS, steps=1)


@register("sharpness_adaptive", sign=+1, cost="2 passes", source="ASAM: Kwon et al. 2021, 2102.11600", at="trained")
def sharpness_adaptive(evidence: Evidence) -> float:
    """The same in units of |w_i| + .01 and with length .5: scaling a layer up and the next down changes little."""
    return sharpness.ball(_slope(evidence), np.abs(evidence.weights_P) + ASAM_ETA, ASAM_RADIUS, steps=1)


HUTCHINSON_DRAWS = 10


@register("hessian_trace", sign=+1, cost="20 passes", source="Hutchinson 1990", at="trained")
def hessian_trace(evidence: Evidence) -> float:
    """Trace of the loss's Hessian: the mean of z'Hz over fixed draws of signs z, the same for nets of equal size."""
    rng = np.random.default_rng(0)
    draws = rng.choice([-1.0, 1.0], (HUTCHINSON_DRAWS, evidence.weights_P.size))
    return np.mean([z @ evidence.local(vector=z).curvature for z in draws])


@register("hessian_top", sign=+1, cost="about 50 passes", source="Lanczos (ARPACK)", at="trained")
def hessian_top(evidence: Evidence) -> float:
    """Largest eigenvalue of the loss's Hessian, to 1 %: the `lambda_max` of `resjax.probes.loss.curvature`."""
    P = evidence.weights_P.size
    if P < 3:  # too small for ARPACK
        hessian = [evidence.local(vector=row).curvature for row in np.eye(P)]
        return np.linalg.eigvalsh(hessian)[-1]
    product = LinearOperator((P, P), lambda v: evidence.local(vector=v.ravel()).curvature, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=P)
    return eigsh(product, 1, which="LA", v0=start, tol=1e-2, return_eigenvectors=False)[0]


PAC_BAYES_DROP = 0.1  # of accuracy
PAC_BAYES_DRAWS, PAC_BAYES_HALVINGS = 3, 10
PAC_BAYES_LOG_SIGMAS = np.log(1e-4), np.log(10.0)


@register("pac_bayes_flatness", sign=+1, cost="30 passes", source="Jiang et al. 2020, 1912.02178", at="trained")
def pac_bayes_flatness(evidence: Evidence) -> float:
    """1/sigma^2, for the largest Gaussian noise sigma on all parameters that costs .1 of training accuracy.

    By bisection of log sigma in [1e-4, 10] to 1 %, on the mean over three fixed draws of the noise.
    """
    labels = evidence.labels[: evidence.n]
    noises = np.random.default_rng(0).normal(size=(PAC_BAYES_DRAWS, evidence.weights_P.size))

    def accuracy(sigma: float) -> float:
        return np.mean([evidence.local(sigma * z).logits.argmax(1) == labels for z in noises])

    floor = np.mean(evidence.per_sample.logits.argmax(1) == labels) - PAC_BAYES_DROP
    low, high = PAC_BAYES_LOG_SIGMAS
    for _ in range(PAC_BAYES_HALVINGS):
        middle = (low + high) / 2
        if accuracy(np.exp(middle)) >= floor:
            low = middle
        else:
            high = middle
    return np.exp(-2 * low)


# --- Margins and norms ----------------------------------------------------------------------------------------------


@register("margin", sign=-1, cost="1 pass", source="Jiang et al. 2020, 1912.02178", at="trained")
def margin(evidence: Evidence) -> float:
    """10th percentile over the training set of the true class's logit less the largest of the others."""
    logits, labels = evidence.per_sample.logits.copy(), evidence.labels[: evidence.n]
    true = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
    np.put_along_axis(logits, labels[:, None], -np.inf, 1)
    return np.percentile(true - logits.max(1), 10)


def _weights(evidence: Evidence, vector: np.ndarray) -> list[np.ndarray]:
    """The weights of each layer in a vector of all parameters, [inputs and taps, outputs]."""
    return [vector[layer.weight].reshape(-1, layer.shape[-1]) for layer in evidence.layers]


@register("frobenius_product", sign=+1, cost="O(P)", source="Jiang et al. 2020, 1912.02178", at="trained")
def frobenius_product(evidence: Evidence) -> float:
    """Sum over layers of log |W|_F^2."""
    return sum(np.log(np.sum(W**2)) for W in _weights(evidence, evidence.weights_P))


@register("spectral_product", sign=+1, cost="O(P)", source="Jiang et al. 2020, 1912.02178", at="trained")
def spectral_product(evidence: Evidence) -> float:
    """Sum over layers of log |W|_2^2; a convolution's W is its kernel as a matrix [taps * inputs, outputs]."""
    return sum(2 * np.log(np.linalg.norm(W, 2)) for W in _weights(evidence, evidence.weights_P))


@register("squared_weight_distance", sign=+1, cost="O(P)", source="Jiang et al. 2020, 1912.02178", at="trained")
def squared_weight_distance(evidence: Evidence) -> float:
    """Sum over layers of |W - W at init|_F^2, without norms and biases."""
    return sum(np.sum(W**2) for W in _weights(evidence, evidence.moved_P))
