"""What a run reports in the end: scores per replica, and their mean and interval over replicas."""

import numpy as np

from resjax import stats


def scores(labels_N: np.ndarray, predictions_N: np.ndarray) -> dict[str, float]:
    """Overall accuracy, average accuracy (mean recall of the classes present) and Cohen's kappa, as in scikit-learn."""
    from sklearn import metrics  # a second to import

    return {
        "OA": metrics.accuracy_score(labels_N, predictions_N),
        "AA": metrics.recall_score(labels_N, predictions_N, labels=np.unique(labels_N), average="macro"),
        "kappa": metrics.cohen_kappa_score(labels_N, predictions_N),
    }


def over_replicas(per_seed: list[dict]) -> dict[str, dict]:
    """Mean, std and 95 % CI of every score, over the replicas that did not diverge."""
    kept = [row for row in per_seed if row["status"] != "diverged"]
    out = {}
    for name in [key for key in per_seed[0] if key not in ("seed", "status", "epoch")]:
        values = [row[name] for row in kept if row[name] is not None]
        if values:
            out[name] = stats.mean_ci(values)
    return out
