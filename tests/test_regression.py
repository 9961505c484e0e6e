"""Teachers of known degree: variance, degree, nesting, and what is refused."""

import numpy as np
import pytest

from resjax.config import ConfigError
from resjax.regression.tasks import draw, eigenfunctions, hermite_of_images

CONTINUOUS = ["sphere8_degree3", "gauss8_degree2", "relu8_width20"]


@pytest.mark.parametrize("name", ["cube10_degree3", *CONTINUOUS])
def test_targets_are_standardised_nested_and_tested_on_the_same_points(name):
    small, large = (draw(name, n, test=500, seed=1) for n in (100, 500))
    np.testing.assert_array_equal(small.x_NxD, large.x_NxD[:100])
    np.testing.assert_array_equal(small.y_N, large.y_N[:100])
    np.testing.assert_array_equal(small.test_x_MxD, large.test_x_MxD)
    together = {p.tobytes() for p in np.concatenate([large.x_NxD, large.test_x_MxD])}
    assert len(together) == 1000  # no test point was trained on
    noisy = draw(name, 500, test=500, seed=1, noise=0.5)
    np.testing.assert_array_equal(noisy.test_y_M, large.test_y_M)
    assert np.std(noisy.y_N - large.y_N) == pytest.approx(0.5, rel=0.1)
    assert np.any(draw(name, 100, test=500, seed=2).y_N != small.y_N)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_targets_have_unit_variance(name):
    y = draw(name, 60_000, test=1, seed=0).y_N
    assert abs(y.mean()) < 0.02 and np.mean(y**2) == pytest.approx(1, abs=0.06)


def test_a_parity_is_of_its_degree():
    data = draw("cube6_degree3", 40, test=24, seed=3)
    x, y = np.concatenate([data.x_NxD, data.test_x_MxD]), np.concatenate([data.y_N, data.test_y_M])
    np.testing.assert_array_equal(np.abs(y), 1)
    for degree in (1, 2, 4):
        subsets = [s for s in np.ndindex(*(2,) * 6) if sum(s) == degree]
        assert max(abs(np.mean(y * x[:, np.array(s, bool)].prod(1))) for s in subsets) == 0


def test_points_lie_on_their_domain():
    np.testing.assert_allclose(np.linalg.norm(draw("sphere8_degree2", 50, test=9, seed=0).x_NxD, axis=1), np.sqrt(8))
    assert set(np.unique(draw("cube5_degree2", 20, test=9, seed=0).x_NxD)) == {-1, 1}


def test_a_relu_teacher_is_piecewise_linear():
    y = draw("relu8_width1", 20_000, test=1, seed=5).y_N
    off = np.isclose(y, np.median(np.round(y, 6)), atol=1e-6)  # the unit is not active
    assert np.mean(off) == pytest.approx(0.5, abs=0.02)


def test_hermite_features_of_images():
    x = np.random.default_rng(0).normal(size=(3000, 12)) * np.arange(1, 13)
    first, third = (hermite_of_images(x, degree, dimensions=4, features=10, seed=1) for degree in (1, 3))
    for y in (first, third):
        assert y.mean() == pytest.approx(0, abs=1e-12) and y.std() == pytest.approx(1)
    design = np.column_stack([np.ones(3000), x])
    explained = [np.linalg.norm(design @ np.linalg.lstsq(design, y)[0]) ** 2 / 3000 for y in (first, third)]
    assert explained[0] == pytest.approx(1) and explained[1] < 0.05
    with pytest.raises(ConfigError, match="the images span 12"):
        hermite_of_images(x, 2, dimensions=13, features=1, seed=0)


def test_eigenfunctions_by_rank():
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    kernel = (vectors * np.arange(20, 0, -1)) @ vectors.T
    got = eigenfunctions(kernel, [1, 5])
    np.testing.assert_allclose(np.abs(got.T @ vectors[:, [0, 4]]) / np.sqrt(20), np.eye(2), atol=1e-9)
    with pytest.raises(ConfigError, match="want 1 to 20"):
        eigenfunctions(kernel, [0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cube10", "no teacher"),
        ("relu8_degree3", "no teacher"),
        ("cube5_degree6", "a degree up to them"),
        ("cube21_degree2", "at most 20"),
        ("cube5_degree2", "of 32"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(name, words):
    with pytest.raises(ConfigError, match=words):
        draw(name, 30, test=3, seed=0)
