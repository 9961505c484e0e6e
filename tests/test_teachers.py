"""Parities on the cube as data sets."""

import numpy as np
import pytest

from resjax import config as base
from resjax.config import ConfigError
from resjax.data import batches, dataset, teachers
from resjax.models import build


def load(name, **values):
    config = base.base().dataset
    config.update({"name": name} | values)
    return dataset.load(config)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_labels_are_the_parity_of_the_first_coordinates(degree):
    data = load(f"cube10_degree{degree}")
    splits = (data.train, data.test)
    assert [len(split.labels_N) for split in splits] == [768, 256] and data.num_classes == 2
    points = np.concatenate([split.images_NxHxWxC for split in splits])
    assert points.shape == (1024, 10, 1, 1) and len({p.tobytes() for p in points}) == 1024
    for split in splits:
        x = np.asarray(batches.normalize(split.images_NxHxWxC, data.mean_C, data.std_C))[:, :, 0, 0]
        np.testing.assert_array_equal(np.abs(x), 1)  # exactly: theory is about this cube
        np.testing.assert_array_equal(2 * split.labels_N - 1, x[:, :degree].prod(1))
        assert np.abs(np.bincount(split.labels_N) / len(x) - 0.5).max() < 0.01


def test_subsets_and_validation_work_as_for_images():
    small, large = (load("cube8_degree2", train_size=n, validation=0.25) for n in (16, 64))
    np.testing.assert_array_equal(small.train.images_NxHxWxC, large.train.images_NxHxWxC[:16])
    assert len(large.validation.labels_N) == 48


@pytest.mark.parametrize(
    "name", ["cube1_degree1", "cube10_degree11", "cube17_degree2", "cube10_degree0", "cube999999999_degree1"]
)
def test_impossible_cubes_are_refused(name):
    with pytest.raises(ConfigError, match="2 to 16 dimensions"):
        load(name)


def test_a_number_that_python_does_not_read_makes_no_cube():
    assert not teachers.is_teacher(f"cube{5000 * '1'}_degree1")


def test_the_preset_makes_an_mlp_of_it():
    config = base.with_preset(base.base(), "cube_degree3")
    base.check(config)
    net = build.build(config.model, 2)
    assert net.vectors and config.dataset.augment == "none" and config.dataset.crop_padding == 0
