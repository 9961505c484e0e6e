"""Sharpness on quadratic losses, whose maxima over a ball are known, and statistics of gradients by hand."""

import numpy as np
import pytest

from resjax.probes.loss import noise, sharpness

W = np.array([3.0, -1.0, 0.0])


def quadratic(center, curvatures):
    """The loss .5 sum a (c + d)^2 around w, and its gradient."""
    c, a = np.asarray(center, float), np.asarray(curvatures, float)
    return lambda d: (float(np.sum(a * (c + d) ** 2) / 2), a * (c + d))


@pytest.mark.parametrize(("steps", "stride"), [(1, 2.0), (3, 2.0), (4, 0.25), (8, 0.25)])
def test_box_finds_the_corner_of_a_separable_quadratic(steps, stride):
    c, a = np.array([0.5, -0.2, 0.1]), np.array([2.0, 1.0, 3.0])
    half = 0.01 * (np.abs(W) + 1)  # .04, .02, .01
    start, corner = np.sum(a * c**2) / 2, np.sum(a * (np.abs(c) + half) ** 2) / 2
    found = sharpness.box(quadratic(c, a), W, 0.01, steps=steps, stride=stride)
    assert found == pytest.approx(100 * (corner - start) / (1 + start))


def test_box_of_too_few_quarter_steps_is_a_lower_bound():
    slope = quadratic([0.5, -0.2, 0.1], [2.0, 1.0, 3.0])
    found = [sharpness.box(slope, W, 0.01, steps=steps, stride=0.25) for steps in range(6)]
    assert found[0] == 0 and found == sorted(found) and found[3] < found[4] == found[5]


@pytest.mark.parametrize("steps", [1, 4])
def test_ball_of_an_isotropic_quadratic(steps):
    c = np.array([0.3, 0.0, -0.4])
    found = sharpness.ball(quadratic(c, np.ones(3)), np.ones(3), 0.05, steps=steps)
    assert found == pytest.approx(((0.5 + 0.05) ** 2 - 0.5**2) / 2)


def test_ball_climbs_to_the_stiffest_direction():
    """In units of 2, 1, 1 the first direction has curvature 4: the ball's maximum lies there, at any distance of c."""
    c, unit = np.array([1e-3, 0.0, 0.0]), np.array([2.0, 1.0, 1.0])
    found = sharpness.ball(quadratic(c, np.ones(3)), unit, 0.5, steps=2)
    assert found == pytest.approx(((1e-3 + 2 * 0.5) ** 2 - 1e-6) / 2)


def test_steps_of_a_ball_rise_and_a_minimum_has_none():
    slope = quadratic([0.1, 0.1, 0.1], [1.0, 4.0, 9.0])
    found = [sharpness.ball(slope, np.ones(3), 0.5, steps=steps) for steps in (1, 2, 30)]
    top = 9 * 0.5**2 / 2  # of the stiffest direction alone; the centre adds to it
    assert found[0] < found[1] < found[2] and found[2] > top
    assert sharpness.ball(quadratic(np.zeros(3), np.ones(3)), np.ones(3), 0.5, steps=3) == 0


def test_noise_of_gradients_by_hand():
    mean, variance = np.array([1.0, 2.0, 5.0]), np.array([1.0, 2.0, 0.0])
    assert noise.gsnr(mean, variance) == pytest.approx((1 + 2) / 2)  # the third has no variance
    assert noise.noise_scale(mean, variance) == pytest.approx(3 / 30)
    assert noise.noise_scale(mean, variance, 3) == pytest.approx(3 / (30 - 1))
    assert noise.noise_scale(mean / 10, variance, 3) == np.inf
    assert np.isnan(noise.noise_scale(0 * mean, 0 * variance)) and np.isnan(noise.gsnr(mean, 0 * mean))
