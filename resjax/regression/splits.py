"""The tasks of the splits that `resjax.regression.ladder` is climbed on: points, and the values that are learned."""

import numpy as np
from ml_collections import ConfigDict

from resjax.config import ConfigError
from resjax.data import dataset, subsets
from resjax.ntk.infinite import merge_kernel
from resjax.regression import tasks as regression
from resjax.regression.fit import Fit
from resjax.regression.tasks import Regression, Target

TUNING_SEED = 5000  # offset of the splits on which R4 chooses its rate
TEACHER = 9  # the initialisation of a net that others learn from: not one of theirs


def task_of(config: ConfigDict, target: Target, test: int, split: int) -> Regression:
    """The task of a split; its targets are [n, C].

    Args:
      config: as in `resjax.regression.ladder.measure`.
      target: what is learned.
      test: test points.
      split: seed of points, teacher and noise.

    Raises:
      ConfigError: fewer points or images than asked for.
    """
    if not target.of_images:
        n = config.dataset.train_size + target.extra
        drawn = regression.draw(config.dataset.name, n, test=test, seed=split)
        y_NxC, test_y_MxC = drawn.y_N[:, None], drawn.test_y_M[:, None]
        if target.kind == "shuffled":
            y_NxC = subsets.stream(split, "shuffled").permutation(y_NxC)
        if target.merge:
            y_NxC = _learned(config, target.merge, drawn.x_NxD, y_NxC[: config.dataset.train_size], split)
        return drawn._replace(y_N=y_NxC, test_y_M=test_y_MxC)
    images = dataset.load(_whole(config.dataset))
    n = config.dataset.train_size
    index = _chosen(images.train.labels_N, n + test, split)
    x = images.train.images_NxHxWxC[index].reshape(n + test, -1) / 255.0
    x = x - np.mean(images.train.images_NxHxWxC, 0).ravel() / 255.0
    x = np.sqrt(x.shape[1]) * x / np.linalg.norm(x, axis=1, keepdims=True)
    y = _of_images(config, target, x, images.train.labels_N[index], images.num_classes, split)
    return Regression(x[:n], y[:n], x[n:], y[n:])


def _chosen(labels_M: np.ndarray, size: int, split: int) -> np.ndarray:
    """The images of a split, whose pool is not that of the splits on which R4 chooses its rate. Raises ConfigError."""
    if 2 * size > len(labels_M):
        raise ConfigError(f"{size} images of a split and as many to choose rates on: there are {len(labels_M)}")
    order = subsets.balanced_order(labels_M, 0)
    pool = order[-size:] if split >= TUNING_SEED else order[:-size]
    return pool[subsets.balanced_order(labels_M[pool], split)[:size]]


def _learned(config: ConfigDict, merge: str, x: np.ndarray, y_NxC: np.ndarray, split: int) -> np.ndarray:
    """What a net with this merge, trained on the first n points, says at all of them."""
    config = ConfigDict(config.to_dict())
    config.model.merge = merge
    n = len(y_NxC)
    return Fit(config, n, y_NxC.shape[1])(x[:n], y_NxC, x, replica_seed(split, TEACHER)).test


def _whole(section: ConfigDict) -> ConfigDict:
    """The config of the whole set: the split takes its own part."""
    section = ConfigDict(section.to_dict())
    section.train_size, section.validation = 0, 0.0
    return section


def _of_images(
    config: ConfigDict, target: Target, x: np.ndarray, labels_N: np.ndarray, K: int, split: int
) -> np.ndarray:
    if target.kind == "classes":
        return np.eye(K)[labels_N] - 1 / K
    if target.kind == "eigen":
        kernel = merge_kernel("add", blocks(config), norm=config.model.norm)
        return regression.eigenfunctions(kernel(cosines(x)), [target.number])
    return regression.hermite_of_images(x, target.number, dimensions=10, features=10, seed=split)[:, None]


def cosines(x_NxD: np.ndarray) -> np.ndarray:
    """Of the angles between inputs [N, N], exactly 1 on the diagonal."""
    unit = x_NxD / np.linalg.norm(x_NxD, axis=1, keepdims=True)
    r = np.clip(unit @ unit.T, -1, 1)
    np.fill_diagonal(r, 1.0)  # the kernel's slope is infinite there
    return r


def blocks(config: ConfigDict) -> int:
    """Of an mlp of the config's depth."""
    return (config.model.depth - 2) // 2


def replica_seed(split: int, init: int) -> int:
    """Of the weights and batches of a replica."""
    return 10_000 * init + split
