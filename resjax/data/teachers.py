"""Synthetic sets whose target has a known degree: `cube<d>_degree<k>`, the parity of k coordinates on {-1, 1}^d.

All 2^d points as "images" of d pixels, 0 or 255, which normalisation turns into -1 and 1. The label is 1 where the
product of the first k coordinates is 1, so that the target +-1 is a monomial of degree k: an eigenfunction of every
kernel that depends on the angle between inputs alone. A fixed random quarter of the points is the test set.

The regression task of the same name (`resjax.regression.tasks`) has this target too, but real values and no classes,
and it draws coordinates, training and test points by a seed.
"""

import re

import numpy as np

from resjax.config import ConfigError
from resjax.data import subsets
from resjax.data.cache import Source
from resjax.theory import targets

_NAME = re.compile(r"cube(\d{1,9})_degree(\d{1,9})")  # int() reads no more than 4300 digits
_TEST = 0.25
_SPLIT_SEED = 0  # a constant of the data set
# Of the whole cube: the pixels of a random part would be a little off 0 and 1.
MEAN_C = STD_C = np.array([0.5], np.float32)


def is_teacher(name: str) -> bool:
    """Whether `name` asks for a set of this module."""
    return bool(_NAME.fullmatch(name))


def load(name: str) -> Source:
    """Points uint8 [N, d, 1, 1] and labels of the train and test splits. Raises ConfigError."""
    d, degree = (int(number) for number in _NAME.fullmatch(name).groups())
    if not (2 <= d <= 16 and 1 <= degree <= d):
        raise ConfigError(f"config.dataset.name={name!r}: want 2 to 16 dimensions and a degree of 1 to the dimension")
    x_NxD = targets.cube(d)
    images_NxDx1x1 = np.where(x_NxD > 0, 255, 0).astype(np.uint8)[:, :, None, None]
    labels_N = (targets.parity(x_NxD, range(degree)) > 0).astype(np.int32)
    train, test = subsets.hold_out(labels_N, _TEST, _SPLIT_SEED)
    return {
        split: {"image": images_NxDx1x1[i], "label": labels_N[i]} for split, i in (("train", train), ("test", test))
    }
