"""The embedded set: 1,797 handwritten digits of 8x8 pixels (Alpaydin & Kaynak 1998), from scikit-learn."""

import numpy as np
from sklearn import datasets

from resjax.data import subsets
from resjax.data.cache import Source

_TEST = 360  # a fifth
_SPLIT_SEED = 0  # a constant of the data set, as an official test set is: never taken from a config


def load() -> Source:
    """Images (8x8x1) and labels of the train and test splits.

    There is no official split; this one is stratified and fixed, 1437 to train and 360 to test. The grey
    levels 0..16 are scaled to 0..255 and rounded, which moves no pixel by more than 0.5/255.
    """
    bunch = datasets.load_digits()
    images_NxHxWxC = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels_N = bunch.target.astype(np.int32)
    train, test = subsets.hold_out(labels_N, _TEST / len(labels_N), _SPLIT_SEED)
    return {
        split: {"image": images_NxHxWxC[index], "label": labels_N[index]}
        for split, index in (("train", train), ("test", test))
    }
