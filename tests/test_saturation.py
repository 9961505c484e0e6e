"""Gates and masks: what merges declare of them, their statistics by hand, and what arrives behind them."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import sigmoid

from resjax import config
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.models.costs import costs
from resjax.models.gates import SimAM
from resjax.models.merges import MERGES, Merge
from resjax.models.resnet import MergePoint
from resjax.probes.gates.masks import masks
from resjax.probes.gates.saturation import BINS, OF_BLOCK, OF_GATE, position, saturation
from resjax.probes.subject import Subject

GATED = {name: merge for name, merge in MERGES.items() if merge.gates}


# --- What merges declare ----------------------------------------------------------------------------------------
def test_who_has_gates():
    of_f = {"gate_sig", "gate_sig_bn", "gate_2sig", "gate_alpha", "gate_tanh", "gate_exp", "iand", "arl", "nal"}
    of_m = {"gate_granularity", "highway", "shortcut_gate", "se", "cbam", "eca", "simam", "branch_gate"}
    of_m.add("branch_gate_group")
    assert set(GATED) == of_f | of_m | {"sig_sig"}
    assert {name for name, merge in GATED.items() if [g.of for g in merge.gates] == ["f"]} == of_f
    assert {name for name, merge in GATED.items() if [g.of for g in merge.gates] == ["m"]} == of_m


@pytest.mark.parametrize("name", [name for name, merge in GATED.items() if not merge.extra])
def test_the_declared_gates_are_those_of_the_merge(name):
    merge, (s, f) = MERGES[name], jax.random.normal(jax.random.key(0), (2, 100))
    values = {gate.of: gate.value({"s": s, "f": f}[gate.of]) for gate in merge.gates}
    np.testing.assert_array_equal(merge.combine(s, f), values.get("s", s) * values["f"])
    for gate in merge.gates:
        ends = gate.value(jnp.array([-30.0, 30.0]))
        reached = {"low": float(jnp.min(ends)), "high": float(jnp.max(ends))}
        for end in gate.asymptotes:
            assert reached[end] == pytest.approx(getattr(gate, end), abs=1e-6)
        assert math.isfinite(gate.high) == ("high" in gate.asymptotes)


@pytest.mark.parametrize("name", [name for name, merge in GATED.items() if merge.extra])
def test_the_third_map_is_the_gate(name):
    merge, (s, f) = MERGES[name], jax.random.normal(jax.random.key(0), (2, 100))
    at_zero, at_one = (merge.combine(s, f, m=gate) for gate in (0.0, 1.0))
    (gate,) = merge.gates
    m = sigmoid(f)
    np.testing.assert_allclose(
        merge.combine(s, f, m=m), at_zero + gate.value(m) * (at_one - at_zero), rtol=1e-4, atol=1e-5
    )


# --- Statistics of gates, by hand -------------------------------------------------------------------------------
class Point(nn.Module):
    merge: Merge

    @nn.compact
    def __call__(self, s, f):
        return self.merge.combine(s, f)


class Given(nn.Module):
    """A block whose f is the input, and whose s is `shortcut` times it; a ReLU follows."""

    merge: Merge
    shortcut: float

    @nn.compact
    def __call__(self, f):
        return nn.relu(Point(self.merge, name="merge")(self.shortcut * f, f))


class Net(nn.Module):
    merge: Merge
    shortcut: float = -1.0

    @nn.compact
    def __call__(self, x, train=False):
        return Given(self.merge, self.shortcut, name="block")(x)


def of_targets(logits, targets):
    """A loss with the gradient `targets` at the logits, but for the mean over samples."""
    return jnp.sum(logits * targets, -1)


def seen(name, f, shortcut=-1.0, targets=None):
    """The rows of one block with this f, by gate."""
    targets = jnp.ones_like(f) if targets is None else targets
    at = Subject(Net(MERGES[name], shortcut), {"params": {}}, jnp.asarray(f), targets, of_targets, jax.random.key(0))
    return saturation(at).set_index("gate")


def logistic(x):
    return 1 / (1 + np.exp(-np.float64(x)))


BY_HAND = {  # value, slope, its maximum, p
    "gate_sig": (logistic, lambda x: logistic(x) * logistic(-x), 0.25, logistic),
    "gate_2sig": (lambda x: 2 * logistic(x), lambda x: 2 * logistic(x) * logistic(-x), 0.5, logistic),
    "iand": (lambda x: logistic(-x), lambda x: -logistic(x) * logistic(-x), 0.25, lambda x: logistic(-x)),
    "arl": (lambda x: 1 + logistic(x), lambda x: logistic(x) * logistic(-x), 0.25, logistic),
    "gate_tanh": (lambda x: 1 + np.tanh(x), lambda x: 1 - np.tanh(x) ** 2, 1.0, lambda x: (1 + np.tanh(x)) / 2),
    "gate_exp": (np.exp, np.exp, np.inf, logistic),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_every_column_of_a_gate_by_hand(name):
    f_BxC = np.array(3 * jax.random.normal(jax.random.key(1), (50, 4)))
    f_BxC[:, 1], f_BxC[:, 2] = np.linspace(5, 9, 50), np.linspace(-9, -5, 50)
    value, slope, slope_max, p = BY_HAND[name]
    got = seen(name, f_BxC).loc["f"]
    gate, place = value(np.float64(f_BxC)), p(f_BxC)
    distance = place if name == "gate_exp" else np.minimum(place, 1 - place)
    saturated = distance < 0.05
    np.testing.assert_allclose(got["mean"], gate.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["std"], gate.std(), rtol=1e-5)
    np.testing.assert_allclose(got["distance"], distance.mean(), rtol=1e-5)
    assert got["saturated"] == pytest.approx(saturated.mean(), abs=1e-6)
    np.testing.assert_allclose(got["slope_rms"], np.sqrt(np.mean(slope(np.float64(f_BxC)) ** 2)), rtol=1e-5)
    np.testing.assert_allclose(got["slope_max"], slope_max, rtol=1e-5)
    assert got["stuck"] == (0.25 if name == "gate_exp" else 0.5)
    np.testing.assert_allclose(got[list(BINS)].astype(float), np.histogram(place, 16, (0, 1))[0] / 200, atol=1e-6)


def test_the_critical_gate_is_steepest_where_its_logistic_is():
    assert seen("gate_alpha", np.ones((2, 1), np.float32))["slope_max"]["f"] == pytest.approx(1.475886 / 4, rel=1e-4)


def test_a_uniform_gate_has_a_flat_histogram():
    p = (np.arange(160) + 0.5) / 160
    f = np.log(p / (1 - p)).astype(np.float32).reshape(-1, 1)
    for name in ("gate_sig", "gate_2sig", "arl"):
        got = seen(name, f).loc["f"]
        np.testing.assert_allclose(got[list(BINS)].astype(float), 1 / 16, rtol=1e-5)
        assert got["saturated"] == pytest.approx(0.1, abs=1e-6) and got["distance"] == pytest.approx(0.25, rel=1e-5)


def test_infinite_values_are_at_the_ends():
    gate = MERGES["gate_exp"].gates[0]
    np.testing.assert_array_equal(position(gate, gate.value(jnp.array([-200.0, 0.0, 200.0]))), [0, 0.5, 1])


# --- What the gradient meets, and what leaves the block ---------------------------------------------------------
def test_the_gradient_behind_a_gate_by_hand():
    rng = np.random.default_rng(0)
    f, c = rng.normal(size=(2, 40, 3)).astype(np.float32)
    got = seen("gate_sig", f, targets=jnp.asarray(c)).loc["f"]
    alive = -f * logistic(f) > 0  # the ReLU's
    at_z = c * alive
    at_f = at_z * -f * logistic(f) * logistic(-f)  # with respect to f alone, s is kept
    assert got["grad_ratio"] == pytest.approx(math.sqrt(np.mean(at_f**2) / np.mean(at_z**2)), rel=1e-5)
    assert got["zeros"] == pytest.approx(1 - alive.mean(), abs=1e-6) and got["dead_units"] == 0


def test_dead_units_are_never_active():
    f = np.abs(np.random.default_rng(0).normal(size=(10, 4))).astype(np.float32)
    f[3, 0] = -1  # the other columns have s < 0 throughout
    got = seen("gate_sig", f).loc["f"]
    assert got["zeros"] == pytest.approx(39 / 40) and got["dead_units"] == 0.75


def test_two_gates_are_two_rows_and_none_is_one():
    f = np.array([[1.0], [5.0]], np.float32)
    both = seen("sig_sig", f)
    assert list(both.index) == ["s", "f"] and set(both["block"]) == {"block"}
    assert both["mean"].tolist() == pytest.approx([logistic(-f).mean(), logistic(f).mean()])
    none = seen("add", f, shortcut=1.0)
    assert list(none.index) == [""] and none[list(OF_GATE)].isna().all(axis=None)
    assert none["grad_ratio"].tolist() == [1] and none["zeros"].tolist() == [0]


# --- Nets of ours: the third map, the optimiser's update --------------------------------------------------------
def subject(x, update=None, **words):
    model = config.base().model
    model.update({"depth": 6, "width": 8} | words)
    net = build(model, 3)
    targets = jax.nn.one_hot(jnp.arange(len(x)) % 3, 3)
    return Subject(net, jax.jit(net.init)(jax.random.key(1), x), x, targets, of_targets, jax.random.key(2), update)


@pytest.fixture(scope="module")
def vectors():
    return jax.random.normal(jax.random.key(3), (12, 5))


@pytest.mark.parametrize("merge, behind", [("se", "merge"), ("gate_granularity", "branch")])
@pytest.mark.slow
def test_updates_behind_the_gate(merge, behind, vectors):
    given = []
    at = subject(vectors, lambda g: given.append(g) or jax.tree.map(lambda a: -0.1 * a, g), name="mlp", merge=merge)
    got = saturation(at)
    assert list(got["block"]) == ["stage1_block1", "stage1_block2"] and got["distance"].between(0, 0.5).all()

    def objective(params):
        out, _ = at.net.apply(at.variables | {"params": params}, vectors, True, mutable=["batch_stats"])
        return jnp.mean(of_targets(out, at.targets_BxK))

    want = jax.jit(jax.grad(objective))(at.variables["params"])
    for block in got["block"]:
        update, weights = (jax.tree.leaves(tree[block][behind]) for tree in (want, at.variables["params"]))
        ratio = 0.1 * math.sqrt(sum(np.sum(a**2) for a in update) / sum(np.sum(a**2) for a in weights))
        np.testing.assert_allclose(got.set_index("block").loc[block, "update_ratio"], ratio, rtol=1e-3)
    assert jax.tree.structure(given[0]) == jax.tree.structure(want)


def test_some_blocks_gated_and_no_optimiser(vectors):
    got = saturation(subject(vectors, name="mlp", merge="gate_sig", merge_blocks=1))
    assert list(got["gate"]) == ["", "f"] and got["update_ratio"].isna().all()
    assert got[list(OF_BLOCK[:3])].notna().all(axis=None)


def test_simam_is_always_above_its_lowest_value():
    f = jax.random.normal(jax.random.key(4), (2, 4, 4, 3))
    gate = MERGES["simam"].gates[0]
    m = SimAM(norm=None).apply({}, f, f, f, False)
    assert gate.low == pytest.approx(0.6224593) and (m >= 0.622459).all() and (position(gate, m) < 1).all()
    assert float(jnp.min(position(gate, m))) < 0.01


@pytest.mark.slow
def test_the_logistics_of_cbam_are_judged_apart():
    x = jax.random.normal(jax.random.key(5), (6, 8, 8, 3))
    at = subject(x, depth=8, merge="cbam")
    at.variables["params"]["stage1_block1"]["merge"]["cbam"]["spatial"]["kernel"] *= 0  # a logistic at 1/2 throughout
    got = saturation(at).set_index(["block", "gate"])
    assert list(got.loc["stage1_block1"].index) == ["channel_gate", "spatial_gate"] and len(got) == 6
    spatial = got.loc[("stage1_block1", "spatial_gate")]
    assert spatial["mean"] == 0.5 and spatial["saturated"] == 0 and spatial["slope_rms"] == 0.25
    assert got.loc[("stage1_block1", "channel_gate"), "std"] > 0


def test_of_a_vector_cbam_has_one_logistic(vectors):
    assert set(saturation(subject(vectors, name="mlp", merge="cbam"))["gate"]) == {"channel_gate"}


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        block = Given(MERGES["gate_sig"], 1.0, name="block")
        return block(block(x))


def test_a_block_that_runs_twice_is_two_points():
    f = jnp.array([[1.0, -2.0], [0.5, 3.0]])
    at = Subject(Twice(), {"params": {}}, f, jnp.ones_like(f), of_targets, jax.random.key(0))
    got = saturation(at).set_index("block")
    assert list(got.index) == ["block", "block#2"]
    once = np.maximum(np.asarray(f) * logistic(f), 0)
    assert got["mean"].tolist() == pytest.approx([logistic(f).mean(), logistic(once).mean()])
    assert got["zeros"].tolist() == [0.25, 0.25]


class MergesTwice(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        merge = Point(MERGES["gate_sig"], name="merge")
        return merge(merge(x, x), x)


def test_a_block_that_merges_twice_is_refused_in_one_line():
    f = jnp.ones((2, 3))
    with pytest.raises(ConfigError, match="#2: .* more than once"):
        saturation(Subject(MergesTwice(), {"params": {}}, f, f, of_targets, jax.random.key(0)))


class Undeclared(nn.Module):
    """Somebody else's net, whose merge says nothing of itself."""

    @nn.compact
    def __call__(self, x, train=False):
        return Sum(name="merge")(x, 2 * x)


class Sum(nn.Module):
    def __call__(self, s, f):
        return s + f


def test_a_merge_that_declares_nothing_has_no_gates():
    f = jnp.ones((2, 3))
    got = saturation(Subject(Undeclared(), {"params": {}}, f, f, of_targets, jax.random.key(0)))
    assert got["gate"].tolist() == [""] and got["grad_ratio"].tolist() == [1]


# --- Masks ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def maps():
    return np.abs(np.random.default_rng(0).normal(size=(2, 4, 2, 3))).astype(np.float32)


def mask_of(name, maps):
    at = Subject(Net(MERGES[name]), {"params": {}}, jnp.asarray(maps), None, None, None)
    return masks(at)


def test_masks_by_hand(maps):
    got = mask_of("gate_tanh", maps)
    want = np.mean(1 + np.tanh(maps), -1)
    assert got[["image", "row", "column"]].drop_duplicates().shape == (16, 3)
    for row in got.itertuples():
        value = want[row.image, row.row, row.column]
        assert row.mask == pytest.approx(value, rel=1e-5)
        assert row.relative == pytest.approx(value / want[row.image].mean(), rel=1e-5)
        assert row.ink == pytest.approx(maps[row.image, row.row, row.column].mean(), rel=1e-5)


def test_the_mask_of_a_product_is_the_size_of_f(maps):
    np.testing.assert_allclose(mask_of("mul", -maps)["mask"], maps.mean(-1).ravel(), rtol=1e-5)


def test_masks_of_bfloat16(maps):
    half = jnp.asarray(maps, jnp.bfloat16)
    got = mask_of("gate_tanh", half)
    want = np.mean(1 + np.tanh(np.float32(half)), -1)
    np.testing.assert_allclose(got["mask"], want.ravel(), rtol=4e-3)
    np.testing.assert_allclose(got["ink"], np.float32(half).mean(-1).ravel(), rtol=1e-5)


class Attended(nn.Module):
    """One block of squeeze-and-excitation."""

    @nn.compact
    def __call__(self, x, train=False):
        point = MergePoint(MERGES["se"], 1, 0.0, "channel", norm=None, dtype=jnp.float32, name="merge")
        return point(x, x, 2 * x, train)


def test_a_channel_mask_is_flat(maps):
    variables = jax.jit(Attended().init)(jax.random.key(5), maps)
    table = masks(Subject(Attended(), variables, jnp.asarray(maps), None, None, None))
    np.testing.assert_allclose(table["relative"], 1, rtol=1e-5)
    assert len(table) == 16 and table["mask"].nunique() == 2  # one number per image


def test_vectors_have_no_mask(vectors):
    with pytest.raises(ConfigError, match="a mask is of maps"):
        masks(subject(vectors, name="mlp", merge="mul"))


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(7)(x)


def test_costs_of_a_dense_layer():
    assert costs(Dense(), (5,)) == {"parameters": 42, "flops": 2 * 5 * 7 + 7}
