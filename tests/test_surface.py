"""The learned function: exact readings of nets whose function is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resjax import config as config_lib
from resjax.analysis.surface_tables import effective_degree
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.probes import planes
from resjax.probes.degree import chebyshev_energy, chebyshev_nodes, degree, fourier_energy, on_circle
from resjax.probes.features import dimension, features, intrinsic_dimension
from resjax.probes.function import Function, groups
from resjax.probes.lines import lines, mixing
from resjax.probes.outputs import outputs
from resjax.probes.subject import Subject
from resjax.probes.surface import corners, plane, smoothness
from resjax.training.step import LOSSES

SHAPE = (2, 3, 1)


class Known(nn.Module):
    """Logits (h, -h) of a function h of one number per image, the mean of its pixels."""

    h: callable

    def __call__(self, x, train=False):
        value = self.h(jnp.mean(x, range(1, x.ndim)))
        return jnp.stack([value, -value], 1)


def subject(net, variables=None, images=8, classes=2):
    x = jax.random.normal(jax.random.key(0), (images, *SHAPE))
    targets = jax.nn.one_hot(jnp.arange(images) % classes, classes)
    return Subject(net, variables or {}, x, targets, LOSSES["ce"], jax.random.key(1))


def linear(u):
    return u


def cubic(u):
    return 1 - 2 * u + u**3


def square(u):
    return u**2


def sigmoid_logit(u):
    """The logit whose probability is linear in u."""
    p = 0.5 + u / 8
    return jnp.log(p / (1 - p)) / 2


def ends(at):
    """Means of the pixels at the ends of each line."""
    a, b = groups(np.asarray(at.targets_BxK).argmax(1), 64, 2).T
    means = np.asarray(at.x_BxHxWxC, float).mean((1, 2, 3))
    return means[a], means[b]


def test_groups_have_different_classes_and_are_the_same_for_every_net():
    labels = np.arange(30) % 4
    found = groups(labels, 50, 3)
    assert all(len(set(labels[three])) == 3 for three in found)
    np.testing.assert_array_equal(found, groups(labels, 50, 3))
    np.testing.assert_array_equal(np.unique(found), np.arange(30))  # every image has its turn
    assert all(len(set(three)) == 3 for three in groups(np.zeros(5, int), 4, 3))  # of one class: different images


def test_a_function_has_no_common_logit_and_unit_scale():
    at = subject(Known(cubic))
    function = Function.of(at)
    g = function.g(at.x_BxHxWxC)
    assert np.sqrt(np.mean(g**2)) == pytest.approx(1, rel=1e-6) and g.mean(1) == pytest.approx(0, abs=1e-6)
    means = np.asarray(at.x_BxHxWxC, float).mean((1, 2, 3))
    np.testing.assert_allclose(g[:, 0] * function.scale, cubic(means), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(function.p(at.x_BxHxWxC[None])[0, :, 0], jax.nn.sigmoid(2 * cubic(means)), rtol=1e-5)


def test_curvature_of_polynomials_is_their_second_derivative():
    at = subject(Known(cubic))
    a, b = ends(at)
    t = np.linspace(0, 1, 65)[1:-1]
    second = 6 * (a[:, None] + t * (b - a)[:, None]) * (b - a)[:, None] ** 2
    want = np.abs(second).mean(1) * np.sqrt(2) / Function.of(at).scale
    np.testing.assert_allclose(lines(at)["curvature"], want, rtol=2e-3, atol=5e-3)
    assert lines(subject(Known(linear)))["curvature"].max() < 5e-3


def test_regions_thirds_and_ways_back_of_known_functions():
    at = subject(Known(linear))
    a, b = ends(at)
    found = lines(at)
    np.testing.assert_array_equal(found["regions"], 1 + (np.sign(a) != np.sign(b)))
    assert found["back"].max() < 1e-5 and found["third"].max() == 0  # monotone; two classes have no third
    curved = lines(subject(Known(square)))
    low = np.where(np.sign(a) != np.sign(b), 0, np.minimum(np.abs(a), np.abs(b)))
    p = {name: jax.nn.sigmoid(2 * value) for name, value in {"a": a**2, "b": b**2, "low": low**2}.items()}
    way = p["a"] + p["b"] - 2 * p["low"]
    np.testing.assert_allclose(curved["back"], (way - np.abs(p["a"] - p["b"])) / (2 * way), atol=2e-3)
    assert (curved["regions"] == 1).all()


class Thirds(nn.Module):
    """Class 0, 1 or 2 where the first pixel is below 0, between 0 and 1, or above."""

    def __call__(self, x, train=False):
        u = x[:, 0, 0, 0]
        return jnp.stack([-u * 9, 2 - jnp.abs(u - 0.5) * 4, (u - 1) * 9], 1)


def test_a_class_of_neither_end_is_a_third():
    x = jnp.zeros((2, *SHAPE)).at[:, 0, 0, 0].set(jnp.array([-4.0, 4.0]))
    at = Subject(Thirds(), {}, x, jnp.eye(3)[jnp.array([0, 2])], LOSSES["ce"], jax.random.key(0))
    found = lines(at, count=2, points=401)
    assert (found["regions"] == 3).all()
    between = (np.linspace(-4, 4, 401) > 0) & (np.linspace(-4, 4, 401) < 1)
    assert found["third"].to_numpy() == pytest.approx(between.mean(), abs=0.005 + 1 / 401 * 20)


def test_mixtures_of_linear_probabilities_have_no_gap():
    assert mixing(subject(Known(sigmoid_logit)))["gap"].max() < 1e-6
    at = subject(Known(linear))
    found = mixing(at, count=64).set_index("mix")["gap"]
    a, b = ends(at)
    p = [jax.nn.sigmoid(2 * (a + t * (b - a))) for t in (0, 0.5, 1)]
    assert found[0.5] == pytest.approx(np.abs(p[1] - (p[0] + p[2]) / 2).mean(), abs=1e-6)
    assert found[0] == found[1] == 0


def test_energy_of_polynomials_is_that_of_their_chebyshev_coefficients():
    f = np.polynomial.chebyshev.chebval(chebyshev_nodes(16), [5.0, 3.0, 0.0, 4.0])  # the constant counts nothing
    want = np.zeros(15)
    want[[0, 2]] = 9 / 25, 16 / 25
    np.testing.assert_allclose(chebyshev_energy(np.stack([f, -2 * f])), want, atol=1e-14)


def test_energy_on_a_circle_is_that_of_the_fourier_coefficients():
    angle = 2 * np.pi * np.arange(16) / 16
    f = 7 + 3 * np.cos(2 * angle - 1) + 4 * np.sin(7 * angle)
    want = np.zeros(7)
    want[[1, 6]] = 9 / 25, 16 / 25
    np.testing.assert_allclose(fourier_energy(f[None]), want, atol=1e-14)


@pytest.mark.parametrize(("h", "highest"), [(linear, 1), (square, 2), (cubic, 3)])
def test_a_polynomial_has_its_degree_on_lines_and_on_circles(h, highest):
    assert_degree(degree(subject(Known(h)), count=8, nodes=16), highest)


@pytest.mark.parametrize(("merge", "blocks", "highest"), [("add", 3, 1), ("mul", 1, 2), ("mul", 2, 4), ("mul", 3, 8)])
def test_a_product_net_of_linear_blocks_has_degree_two_to_the_blocks(merge, blocks, highest):
    c = config_lib.base()
    c.model.update(name="mlp", merge=merge, depth=2 + 2 * blocks, width=8, norm="none", activation="none")
    net = build(c.model, 2)
    at = subject(net, net.init(jax.random.key(0), jnp.zeros((1, *SHAPE))))
    assert_degree(degree(at, count=8, nodes=32), highest)


def assert_degree(found, highest):
    for _, rows in found.groupby("path"):
        energy = rows.set_index("k")["energy"]
        assert energy.sum() == pytest.approx(1)
        assert energy[energy.index > highest].sum() < 1e-11 < 1e-9 < energy[highest]
        assert list(effective_degree(rows.assign(cell="a net", seed=0), 1 - 1e-10)) == [highest]


def test_the_circle_passes_through_its_three_images():
    three = np.random.default_rng(0).normal(size=(3, *SHAPE))
    around = on_circle(three, 20000)
    distance = np.linalg.norm((around[:, None] - three).reshape(20000, 3, -1), axis=-1)
    assert distance.min(0).max() < 1e-3
    centre = around.mean(0)
    np.testing.assert_allclose(np.linalg.norm((around - centre).reshape(20000, -1), axis=1).std(), 0, atol=1e-5)


def test_distances_on_a_plane_are_those_of_the_images():
    three = np.random.default_rng(0).normal(size=(3, *SHAPE))
    found = planes.through(three)
    np.testing.assert_allclose(found.images(found.corners_3x2), three, atol=1e-6)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        want = np.linalg.norm(three[i] - three[j])
        assert np.linalg.norm(found.corners_3x2[i] - found.corners_3x2[j]) == pytest.approx(want)
    grid = found.grid(5, 0.25)
    assert grid.shape == (5, 5, 2) and np.ptp(grid[..., 0]) == pytest.approx(np.ptp(grid[..., 1]))
    low, high = found.corners_3x2.min(0), found.corners_3x2.max(0)
    assert (grid.min((0, 1)) < low).all() and (grid.max((0, 1)) > high).all()
    with pytest.raises(ConfigError, match="lie on a line"):
        planes.through(np.stack([three[0], three[1], (three[0] + three[1]) / 2]))


def test_the_plane_shows_the_nets_classes():
    at = subject(Known(linear))
    found = plane(at, points=7)
    origin, second, _ = np.asarray(at.x_BxHxWxC, float)[corners(np.asarray(at.targets_BxK).argmax(1))]
    assert len(found) == 49 and set(found["label"]) <= {0, 1} and found["margin"].between(0, 1).all()
    there = planes.through(np.asarray(at.x_BxHxWxC)[corners(np.arange(8) % 2)]).images(found[["x", "y"]].to_numpy())
    np.testing.assert_array_equal(found["label"], (there.mean((1, 2, 3)) < 0).astype(int))
    np.testing.assert_allclose(found["margin"], np.abs(np.tanh(there.mean((1, 2, 3)))), atol=1e-5)


def test_jacobians_are_those_of_the_function():
    at = subject(Known(cubic))
    means = np.asarray(at.x_BxHxWxC, float).mean((1, 2, 3))
    slope = np.abs(3 * means**2 - 2) / np.sqrt(at.x_BxHxWxC[0].size)
    p = jax.nn.sigmoid(2 * cubic(means))
    found = smoothness(at)
    np.testing.assert_allclose(found["jacobian_logits"], np.sqrt(2) * slope / Function.of(at).scale, rtol=1e-4)
    np.testing.assert_allclose(found["jacobian"], np.sqrt(2) * 2 * p * (1 - p) * slope, rtol=1e-4, atol=1e-7)


def test_jacobians_of_a_net_are_those_of_jacrev():
    c = config_lib.base()
    c.model.update(name="mlp", merge="mul_bn1", depth=4, width=6)
    net = build(c.model, 3)
    at = subject(net, net.init(jax.random.key(0), jnp.zeros((1, *SHAPE))), images=4, classes=3)
    jacobian = jax.jacrev(lambda x: jax.nn.softmax(net.apply(at.variables, x[None])[0]))
    want = [np.linalg.norm(jacobian(x)) for x in at.x_BxHxWxC]
    np.testing.assert_allclose(smoothness(at)["jacobian"], want, rtol=1e-4)


def test_the_dimension_is_that_of_the_subspace():
    rng = np.random.default_rng(0)
    for dimensions in (1, 2, 5):
        points = rng.random((2000, dimensions)) @ rng.normal(size=(dimensions, 20))
        assert intrinsic_dimension(points, 10) == pytest.approx(dimensions, rel=0.12)
    few = rng.normal(size=(12, 3))
    distances = np.sort(np.linalg.norm(few[:, None] - few, axis=-1), axis=1)[:, 1:4]
    want = 1 / np.mean(np.log(distances[:, -1:] / distances[:, :-1]))
    assert intrinsic_dimension(few, 3) == pytest.approx(want)
    assert intrinsic_dimension(1000 * few, 3) == pytest.approx(want)  # of no unit
    assert np.isnan(intrinsic_dimension(np.zeros((12, 3)), 3))
    with pytest.raises(ConfigError, match="more than 10"):
        intrinsic_dimension(np.zeros((10, 3)), 10)


def test_features_are_what_the_head_reads():
    c = config_lib.base()
    c.model.update(name="mlp", merge="add", depth=4, width=6)
    net = build(c.model, 2)
    at = subject(net, net.init(jax.random.key(0), jnp.zeros((1, *SHAPE))), images=12)
    read = np.asarray(features(net, at.variables, at.x_BxHxWxC))
    kernel, bias = (np.asarray(at.variables["params"]["head"][name]) for name in ("kernel", "bias"))
    np.testing.assert_allclose(read @ kernel + bias, net.apply(at.variables, at.x_BxHxWxC), atol=1e-5)
    found = dimension(at, neighbours=3)
    assert found.loc[0, "features"] == pytest.approx(intrinsic_dimension(read, 3))
    with pytest.raises(ConfigError, match="head"):
        dimension(subject(Known(linear), images=12))


def test_outputs_of_mixes_and_noise_are_the_same_for_every_net():
    at, other = subject(Known(linear)), subject(Known(square))._replace(key=jax.random.key(7))
    a, b = groups(np.arange(8) % 2, 8, 2).T
    middle = np.asarray(at.x_BxHxWxC, float).mean((1, 2, 3))[[a, b]].mean(0)
    np.testing.assert_allclose(outputs(at, inputs="mixes")["p0"], jax.nn.sigmoid(2 * middle), rtol=1e-5)
    np.testing.assert_allclose(outputs(other, inputs="mixes")["p0"], jax.nn.sigmoid(2 * middle**2), rtol=1e-5)
    noise = [np.asarray(outputs(one, inputs="noise")["p0"], float) for one in (at, other)]
    u = np.log(noise[0] / (1 - noise[0])) / 2
    np.testing.assert_allclose(noise[1], jax.nn.sigmoid(2 * u**2), rtol=1e-4)
    assert "margin" not in outputs(at, inputs="noise")
    with pytest.raises(ConfigError, match="choose from data, mixes, noise"):
        outputs(at, inputs="dreams")
