"""The learned function: exact readings of nets whose function is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.surface.tables import effective_degree
from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.probes.functions import alignment as alignment_probe
from resjax.probes.functions import planes
from resjax.probes.functions.alignment import alignment
from resjax.probes.functions.degree import chebyshev_energy, chebyshev_nodes, degree, fourier_energy, on_circle
from resjax.probes.functions.features import dimension, features, intrinsic_dimension
from resjax.probes.functions.function import Function, groups, probabilities, sharpness
from resjax.probes.functions.lines import lines, mixing
from resjax.probes.functions.outputs import outputs
from resjax.probes.functions.surface import corners, plane, smoothness
from resjax.probes.subject import Subject
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


def tempered(at, h):
    """The probability of the first class, where logits are (h, -h)."""
    return jax.nn.sigmoid(2 * sharpness(2) * h / Function.of(at).scale)


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
    p = probabilities(function.g(at.x_BxHxWxC[None]))[0, :, 0]
    np.testing.assert_allclose(p, tempered(at, cubic(means)), rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_net_that_is_equally_sure_of_all_images_is_so_to_99_percent(classes):
    own = np.eye(classes)
    g = (own - own.mean()) / (own - own.mean()).std()
    np.testing.assert_allclose(np.diag(probabilities(g)), 0.99)


def test_a_net_that_is_only_surer_of_itself_reads_the_same():
    sure, unsure = subject(Known(cubic)), subject(Known(lambda u: cubic(u) / 9))
    for probe in (lines, mixing, smoothness, degree, plane):
        a, b = (np.asarray(probe(at).select_dtypes(float)) for at in (sure, unsure))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


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
    assert np.abs(found["back"]).max() < 1e-5 < found["way"].min()
    curved = lines(subject(Known(square)))
    low = np.where(np.sign(a) != np.sign(b), 0, np.minimum(np.abs(a), np.abs(b)))
    net = subject(Known(square))
    p = {name: np.asarray(tempered(net, h)) for name, h in {"a": a**2, "b": b**2, "low": low**2}.items()}
    way = 2 * (p["a"] + p["b"] - 2 * p["low"])  # of the first class's lead over the other
    np.testing.assert_allclose(curved["way"], way, atol=5e-3)
    np.testing.assert_allclose(curved["back"], (way - 2 * np.abs(p["a"] - p["b"])) / 2, atol=5e-3)
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
    assert (found["third"] > 0).all()
    class_M = np.asarray(Thirds()(jnp.asarray(np.linspace(-4, 4, 401))[:, None, None, None])).argmax(1)
    np.testing.assert_allclose(found["third"], (class_M == 1).mean())


def test_the_gap_is_the_distance_of_the_mixture_from_the_mix():
    at = subject(Known(linear))
    found = mixing(at, count=64).set_index("mix")["gap"]
    a, b = ends(at)
    p = [np.asarray(tempered(at, a + t * (b - a))) for t in (0, 0.5, 1)]
    assert found[0.5] == pytest.approx(np.abs(p[1] - (p[0] + p[2]) / 2).mean(), abs=1e-6)
    assert found[0] == pytest.approx(0, abs=1e-7) and found[1] == pytest.approx(0, abs=1e-7)


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
    lead = np.abs(2 * np.asarray(tempered(at, there.mean((1, 2, 3)))) - 1)
    np.testing.assert_allclose(found["margin"], lead, atol=1e-5)


def test_jacobians_are_those_of_the_function():
    at = subject(Known(cubic))
    means = np.asarray(at.x_BxHxWxC, float).mean((1, 2, 3))
    slope = np.abs(3 * means**2 - 2) / np.sqrt(at.x_BxHxWxC[0].size)
    p, factor = np.asarray(tempered(at, cubic(means))), sharpness(2) / Function.of(at).scale
    found = smoothness(at)
    np.testing.assert_allclose(found["jacobian_logits"], np.sqrt(2) * slope / Function.of(at).scale, rtol=1e-4)
    np.testing.assert_allclose(found["jacobian"], np.sqrt(2) * 2 * factor * p * (1 - p) * slope, rtol=1e-4, atol=1e-7)


def test_jacobians_of_a_net_are_those_of_jacrev():
    c = config_lib.base()
    c.model.update(name="mlp", merge="mul_bn1", depth=4, width=6)
    net = build(c.model, 3)
    at = subject(net, net.init(jax.random.key(0), jnp.zeros((1, *SHAPE))), images=4, classes=3)
    factor = sharpness(3) / Function.of(at).scale
    jacobian = jax.jacrev(lambda x: jax.nn.softmax(factor * net.apply(at.variables, x[None])[0]))
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
    points = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 64))
    once = intrinsic_dimension(points, 10)
    assert intrinsic_dimension(np.concatenate([points, points[:20]]), 10) == pytest.approx(once)
    nearly = np.concatenate([points, points[:20] + 1e-8 * rng.normal(size=(20, 64))])
    assert intrinsic_dimension(nearly, 10) == pytest.approx(once, rel=0.05)
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


def test_alignment_is_the_share_that_a_transformer_takes_back(monkeypatch):
    at = subject(Known(linear), {"params": {"transformer": {}}})
    monkeypatch.setattr(alignment_probe, "transformed", lambda x, matrix_2x3: matrix_2x3)

    def takes_back(name, share):
        def theta(net, variables, matrix_2x3):
            inverse = np.linalg.inv(np.vstack([matrix_2x3, [0, 0, 1]]))[:2]
            inverse[:, 2] /= np.array(SHAPE[:2]) / 2  # rows and columns in halves of the image
            return np.stack([share * inverse + (1 - share) * np.eye(2, 3)] * 8)

        monkeypatch.setattr(alignment_probe, "_theta", theta)
        return alignment(at).set_index("transformation").loc[name, "undone"]

    for name in ("rotation", "shift", "scale"):
        assert takes_back(name, 1) == pytest.approx(1) and takes_back(name, 0) == 0
    assert takes_back("shift", 0.5) == pytest.approx(0.5)


def test_a_transformer_that_never_looks_takes_nothing_back():
    c = config_lib.base()
    c.model.update(name="mlp", merge="add", depth=4, width=6, front="stn")
    net = build(c.model, 2)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    at = subject(net, variables)._replace(x_BxHxWxC=jax.random.normal(jax.random.key(0), (3, 4, 4, 1)))
    assert (alignment(at)["undone"] == 0).all()
    variables["params"]["transformer"]["theta"]["kernel"] += 0.3 * jax.random.normal(jax.random.key(2), (16, 6))
    assert (alignment(at)["undone"] != 0).all()
    with pytest.raises(ConfigError, match="stn"):
        alignment(subject(Known(linear), {"params": {}}))
