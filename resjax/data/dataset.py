"""From `config.dataset` to the arrays of a run. NumPy only: the training loop moves them to the device."""

import hashlib
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from resjax.config import ConfigError
from resjax.data import digits, subsets, teachers, tfds


@dataclass(frozen=True)
class Split:
    """Images uint8 NxHxWxC and their labels int32 N, in 0..num_classes-1."""

    images_NxHxWxC: np.ndarray
    labels_N: np.ndarray

    def take(self, index: np.ndarray) -> "Split":
        """The examples at `index`, in its order."""
        return Split(self.images_NxHxWxC[index], self.labels_N[index])


@dataclass(frozen=True)
class Dataset:
    """The splits of one run. mean_C and std_C are of pixels in [0, 1], float32."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    mean_C: np.ndarray
    std_C: np.ndarray


def digest(dataset: Dataset) -> str:
    """16 hex digits that change with any image or label of any split, or with their order."""
    found = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        for array in (split.images_NxHxWxC, split.labels_N) if split else ():
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array))
    return found.hexdigest()[:16]


def load(config: ConfigDict) -> Dataset:
    """Loads the set that `config` (the `dataset` section) describes.

    Order: label feature, classes, validation split, training subset, label noise. So the test set depends on
    the first two alone, the validation split not on train_size, and a smaller training set is a prefix of a
    larger one. Mean and standard deviation are of all training images of the source: no subset moves them.

    Raises:
      ConfigError: the set can't be read, or has fewer classes or images than the config asks for.
    """
    if teachers.is_teacher(config.name):
        source, mean_C, std_C = teachers.load(config.name), teachers.MEAN_C, teachers.STD_C
    else:
        is_digits = config.name == "digits"
        source = digits.load() if is_digits else tfds.load(config.name, config.data_dir, config.cache_dir)
        mean_C, std_C = pixel_statistics(source["train"]["image"])
    train, test = (Split(source[s]["image"], _labels(source[s], config)) for s in ("train", "test"))
    classes_K = _classes(np.union1d(train.labels_N, test.labels_N), config)
    train, validation = _hold_out(_of_classes(train, classes_K), config)
    return Dataset(
        name=config.name,
        train=_training_subset(train, len(classes_K), config),
        validation=validation,
        test=_of_classes(test, classes_K),
        num_classes=len(classes_K),
        mean_C=mean_C,
        std_C=std_C,
    )


def pixel_statistics(images_NxHxWxC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel (float32, C) of uint8 images scaled to [0, 1].

    Sums are exact, in integers: a float copy of CIFAR would take 1.2 GB. A constant channel gets std 1, so
    that normalising never divides by zero.
    """
    pixels_PxC = images_NxHxWxC.reshape(-1, images_NxHxWxC.shape[-1])
    sum_C, squares_C = (
        np.einsum(formula, *[pixels_PxC] * terms, dtype=np.int64, casting="unsafe")
        for formula, terms in (("pc->c", 1), ("pc,pc->c", 2))
    )
    mean_C = sum_C / len(pixels_PxC)
    std_C = np.sqrt(np.maximum(squares_C / len(pixels_PxC) - mean_C**2, 0))
    return (mean_C / 255).astype(np.float32), np.where(std_C > 0, std_C / 255, 1).astype(np.float32)


def _labels(features: dict[str, np.ndarray], config: ConfigDict) -> np.ndarray:
    if config.labels not in features:
        known = ", ".join(sorted(set(features) - {"image"}))
        raise ConfigError(f"config.dataset.labels={config.labels!r}: {config.name} has {known}")
    labels_N = features[config.labels]
    if labels_N.min() < 0:
        raise ConfigError(f"config.dataset.name={config.name!r}: it has images without a label")
    return labels_N


def _classes(available_K: np.ndarray, config: ConfigDict) -> np.ndarray:
    if config.classes > len(available_K):
        known = len(available_K)
        raise ConfigError(f"config.dataset.classes={config.classes}: {config.name} has {known}; 0 takes all")
    if len(available_K) < 2:
        raise ConfigError(f"config.dataset.name={config.name!r}: all its images are of one class")
    return subsets.choose_classes(available_K, config.classes, config.split_seed)


def _of_classes(split: Split, classes_K: np.ndarray) -> Split:
    """The examples of these (sorted) classes, relabelled 0..k-1."""
    kept = split.take(np.flatnonzero(np.isin(split.labels_N, classes_K)))
    return Split(kept.images_NxHxWxC, np.searchsorted(classes_K, kept.labels_N).astype(np.int32))


def _hold_out(train: Split, config: ConfigDict) -> tuple[Split, Split | None]:
    if not config.validation:
        return train, None
    kept, held = subsets.hold_out(train.labels_N, config.validation, config.split_seed)
    if not (len(kept) and len(held)):
        raise ConfigError(
            f"config.dataset.validation={config.validation}: leaves {len(kept)} images to train and "
            f"{len(held)} to validate; both need some"
        )
    return train.take(kept), train.take(held)


def _training_subset(train: Split, num_classes: int, config: ConfigDict) -> Split:
    """Always in the balanced order, all of it too: label noise then nearly agrees between sizes (subsets)."""
    available = len(train.labels_N)
    if config.train_size > available:
        raise ConfigError(
            f"config.dataset.train_size={config.train_size}: {config.name} has {available} training images "
            "with these classes and this validation split; 0 takes all"
        )
    order = subsets.balanced_order(train.labels_N, config.split_seed)
    subset = train.take(order[: config.train_size or None])
    noisy_N = subsets.with_label_noise(subset.labels_N, config.label_noise, num_classes, config.split_seed)
    return Split(subset.images_NxHxWxC, noisy_N)
