"""The gradients of single images, layers and merge points, against NumPy on a net whose gradients are known."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resjax import config
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.models.frozen import calibrated
from resjax.probes.loss.gradients import gradients
from resjax.probes.registry import PROBES
from resjax.probes.subject import Subject
from resjax.training.step import half_squared_error


class Merge(nn.Module):
    product: bool

    def __call__(self, s, f):
        return s * f if self.product else s + f


class OneBlock(nn.Module):
    """Logits head(x merged with x W): all gradients are known in closed form."""

    product: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        f = nn.Dense(x.shape[-1], use_bias=False, name="branch")(x)
        return nn.Dense(2, name="head")(Merge(self.product, name="merge")(x, f))


N, D = 12, 4


def subject(product=True, key=0, update=None):
    net, keys = OneBlock(product), jax.random.split(jax.random.key(key), 3)
    x = jax.random.normal(keys[0], (N, D))
    targets = jax.nn.one_hot(np.arange(N) % 2, 2)
    return Subject(net, net.init(keys[1], x), x, targets, half_squared_error, keys[2], update)


def by_hand(at):
    """Path -> gradients [N, parameters] of the images' losses; and their gradients at s, f and z."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), at.variables["params"])
    W, H, b = params["branch"]["kernel"], params["head"]["kernel"], params["head"]["bias"]
    x, targets = np.asarray(at.x_BxHxWxC, np.float64), np.asarray(at.targets_BxK, np.float64)
    f = x @ W
    z = x * f if at.net.product else x + f
    error = z @ H + b - targets
    at_z = error @ H.T
    at_s, at_f = (at_z * f, at_z * x) if at.net.product else (at_z, at_z)
    own = {
        "branch": np.einsum("ni,no->nio", x, at_f).reshape(N, -1),
        "head": np.einsum("ni,no->nio", z, error).reshape(N, -1),
    }
    return own | {"all": np.concatenate([own["branch"], error, own["head"]], 1)}, (at_s, at_f, at_z)


def rows(table, kind="layer"):
    return table[table["kind"] == kind].set_index(["seed", "path"])


def test_layers_by_hand():
    at = subject(update=lambda gradient: jax.tree.map(lambda g: -0.1 * g, gradient))
    table = gradients({7: at}, samples=N)
    assert list(table["kind"]) == ["net", "layer", "layer", "point"] and set(table["seed"]) == {7}
    params = at.variables["params"]
    weights = {"all": params, "branch": params["branch"], "head": params["head"]["kernel"]}
    for path, own in by_hand(at)[0].items():
        row = rows(table, "net" if path == "all" else "layer").loc[7, path]
        mean, variance = own.mean(0), own.var(0, ddof=1)
        weight_norm = float(optax.tree.norm(weights[path]))
        power = np.sum(mean**2) - variance.sum() / N
        want = {
            "norm": np.linalg.norm(mean),
            "weight_norm": weight_norm,
            "variance": variance.sum(),
            "gsnr": np.mean(mean**2 / variance),
            "noise_scale": variance.sum() / power if power > 0 else math.inf,
            "update_ratio": 0.1 * np.linalg.norm(mean) / weight_norm,
        }
        np.testing.assert_allclose(row[list(want)].astype(float), list(want.values()), rtol=1e-4, err_msg=path)
        assert math.isnan(row["cosine"])


def test_signal_and_noise_are_those_of_the_same_samples():
    """Else one image with a large gradient, which is not among the samples, would pass for signal without noise."""
    at = subject()
    own = by_hand(at)[0]["head"]
    row = rows(gradients({0: at}, samples=4)).loc[0, "head"]
    chosen = own[np.linspace(0, N - 1, 4).round().astype(int)]
    assert row["gsnr"] == pytest.approx(np.mean(chosen.mean(0) ** 2 / chosen.var(0, ddof=1)), rel=1e-4)


@pytest.mark.parametrize("product", [True, False])
def test_ways_through_a_merge_by_hand(product):
    at = subject(product)
    row = rows(gradients({0: at}), "point").loc[0, ""]
    s, f, z = (np.mean(a**2) for a in by_hand(at)[1])
    want = [s, f, z, s / (s + f)]
    np.testing.assert_allclose(row[["power_s", "power_f", "power_z", "shortcut_share"]].astype(float), want, rtol=1e-4)
    assert product or row["shortcut_share"] == 0.5


def test_a_part_of_the_images_gives_an_unbiased_variance():
    at = subject()
    own = by_hand(at)[0]["all"]
    squares = np.sum(np.square(own - own.mean(0)), 1)
    assert squares.mean() / (1 - 1 / N) == pytest.approx(own.var(0, ddof=1).sum())  # the mean over all such parts
    got = rows(gradients({0: at}, samples=3), "net").loc[0, "all"]
    want = squares[[0, round((N - 1) / 2), N - 1]].mean() / (1 - 1 / N)
    assert got["variance"] == pytest.approx(want, rel=1e-4)
    assert got["norm"] == pytest.approx(np.linalg.norm(own.mean(0)), rel=1e-4)  # of all images


class Sum(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return Merge(False, name="merge")(x, nn.Dense(x.shape[-1], use_bias=False, name="branch")(x))


def test_the_noise_scale_is_unbiased():
    """Of inputs N(0, I) and targets 0: the mean gradient I + W is known, and so is its power."""
    net, draws, truth = Sum(), 300, np.eye(2) + [[0.5, 0.0], [1.0, 0.5]]
    variables = {"params": {"branch": {"kernel": jnp.asarray(truth - np.eye(2), jnp.float32)}}}
    x = np.random.default_rng(0).normal(size=(draws, 16, 2)).astype(np.float32)
    subjects = {
        i: Subject(net, variables, x[i], np.zeros_like(x[i]), half_squared_error, jax.random.key(0))
        for i in range(draws)
    }
    table = rows(gradients(subjects, samples=16), "net")
    power = table["variance"] / table["noise_scale"]
    error = power.std() / math.sqrt(draws)
    assert abs(power.mean() - np.sum(truth**2)) < 3 * error
    assert np.mean(table["norm"] ** 2) - np.sum(truth**2) > 4 * error  # what the correction takes off


def test_cosines_between_replicas():
    subjects = {seed: subject(key=seed) for seed in (3, 4, 5)}
    table = gradients(subjects)
    for path in ("all", "branch"):
        means = {seed: by_hand(at)[0][path].mean(0) for seed, at in subjects.items()}
        unit = {seed: mean / np.linalg.norm(mean) for seed, mean in means.items()}
        got = rows(table, "net" if path == "all" else "layer")["cosine"]
        assert got[4, path] == pytest.approx((unit[4] @ unit[3] + unit[4] @ unit[5]) / 2, abs=1e-5)
    same = gradients({1: subjects[3], 2: subjects[3]})
    np.testing.assert_allclose(rows(same)["cosine"], 1, rtol=1e-6)


def test_without_gradients_or_without_noise():
    at = subject()
    fitted = at._replace(targets_BxK=at.net.apply(at.variables, at.x_BxHxWxC))
    net = rows(gradients({0: fitted}), "net").loc[0, "all"]
    assert net["norm"] < 1e-5
    x = jnp.zeros((N, D))  # only the head's bias has a gradient, and it is the same on all images
    still = at._replace(x_BxHxWxC=x, targets_BxK=jnp.ones((N, 2)))
    table = gradients({0: still, 1: still})
    layers = rows(table).loc[0]
    assert layers[["norm", "variance"]].eq(0).all(axis=None)
    assert layers[["gsnr", "noise_scale", "cosine"]].isna().all(axis=None)
    net = rows(table, "net").loc[0, "all"]
    assert net["noise_scale"] < 1e-10 and net["norm"] == pytest.approx(math.sqrt(2))
    assert math.isnan(rows(table, "point")["shortcut_share"].iloc[0])


def test_statistics_are_frozen():
    model = config.base().model
    model.update({"name": "mlp", "width": 8, "depth": 4, "merge": "mul_bn1"})
    net, x = build(model, 3), jax.random.normal(jax.random.key(0), (N, D))
    targets = jax.nn.one_hot(np.arange(N) % 3, 3)
    variables = calibrated(net, jax.jit(net.init)(jax.random.key(1), x), x)

    def losses(params):
        return optax.softmax_cross_entropy(net.apply(variables | {"params": params}, x), targets)

    own = jax.jit(jax.jacrev(losses))(variables["params"])
    own = np.concatenate([np.asarray(leaf).reshape(N, -1) for leaf in jax.tree.leaves(own)], 1)
    at = Subject(net, variables, x, targets, optax.softmax_cross_entropy, jax.random.key(2))
    table = PROBES["gradients"]({0: at}, samples=N)
    got = rows(table, "net").loc[0, "all"]
    assert got["norm"] == pytest.approx(np.linalg.norm(own.mean(0)), rel=1e-3)
    assert got["variance"] == pytest.approx(own.var(0, ddof=1).sum(), rel=1e-3)
    layers = {"stem", "stage1_block1/branch/linear1", "stage1_block1/branch/linear2", "head"}
    assert set(rows(table).loc[0].index) == layers


class NoMerge(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2)(x)


def test_a_net_without_merge_points_is_one_line():
    at = subject()
    net = NoMerge()
    at = at._replace(net=net, variables=net.init(jax.random.key(0), at.x_BxHxWxC))
    with pytest.raises(ConfigError, match="NoMerge has no merge points"):
        gradients({0: at})
