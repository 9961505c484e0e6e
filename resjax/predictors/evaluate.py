"""Numbers that may tell, without the test set, which net generalises: the registry, its evaluation, plain baselines.

    evidence = Evidence(apply_fn, params, initial_params, x, labels, n, kernel, flops)
    evaluate(evidence, "init")  # {"leave_one_out": 0.41, ...}

`PREDICTORS` maps each name to its function, sign, cost and source. Of the kernel: `kernel`; of the net:
`net`; the zero-cost proxies of architecture search: `zero_cost`. Importing this module registers all.
To add one, decorate a function of `Evidence` with `register`.
"""

import numpy as np
from scipy.sparse.linalg import ArpackError

from resjax.config import ConfigError
from resjax.predictors import kernel, net, zero_cost  # noqa: F401 (they register)
from resjax.predictors.evidence import Evidence
from resjax.predictors.registry import PREDICTORS, Predictor, register

__all__ = ["PREDICTORS", "Evidence", "Predictor", "evaluate", "register"]


def evaluate(evidence: Evidence, at: str) -> dict[str, float]:
    """The value of every predictor that is defined `at` this moment, by name.

    What is shared is computed once per `evidence`, so evaluate one net at a time and let it go.

    Args:
      evidence: of the net at that moment.
      at: "init" or "trained".

    Returns:
      name -> value. nan: it has none here, for numerical reasons; infinite: beyond what floats hold (SynFlow).

    Raises:
      ConfigError: `at` is neither.
    """
    if at not in ("init", "trained"):
        raise ConfigError(f"at={at!r}: predictors are evaluated at 'init' or 'trained'")
    with np.errstate(all="ignore"):
        return {name: _value(p, evidence) for name, p in PREDICTORS.items() if p.at in (at, "both")}


def _value(predictor: Predictor, evidence: Evidence) -> float:
    try:
        return float(predictor.function(evidence))
    except (ArithmeticError, ArpackError, ConfigError, np.linalg.LinAlgError):  # of numbers; bugs pass
        return np.nan


# --- Plain baselines: what any predictor must beat (Jiang et al. 2020; Li et al. 2023 for the first) ----------------
@register("parameters", sign=-1, cost="O(1)", source="count", at="init", baseline=True)
def parameters(evidence: Evidence) -> float:
    """Number of parameters."""
    return evidence.weights_P.size


@register("flops", sign=-1, cost="O(1)", source="count", at="init", baseline=True)
def flops(evidence: Evidence) -> float:
    """Floating-point operations of one example's forward pass."""
    return evidence.flops


@register("training_loss", sign=+1, cost="1 pass", source="-", at="trained", baseline=True)
def training_loss(evidence: Evidence) -> float:
    """Mean cross-entropy over the training set, in nats, with frozen statistics."""
    return evidence.per_sample.losses.mean()


@register("lambda_max", sign=+1, cost="O((nC)^3)", source="-", at="both", baseline=True)
def lambda_max(evidence: Evidence) -> float:
    """Largest eigenvalue of the training block over n, in the kernel's own scale."""
    return evidence.eigenvalues[-1] * evidence.scale / evidence.n


@register("mean_kernel", sign=+1, cost="O(nC)", source="-", at="both", baseline=True)
def mean_kernel(evidence: Evidence) -> float:
    """Mean of K(x, x) over training samples and logits, in the kernel's own scale.

    `kernel_trace` divided by n C: this is the same number with the opposite sign (see there).
    """
    return np.diag(evidence.matrix).mean() * evidence.scale


@register("distance_from_init", sign=+1, cost="O(P)", source="-", at="trained", baseline=True)
def distance_from_init(evidence: Evidence) -> float:
    """Euclidean distance of all parameters from their initial values."""
    return np.linalg.norm(evidence.moved_P)
