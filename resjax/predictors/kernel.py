"""Predictors of the tangent kernel: what regression with it would do, how it fits the labels, how it is spread.

K is the full kernel over (sample, class) pairs in units of the median of K(x, x), Q = (K + ridge I)^-1, y the centred
one-hot targets, n samples of C classes. Errors are mean squares over pairs, in units of the targets' own: 1 is the
error of predicting the training set's class frequencies. Where a sign says more than its source does, the reason stands
there.
"""

import numpy as np

from resjax.config import ConfigError
from resjax.ntk.ridge import left_out
from resjax.predictors.evidence import Evidence
from resjax.predictors.registry import register
from resjax.theory import eigenlearning

FLOAT32 = float(np.finfo(np.float32).eps)


# --- The error of kernel regression ---------------------------------------------------------------------------------
@register(
    "eigenlearning",
    sign=+1,
    cost="O((MC)^3)",
    source="Simon et al. 2021, 2110.03922, equations 4-11, corrected for a pool that contains the training set",
    at="both",
)
def eigenlearning_error(evidence: Evidence) -> float:
    """Expected error on the points of the pool that are not trained on, from the pool's modes.

    Danger: the theory draws points, here (sample, class) pairs, one by one, while a training set has all pairs of its
    samples. For kernels with strong correlations between logits or a wide spread of K(x, x), products above all, the
    true error is larger (`resjax.ntk.learning_curve.learning_curve` measures both).

    Danger: the pool must be much larger than n. For M = 2n the error was measured to be a fifth too large, for M = 5n
    a few percent.
    """
    eigenvalues, coefficients = evidence.pool_modes
    seen, population = evidence.targets.size, evidence.pool_targets.size
    p = eigenlearning.predict(eigenvalues, coefficients, seen, ridge=evidence.ridge)
    off_train = eigenlearning.off_train(p.test_mse, p.train_mse, seen, population)
    return off_train / np.mean(evidence.pool_targets**2)


@register(
    "leave_one_out", sign=+1, cost="O((nC)^3)", source="Allen 1974 (PRESS); in blocks for several outputs", at="both"
)
def leave_one_out(evidence: Evidence) -> float:
    """Error on each training sample of the regression without it, whose C pairs are left out together."""
    residuals = left_out(evidence.inverse, evidence.dual, evidence.classes)
    return np.mean(residuals**2) / np.mean(evidence.targets**2)


@register(
    "gcv",
    sign=+1,
    cost="O((nC)^3)",
    source="Golub, Heath & Wahba 1979; KARE: Jacot et al. 2020, 2006.09796",
    at="both",
)
def gcv(evidence: Evidence) -> float:
    """Generalised cross-validation, (y'Q^2 y/N)/(tr Q/N)^2 with N = n C; biased where K(x, x) varies over x."""
    return np.mean(evidence.dual**2) / np.mean(np.diag(evidence.inverse)) ** 2 / np.mean(evidence.targets**2)


def _validation(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets, [M - n, C] each."""
    seen, C = evidence.targets.size, evidence.classes
    if evidence.n == len(evidence.x):
        raise ConfigError(f"all {evidence.n} points of the pool are training points: none is left for validation")
    predictions = evidence.pool_matrix[seen:, :seen] @ evidence.dual
    return predictions.reshape(-1, C), evidence.pool_targets[seen:].reshape(-1, C)


@register("kernel_regression", sign=+1, cost="O((nC)^3)", source="direct", at="both")
def kernel_regression(evidence: Evidence) -> float:
    """Error of regression on the training set, measured on the validation split."""
    predictions, targets = _validation(evidence)
    return np.mean((predictions - targets) ** 2) / np.mean(targets**2)


@register("kernel_regression_error", sign=+1, cost="O((nC)^3)", source="direct", at="both")
def kernel_regression_error(evidence: Evidence) -> float:
    """The same as a classifier: share of the validation split that it gets wrong."""
    predictions, _ = _validation(evidence)
    return np.mean(np.argmax(predictions + evidence.frequencies, 1) != evidence.labels[evidence.n :])


# --- How the kernel fits the labels ---------------------------------------------------------------------------------
def _centred_cosine(kernel: np.ndarray, target: np.ndarray) -> float:
    return np.sum(kernel * target) / (np.linalg.norm(kernel) * np.linalg.norm(target))


@register(
    "kernel_alignment",
    sign=-1,
    cost="O((nC)^2)",
    source="Cortes, Mohri & Rostamizadeh 2012, centred kernel alignment",
    at="both",
)
def kernel_alignment(evidence: Evidence) -> float:
    """Centred kernel-target alignment <HKH, yy'>/norms; H takes the mean over samples from each class's pairs."""
    n, C = evidence.n, evidence.classes
    K = evidence.matrix.reshape(n, C, n, C)
    K = K - K.mean(0, keepdims=True)
    K = (K - K.mean(2, keepdims=True)).reshape(n * C, n * C)
    y = evidence.targets
    return y @ K @ y / (np.linalg.norm(K) * (y @ y))


@register("label_gradient_alignment", sign=-1, cost="O(n^2 C)", source="Mok et al. 2022, 2203.14577 (LGA)", at="both")
def label_gradient_alignment(evidence: Evidence) -> float:
    """Cosine of the kernel and the matrix that is 1 for samples of one class and -1 for others, each less its mean.

    Its source knows samples, not pairs: this kernel is the mean over logits, an approximation of the full one.
    """
    n, C = evidence.n, evidence.classes
    kernel = np.einsum("icjc->ij", evidence.matrix.reshape(n, C, n, C)) / C
    labels = evidence.labels[:n]
    same = np.where(labels[:, None] == labels, 1.0, -1.0)
    return _centred_cosine(kernel - kernel.mean(), same - same.mean())


@register("label_complexity", sign=+1, cost="O((nC)^3)", source="Arora et al. 2019, 1901.08584, theorem 5.1", at="both")
def label_complexity(evidence: Evidence) -> float:
    """sqrt(2 y'Qy/n); the ridge stands in for the assumption that K is invertible."""
    return np.sqrt(2 * evidence.targets @ evidence.dual / evidence.n)


# --- How the kernel is spread ---------------------------------------------------------------------------------------
@register("condition_number", sign=+1, cost="O((nC)^3)", source="TE-NAS: Chen et al. 2021, 2102.11535", at="both")
def condition_number(evidence: Evidence) -> float:
    """Largest over smallest eigenvalue of the training block.

    Below the rounding of a float32 kernel the smallest is noise, so the ratio ends at 8.4e6.
    """
    smallest, largest = evidence.eigenvalues[[0, -1]]
    return largest / max(smallest, FLOAT32 * largest)


@register("kernel_trace", sign=-1, cost="O(nC)", source="NASI: Shu et al. 2022, 2109.00817", at="both")
def kernel_trace(evidence: Evidence) -> float:
    """Trace of K over the training set, *not* normalised: the scale is all that a trace says.

    The sign is NASI's, which takes a large trace for a fast learner. The baseline `mean_kernel` has the opposite one:
    products blow K(x, x) up. One of the two must lose.
    """
    return np.trace(evidence.matrix) * evidence.scale


@register("effective_rank", sign=+1, cost="O((nC)^2)", source="R_0 of Bartlett et al. 2020, 1906.11300", at="both")
def effective_rank(evidence: Evidence) -> float:
    """(tr K)^2/tr K^2, between 1 and n C.

    Sign: without label noise, a kernel that spreads its power over more modes learns less of each from n samples.
    """
    return np.trace(evidence.matrix) ** 2 / np.sum(evidence.matrix**2)


@register(
    "effective_dimension",
    sign=+1,
    cost="O((nC)^3)",
    source="N(delta) of Caponnetto & De Vito 2007",
    at="both",
)
def effective_dimension(evidence: Evidence) -> float:
    """Trace of K Q, the degrees of freedom of the fit: what its variance is proportional to."""
    return evidence.targets.size - evidence.ridge * np.trace(evidence.inverse)


def _decay(values: np.ndarray) -> float:
    """Exponent a of values_i ~ i^-a, by least squares in logarithms on the middle ranks: from 1/50 to 1/4 of all.

    Smaller ranks are few and particular to the data; at larger ones a finite pool bends the spectrum down. Ranks are
    taken geometrically, so that each part of the logarithmic axis counts the same.
    """
    low, high = max(1, values.size // 50), max(3, values.size // 4)
    ranks = np.unique(np.geomspace(low, high, 50).round().astype(int))
    return -np.polyfit(np.log(ranks), np.log(values[ranks - 1]), 1)[0]


@register(
    "capacity_exponent",
    sign=-1,
    cost="O((MC)^3)",
    source="Caponnetto & De Vito 2007; alpha of Cui et al. 2021, 2105.15004",
    at="both",
)
def capacity_exponent(evidence: Evidence) -> float:
    """Exponent at which the pool's eigenvalues fall with their rank.

    Sign: fast decay leaves fewer modes to share n samples.
    """
    return _decay(evidence.pool_modes[0])


@register(
    "source_exponent",
    sign=-1,
    cost="O((MC)^3)",
    source="Caponnetto & De Vito 2007; Cui et al. 2021, 2105.15004",
    at="both",
)
def source_exponent(evidence: Evidence) -> float:
    """Exponent at which the target's power beyond a rank falls with that rank.

    Sign: the power beyond rank n is what n samples can't learn.
    """
    power = evidence.pool_modes[1] ** 2
    return _decay(np.cumsum(power[::-1])[::-1])
