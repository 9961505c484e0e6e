"""Which examples a run sees: pure NumPy functions of (labels, seed). Labels are 0..k-1.

Every choice has its own random stream: changing one (the validation share, say) leaves the others alone.
"""

import numpy as np


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose."""
    return np.random.default_rng([seed, *purpose.encode()])


def _shuffled_by_class(labels_N: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices grouped by class, in random order within it, and each one's rank within its class."""
    index_N = rng.permutation(len(labels_N))
    index_N = index_N[np.argsort(labels_N[index_N], kind="stable")]
    count_K = np.bincount(labels_N)
    rank_N = np.arange(len(labels_N)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
    return index_N, rank_N


def balanced_order(labels_N: np.ndarray, seed: int) -> np.ndarray:
    """Round-robin over the classes: the first n indices are the training set of size n.

    Prefixes are nested by construction. Class counts in a prefix differ by at most one until a class runs
    out, so small subsets of an unbalanced set are balanced.

    Returns:
      A permutation of range(N).
    """
    rng = stream(seed, "order")
    index_N, rank_N = _shuffled_by_class(labels_N, rng)
    turn_K = rng.permutation(labels_N.max(initial=0) + 1)  # a prefix shorter than k has random classes
    return index_N[np.lexsort((turn_K[labels_N[index_N]], rank_N))]


def hold_out(labels_N: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits off exactly round(share * N) examples, each class in proportion (largest remainders).

    Returns:
      (kept, held out): two sorted, disjoint index arrays that cover range(N).
    """
    index_N, rank_N = _shuffled_by_class(labels_N, stream(seed, "hold_out"))
    exact_K = share * np.bincount(labels_N)
    quota_K = np.floor(exact_K).astype(int)
    missing = round(share * len(labels_N)) - quota_K.sum()
    quota_K[np.argsort(quota_K - exact_K, kind="stable")[:missing]] += 1
    held_N = rank_N < quota_K[labels_N[index_N]]
    return np.sort(index_N[~held_N]), np.sort(index_N[held_N])


def choose_classes(available_K: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the labels `available_K`, sorted; fewer are a subset of more. 0 keeps all."""
    return np.sort(stream(seed, "classes").permutation(available_K)[: count or None])


def with_label_noise(labels_N: np.ndarray, share: float, num_classes: int, seed: int) -> np.ndarray:
    """Redraws exactly round(share * N) labels uniformly over all classes, the true one included.

    An example's score and its new label depend on its position alone: a larger share corrupts a superset,
    and a longer training set keeps the new labels of its prefix, save where the threshold moves.
    """
    score_N = stream(seed, "noisy").random(len(labels_N))
    redrawn_N = stream(seed, "redrawn").integers(num_classes, size=len(labels_N))
    chosen = np.argsort(score_N, kind="stable")[: round(share * len(labels_N))]
    noisy_N = labels_N.copy()
    noisy_N[chosen] = redrawn_N[chosen]
    return noisy_N
