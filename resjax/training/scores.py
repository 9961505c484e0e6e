"""What a run reports in the end: scores per replica, and their mean and interval over replicas."""

import numpy as np

from resjax import stats

CALIBRATION_BINS = 15  # Guo et al. 2017


def scores(labels_N: np.ndarray, predictions_N: np.ndarray, confidences_N: np.ndarray) -> dict[str, float]:
    """Overall accuracy (OA), average accuracy (AA: mean recall of the classes present) and Cohen's kappa, as in
    scikit-learn, and the calibration error (ECE) of the predictions' probabilities.
    """
    from sklearn import metrics  # a second to import

    return {
        "OA": metrics.accuracy_score(labels_N, predictions_N),
        "AA": metrics.recall_score(labels_N, predictions_N, labels=np.unique(labels_N), average="macro"),
        "kappa": metrics.cohen_kappa_score(labels_N, predictions_N),
        "ECE": calibration_error(predictions_N == labels_N, confidences_N),
    }


def calibration_error(hits_N: np.ndarray, confidences_N: np.ndarray) -> float:
    """Expected calibration error: the mean over examples of |accuracy - mean confidence| of their bin of confidence.

    There are 15 bins of equal width, each with its upper end (Guo et al. 2017, 1706.04599, equation 3).
    """
    if not np.isfinite(confidences_N).all():  # of a replica that diverged
        return float("nan")
    bin_N = np.ceil(np.asarray(confidences_N, float) * CALIBRATION_BINS).clip(1, CALIBRATION_BINS)
    excess_N = np.asarray(hits_N, float) - confidences_N
    return float(sum(abs(excess_N[bin_N == number].sum()) for number in np.unique(bin_N)) / len(excess_N))


def over_replicas(per_seed: list[dict]) -> dict[str, dict]:
    """Mean, std and 95 % CI of every score, over the replicas that did not diverge."""
    kept = [row for row in per_seed if row["status"] != "diverged"]
    out = {}
    for name in [key for key in per_seed[0] if key not in ("seed", "status", "epoch")]:
        values = [row[name] for row in kept if row[name] is not None]
        if values:
            out[name] = stats.mean_ci(values)
    return out
