"""Lesions by hand; paths whose gradients are known, and add up to the gradient."""

import itertools
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from resjax import config
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.models.frozen import calibrated
from resjax.probes.blocks.lesion import exchangeable, lesion, subsets
from resjax.probes.blocks.merge_points import apply_with_points
from resjax.probes.blocks.path_lengths import path_gradient, path_lengths
from resjax.probes.registry import PROBES
from resjax.probes.subject import Subject
from resjax.training.step import half_squared_error

KEY = jax.random.key(3)


# --- A net that NumPy computes as well --------------------------------------------------------------------------
class Join(nn.Module):
    product: bool

    def __call__(self, h, s, f):
        return s * f if self.product else s + f


class Pair(nn.Module):
    """The same join, without h."""

    product: bool

    def __call__(self, s, f):
        return s * f if self.product else s + f


class Step(nn.Module):
    product: bool
    with_h: bool

    @nn.compact
    def __call__(self, h):
        f = nn.Dense(h.shape[-1], use_bias=False, name="branch")(h)
        if self.with_h:
            return Join(self.product, name="merge")(h, 2 * h, f)
        return Pair(self.product, name="merge")(2 * h, f)


class Chain(nn.Module):
    """Three blocks h -> 2h + hW or 2h * hW, in an order that isn't the alphabet's, and a linear head."""

    product: bool
    with_h: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        for name in "bca":
            x = Step(self.product, self.with_h, name=name)(x)
        return nn.Dense(2, use_bias=False, name="head")(x)


X = np.asarray(jax.random.normal(jax.random.key(0), (12, 4)))
TARGETS = np.eye(2, dtype=np.float32)[np.arange(12) % 2]


def chain(product, with_h=True):
    net = Chain(product, with_h)
    return net, net.init(jax.random.key(1), X)


def looked(probe, net, variables, x=X, targets=TARGETS, **options):
    return probe(net, variables, jnp.asarray(x), jnp.asarray(targets), half_squared_error, KEY, **options)


def weights(variables, order="bca"):
    return [np.asarray(variables["params"][name]["branch"]["kernel"], float) for name in order]


def by_hand(product, with_h, variables, removal, touched, order="bca"):
    """Loss and accuracy of the chain after a lesion."""
    h = X.astype(float)
    for name, W in zip("bca", weights(variables, order), strict=True):
        s, f = 2 * h, h @ W
        f = np.broadcast_to(f.mean(0), f.shape) if removal == "mean" and name in touched else f
        z = s * f if product else s + f
        if name in touched and removal in ("delete", "identity"):
            z = h if removal == "delete" and with_h else s
        h = z
    logits = h @ np.asarray(variables["params"]["head"]["kernel"], float)
    return np.sum((logits - TARGETS) ** 2) / 2 / len(X), np.mean(logits.argmax(1) == TARGETS.argmax(1))


@pytest.mark.parametrize(("product", "with_h"), [(False, True), (True, True), (True, False)])
def test_every_lesion_by_hand(product, with_h):
    net, variables = chain(product, with_h)
    got = looked(lesion, net, variables)
    counts = {"none": 1, "delete": 7, "identity": 7, "mean": 7, "swap": 3, "permute": 9}  # 3 + 3 + 1 sets
    assert got["lesion"].value_counts().to_dict() == counts
    for row in got.itertuples():
        touched = row.blocks.split(";") if row.blocks else []
        assert row.k == len(touched)
        if row.lesion not in ("swap", "permute"):
            assert row.tau == 1
            orders = ["bca"]
        else:  # of three blocks, tau alone does not tell the two cycles from each other
            orders = [o for o in map("".join, itertools.permutations("bca")) if tau(o) == pytest.approx(row.tau)]
        want = [by_hand(product, with_h, variables, row.lesion, touched, order) for order in orders]
        close = [np.allclose((row.loss, row.accuracy), one, rtol=1e-4) for one in want]
        assert any(close), row
    swaps = got[got["lesion"] == "swap"]
    assert list(swaps["blocks"]) == ["b;c", "b;a", "c;a"]
    np.testing.assert_allclose(swaps["tau"], [1 / 3, -1, 1 / 3])


def tau(order):
    """Kendall's, of three different letters against "bca"."""
    rank = ["bca".index(name) for name in order]
    return sum(np.sign(rank[j] - rank[i]) for i, j in itertools.combinations(range(3), 2)) / 3


def test_swapped_twice_is_unchanged():
    net, variables = chain(True)
    params = variables["params"]
    swapped = {"params": params | {"b": params["a"], "a": params["b"]}}
    before, after = looked(lesion, net, variables), looked(lesion, net, swapped)
    intact, pair = before["lesion"] == "none", (before["lesion"] == "swap") & (before["blocks"] == "b;a")
    columns = ["loss", "accuracy"]
    assert before[pair]["loss"].item() != before[intact]["loss"].item()
    np.testing.assert_array_equal(after[pair][columns], before[intact][columns])
    np.testing.assert_array_equal(after[intact][columns], before[pair][columns])


# --- Our nets ---------------------------------------------------------------------------------------------------
def residual(merge, **words):
    """A residual mlp of two blocks, calibrated on 24 points of 5 classes, which it returns too."""
    model = config.base().model
    model.update({"name": "mlp", "depth": 6, "width": 8, "merge": merge} | words)
    net, x = build(model, 5), jax.random.normal(jax.random.key(5), (24, 6))
    targets = jax.nn.one_hot(jnp.arange(24) % 5, 5)
    return net, calibrated(net, jax.jit(net.init)(jax.random.key(6), x), x), x, targets


@pytest.fixture(scope="module")
def summed():
    return residual("add")


def test_to_delete_from_a_sum_is_to_silence_the_branch(summed):
    net, variables, x, targets = summed
    got = looked(lesion, *summed).set_index(["lesion", "blocks"])
    recalibrated = looked(lesion, *summed, recalibrate=True, draws=0).set_index(["lesion", "blocks"])
    assert "permute" not in recalibrated.index and "stage1_block1;stage1_block2" in recalibrated.loc["swap"].index
    silent = jax.tree.map(lambda leaf: leaf, variables)
    silent["params"]["stage1_block1"]["branch"]["out_norm"]["bn"] = {"scale": jnp.zeros(8), "bias": jnp.zeros(8)}
    for table, own in ((got, silent), (recalibrated, calibrated(net, silent, x))):
        logits = net.apply(own, x)
        want = [jnp.mean(half_squared_error(logits, targets)), jnp.mean(logits.argmax(1) == targets.argmax(1))]
        for name in ("delete", "identity"):
            row = table.loc[name, "stage1_block1"]
            np.testing.assert_allclose(row[["loss", "accuracy"]].astype(float), want, rtol=1e-4)
    columns = ["loss", "accuracy"]
    intact = (got.loc[["none"]][columns], recalibrated.loc[["none"]][columns])
    np.testing.assert_allclose(*intact, rtol=1e-4)  # its statistics are those of x already


def test_the_sets_do_not_depend_on_the_merge(summed):
    words = ["lesion", "blocks", "k", "draw", "tau"]
    other = residual("mul_bn1")
    assert looked(lesion, *summed)[words].equals(looked(lesion, *other)[words])
    identity, delete = (looked(lesion, *other).query("lesion == @name")["loss"] for name in ("identity", "delete"))
    assert not np.allclose(identity, delete)  # the shortcut is normalised


def test_what_can_be_exchanged():
    model = config.base().model
    model.depth = 20
    variables = jax.eval_shape(build(model, 10).init, jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    names = [f"stage{i}_block{j}" for i in (1, 2, 3) for j in (1, 2, 3)]
    assert exchangeable(variables, names) == ((0, 1, 2), (4, 5), (7, 8))
    assert exchangeable(variables, ["stage1_block1", "stage1_block1#2", "elsewhere"]) == ()


def test_subsets():
    rng = np.random.default_rng(0)
    assert subsets(3, 2, 5, rng) == [(0, 1), (0, 2), (1, 2)] and subsets(3, 0, 5, rng) == [()]
    many = subsets(30, 15, 40, rng)
    assert len(set(many)) == 40 and all(len(set(one)) == 15 for one in many)
    assert subsets(30, 15, 0, rng) == []


# --- Paths ------------------------------------------------------------------------------------------------------
def test_path_lengths_of_a_linear_chain_by_hand():
    net, variables = chain(product=False)
    got = looked(path_lengths, net, variables)
    head = np.asarray(variables["params"]["head"]["kernel"], float)
    residual_Bx2 = X @ reduce(np.matmul, [2 * np.eye(4) + W for W in weights(variables)]) @ head - TARGETS
    norms = {k: [] for k in range(4)}
    for path in itertools.product((0, 1), repeat=3):
        maps = [W if branch else 2 * np.eye(4) for branch, W in zip(path, weights(variables), strict=True)]
        gradient = residual_Bx2 @ (reduce(np.matmul, maps) @ head).T
        norms[sum(path)].append(np.linalg.norm(gradient, axis=1).mean())
    np.testing.assert_allclose(got["gradient_norm"], [np.mean(norms[k]) for k in range(4)], rtol=1e-4)
    assert list(got["length"]) == [0, 1, 2, 3] and list(got["paths"]) == list(got["sampled"]) == [1, 3, 3, 1]
    total = [np.sum(norms[k]) for k in range(4)]
    np.testing.assert_allclose(got["share"], total / np.sum(total), rtol=1e-4)
    fewer = looked(path_lengths, net, variables, draws=2)
    assert list(fewer["sampled"]) == [1, 2, 2, 1] and list(fewer["paths"]) == [1, 3, 3, 1]


def chains(product):
    return *chain(product), jnp.asarray(X), jnp.asarray(TARGETS)


@pytest.mark.parametrize(
    ("make", "word"),
    [(chains, False), (chains, True), (residual, "mul"), (residual, "pi"), (residual, "highway")],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_the_gradients_of_all_paths_add_up_to_the_gradient(make, word):
    net, variables, x, targets = make(word)
    names = tuple(jax.eval_shape(partial(apply_with_points, net), variables, x)[1])
    paths_PxL = jnp.array(list(itertools.product((0.0, 1.0), repeat=len(names))))

    @jax.jit
    def both(x):
        of_paths = lax.map(partial(path_gradient, net, half_squared_error, names, variables, x, targets), paths_PxL)
        return of_paths, jax.grad(lambda x: jnp.sum(half_squared_error(net.apply(variables, x), targets)))(x)

    of_paths, whole = both(x)
    assert len(of_paths) == 2 ** len(names)
    np.testing.assert_allclose(of_paths.sum(0), whole, rtol=1e-3, atol=1e-5)
    assert all(np.abs(one).max() > 1e-6 for one in of_paths)  # each carries something


def test_the_gradient_of_a_tiny_product_is_not_lost():
    net, variables = chain(product=True)
    shares = [looked(path_lengths, net, variables, scale * X, 0 * TARGETS)["share"] for scale in (1, 1e-2)]
    np.testing.assert_allclose(*shares, rtol=1e-3)  # of degree 15: its square would vanish


# --- In the registry --------------------------------------------------------------------------------------------
def test_the_registry_knows_both(summed):
    net, variables, x, targets = summed
    subjects = {seed: Subject(net, variables, x, targets, half_squared_error, KEY) for seed in (4, 7)}
    for name, look in (("lesion", lesion), ("paths", path_lengths)):
        got = PROBES[name](subjects, draws=1)
        want = looked(look, *summed, draws=1)
        assert list(got["seed"].unique()) == [4, 7]
        assert got[got["seed"] == 7].drop(columns="seed").reset_index(drop=True).equals(want)


class NoMerge(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2, name="merge")(x)


@pytest.mark.parametrize("probe", [lesion, path_lengths])
def test_without_merge_points_it_is_one_line(probe):
    net = NoMerge()
    with pytest.raises(ConfigError, match="NoMerge has no merge points"):
        looked(probe, net, net.init(jax.random.key(0), X))
