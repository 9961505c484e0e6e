"""Merges over depth and streams: formulas against a few lines of their own, what they equal at init, and costs."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import quick

from resjax import config as base
from resjax.config import ConfigError
from resjax.models import build as build_module
from resjax.models import gates, merges, resnet, streams
from resjax.models.build import build
from resjax.models.costs import costs
from resjax.models.layers import Linear, Norm
from resjax.models.merges import MERGES, Merge
from resjax.probes.blocks.connections import connections
from resjax.probes.blocks.merge_points import apply_with_points
from resjax.probes.subject import Subject
from resjax.sweep import flags
from resjax.training import step

PAGE = Path(__file__).parents[1] / "docs" / "streams.md"
RECENT = [name for name, merge in MERGES.items() if merge.recent]
CONNECTED = [name for name in RECENT if MERGES[name].connection]


@pytest.fixture
def maps():
    """Five maps [2, 3, 3, 8]."""
    return tuple(jax.random.normal(jax.random.key(0), (5, 2, 3, 3, 8)))


def drawn(connection, carried, place=None, key=1):
    """Parameters that are not those at init: N(0, 1) in their shapes."""
    place = place or streams.Place(1, 8, 8, len(carried))
    keys = jax.random.split(jax.random.key(key), len(connection.params))
    inits = {name: init(keys[0], place) for name, init in connection.params.items()}
    return {name: jax.random.normal(k, value.shape) for k, (name, value) in zip(keys, inits.items(), strict=True)}


def at_init(connection, carried, index=1):
    place = streams.Place(index, 8, 8, len(carried))
    return {name: init(jax.random.key(0), place) for name, init in connection.params.items()}


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def rms(v):
    v = np.asarray(v)
    return v / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-6)


def softmax(x):
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def net_of(merge, **entries):
    config = base.base()
    config.model.update({"merge": merge, "width": 8} | entries)
    return build(config.model, 10)


def outputs(merge, **entries):
    """In train mode, with the weights of one seed."""
    x = jax.random.normal(jax.random.key(3), (4, 8, 8, 1))
    net = net_of(merge, **entries)
    return net.apply(net.init(jax.random.key(0), x), x, train=True, mutable=["batch_stats"])[0]


# --- What they equal at init ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("merge", "entries"), [
    ("laurel_rw", {"name": "mlp", "depth": 4}), ("laurel_lr", {"name": "mlp", "depth": 4}), ("x0", {}),
])  # fmt: skip
def test_these_are_the_sum_at_init_bit_for_bit(merge, entries):
    np.testing.assert_array_equal(outputs(merge, **entries), outputs("add", **entries))


def test_one_stream_is_the_sum_at_init_bit_for_bit(monkeypatch):
    """Where shapes change, a stream passes a projection of its own; elsewhere nothing differs."""
    one = Merge("one", lambda s, f: f, "", identity="no", connection=streams.hyper_connections(1))
    monkeypatch.setitem(MERGES, "one", one)
    entries = {"name": "mlp", "depth": 6}
    np.testing.assert_array_equal(outputs("one", **entries), outputs("add", **entries))


def test_the_query_of_zero_takes_the_mean(maps):
    p = at_init(streams.ATTENTION, maps)
    close(streams.ATTENTION.read(None, maps, p), np.mean(maps, 0))


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_delta_is_identity_projection_and_reflection(maps, beta):
    """Along k; with v = 0, and the logit of beta/2 as its bias."""
    s, f = maps[:2]
    bias = {0.0: -1e9, 1.0: 0.0, 2.0: 1e9}[beta]
    module = gates.DeltaUpdate(Norm, bias=bias)
    variables = module.init(jax.random.key(0), None, s, f, True)
    variables["params"]["value"]["kernel"] *= 0
    z = s + module.apply(variables, None, s, f, True)
    k = f / jnp.linalg.norm(f, axis=-1, keepdims=True)
    along = jnp.sum(k * s, -1, keepdims=True) * k
    close(z, s - beta * along)
    H = np.eye(8) - beta * np.asarray(k)[0, 0, 0][:, None] * np.asarray(k)[0, 0, 0]
    expected = {0.0: np.ones(8), 1.0: [0] + [1] * 7, 2.0: [-1] + [1] * 7}[beta]
    np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(H)), expected, atol=1e-5)
    close(np.asarray(z)[0, 0, 0], H @ np.asarray(s)[0, 0, 0])


# --- Formulas -------------------------------------------------------------------------------------------------------
def test_attention_residuals(maps):
    p = drawn(streams.ATTENTION, maps)
    scores = np.stack([(rms(v) * np.asarray(p["query"])).sum(-1, keepdims=True) for v in maps])
    close(streams.ATTENTION.read(None, maps, p), (softmax(scores) * np.stack(maps)).sum(0))
    close(streams.attention(maps, p["query"]).sum(0), 1)
    z, carried = streams.ATTENTION.write(maps, None, None, 2 * maps[0], p)
    assert z is carried[-1] and len(carried) == 6


def test_dense_is_a_1x1_convolution_of_the_concatenation(maps):
    p = drawn(streams.DENSE, maps)
    by_map = np.asarray(p["kernel"]).reshape(5, 8, 8)
    close(streams.DENSE.read(None, maps, p), sum(np.asarray(v) @ w for v, w in zip(maps, by_map, strict=True)))


def test_the_stem_in_every_block(maps):
    s, f, v0 = maps[:3]
    z, carried = streams.X0.write((v0,), s, f, s + f, {"r": jnp.float32(0.7), "c": jnp.float32(-0.2)})
    close(z, 0.7 * s + f - 0.2 * v0)
    assert carried[0] is v0


def test_two_cells(maps):
    a, b, z = maps[:3]
    mixed = 0.3 * np.asarray(a) + 0.9 * np.asarray(b)
    centred = mixed - mixed.mean((1, 2, 3), keepdims=True)
    expected = centred / centred.std((1, 2, 3), keepdims=True)
    close(streams.TWO_CELLS.read(b, (a, b), {"p0": 0.3, "p1": 0.9}), expected)
    assert streams.TWO_CELLS.write((a, b), None, None, z, {}) == (z, (b, z))


def test_hyper_connections(maps):
    """As matrices at one position: h = H_pre X, X <- H_res X + H_post z."""
    X, z = maps[:4], maps[4]
    p = {name: np.asarray(value) for name, value in drawn(streams.HC, X).items()}
    h = streams.HC.read(None, X, p)
    out, after = streams.HC.write(X, None, None, z, p)
    at = (1, 2, 0)
    own = np.stack([np.asarray(v)[at] for v in X])  # [n, C]
    asks = {name: p[f"factor_{name}"] * np.tanh(rms(own) @ p[f"kernel_{name}"]) for name in ("pre", "res", "post")}
    close(h[at], (p["pre"] + asks["pre"][:, 0]) @ own)
    H_res, H_post = p["res"] + asks["res"], p["post"] + asks["post"][:, 0]
    close(np.stack([v[at] for v in after]), H_res.T @ own + np.outer(H_post, np.asarray(z)[at]))
    close(streams.HC.last(out, after, {}), sum(after))


def test_manifold_hyper_connections(maps):
    X, z = maps[:4], maps[4]
    p = {name: np.asarray(value) for name, value in drawn(streams.MHC, X).items()}
    h, (_, after) = streams.MHC.read(None, X, p), streams.MHC.write(X, None, None, z, p)
    at = (0, 1, 2)
    own = np.stack([np.asarray(v)[at] for v in X])
    asks = {name: p[f"factor_{name}"] * (rms(own.ravel()) @ p[f"kernel_{name}"]) for name in ("pre", "res", "post")}
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    close(h[at], sigmoid(p["pre"] + asks["pre"]) @ own)
    H = np.exp(np.float64(p["res"] + asks["res"].reshape(4, 4)))
    for _ in range(20):
        H /= H.sum(1, keepdims=True)
        H /= H.sum(0, keepdims=True)
    H_post = 2 * sigmoid(p["post"] + asks["post"])
    close(np.stack([v[at] for v in after]), H.T @ own + np.outer(H_post, np.asarray(z)[at]))


def test_mixing_matrices_are_doubly_stochastic(maps):
    """Rows and columns, at init and where inputs change the logits by about a unit."""
    X = maps[:4]
    for p in (at_init(streams.MHC, X), drawn(streams.MHC, X) | {"factor_res": jnp.float32(0.1)}):
        H = np.asarray(jnp.broadcast_to(streams.mhc_mixing(X, p), (4, 2, 3, 3, 4)))
        np.testing.assert_allclose(H.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(H.sum(0), 1, atol=1e-5)
        assert H.min() >= 0
    start = np.asarray(streams.mhc_mixing(X, at_init(streams.MHC, X)))[:, 0, 0, 0]
    np.testing.assert_allclose(start, np.eye(4), atol=0.003)


def branch_of(kind, h):
    linear, norm = Linear, lambda **kw: Norm("none", **kw)
    module = resnet.Branch(kind, 4, 1, "relu", 0.0, 1.0, 0.0, linear, norm)
    variables = module.init(jax.random.key(0), h, False)
    weights = {name: np.asarray(own["kernel"]) for name, own in variables["params"].items() if "kernel" in own}
    return np.asarray(module.apply(variables, h, False)), weights


def test_branches_of_products():
    """Of vectors, without norms."""
    h = jax.random.normal(jax.random.key(5), (6, 3))
    out, w = branch_of("glu", h)
    close(out, ((h @ w["linear1"]) * (h @ w["linear3"])) @ w["linear2"])
    out, w = branch_of("pure", h)
    y = np.maximum(h @ w["linear1"], 0)
    powers = np.prod((np.abs(y)[:, :, None] + 0.1) ** w["linear2"], 1)
    close(out, np.sign(y @ w["linear2"]) * powers)


def test_scales_fall_with_depth():
    assert [float(jax.nn.sigmoid(MERGES["pi_sigmoid"].inits(i)["a"])) for i in range(3)] == pytest.approx(
        [1 / 2, 1 / 3, 1 / 4]
    )
    x = jnp.zeros((1, 8, 8, 1))
    params = net_of("pi_sigmoid", depth=14).init(jax.random.key(0), x)["params"]
    found = [float(params[f"stage{i}_block{j}"]["merge"]["a"]) for i in (1, 2, 3) for j in (1, 2)]
    assert found == pytest.approx([-np.log(i + 1) for i in range(6)])


# --- Nets -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("merge", quick(["delta", "attnres_mul"], ["delta", "pure", "attnres_mul", "hc_mul", "mhc"]))
def test_gradients_of_all_parameters_are_finite(merge):
    """The slow tests train every row, as a ResNet."""
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    net = net_of(merge, name="mlp", depth=4)
    variables = net.init(jax.random.key(0), x)

    def loss(params):
        logits, _ = net.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(logits[:, 0] ** 2)

    for path, leaf in jax.tree_util.tree_flatten_with_path(jax.grad(loss)(variables["params"]))[0]:
        assert np.isfinite(leaf).all(), (merge, path)


def test_merge_blocks_and_connections_exclude_each_other():
    with pytest.raises(ConfigError, match="merge_blocks=1: attnres reads the outputs of all blocks"):
        net_of("attnres", merge_blocks=1)


@pytest.mark.slow
@pytest.mark.parametrize("merge", RECENT)
def test_every_row_trains_an_epoch(merge):
    from resjax.data.dataset import load
    from resjax.training import loop

    config = base.base()
    config.update_from_flattened_dict({"model.merge": merge, "epochs": 1, "seeds": 1, "optimizer.learning_rate": 0.1})
    config.optimizer.clip_norm = 1.0
    dataset = load(config.dataset)
    task, own = loop.make_task(config, dataset), jax.tree.map(jnp.asarray, loop._examples(dataset.train))
    state, losses = step.init(task, jnp.zeros((1, 8, 8, 1)), jnp.int32(0)), []
    train = jax.jit(partial(step.train_steps, task, split=step.BatchSplit()))
    for first, last in ((0, 3), (3, 8), (8, task.steps_per_epoch)):
        state, sums = train((own, first, last), (state, step.Sums.zeros()))
        losses.append(sums.loss / (last - first))
    assert state.active and losses[2] < losses[0]


@pytest.mark.slow
def test_the_page_has_every_row_with_its_costs():
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (\w+) \| ([+\d,]+) \| ([\d.]+) \|$", PAGE.read_text(), re.M)
    assert {name: (formula.replace(r"\|", "|"), identity) for name, formula, identity, *_ in rows} == {
        name: (MERGES[name].formula, MERGES[name].identity) for name in RECENT
    }
    add = costs(net_of("add", depth=20, width=16), (32, 32, 3))
    for name, _, _, more, flops in rows:
        own = costs(net_of(name, depth=20, width=16), (32, 32, 3))
        assert own["parameters"] - add["parameters"] == int(more.replace(",", ""))
        assert own["flops"] / add["flops"] == pytest.approx(float(flops), abs=0.005)


# --- What a probe sees of them --------------------------------------------------------------------------------------
def seen(merge, **entries):
    net, x = net_of(merge, **entries), jax.random.normal(jax.random.key(2), (4, 8, 8, 1))
    variables = net.init(jax.random.key(0), x)
    return connections(Subject(net, variables, x, None, None, None)), variables["params"]


def test_a_probe_sees_depth_attention():
    """At init all earlier outputs weigh the same, in each block and in the head."""
    rows, _ = seen("attnres")
    counts = rows.groupby("block", sort=False).size().to_dict()
    assert counts == {"stage1_block1": 1, "stage2_block1": 2, "stage3_block1": 3, "head": 4}
    np.testing.assert_allclose(rows["value"], 1 / rows["block"].map(counts), rtol=1e-6)
    assert set(rows["quantity"]) == {"attention"}


def test_a_probe_sees_mixing_matrices():
    for merge, bound in (("hc", 1e-6), ("mhc", 1e-5)):
        rows, _ = seen(merge, name="mlp", depth=6)
        of = dict(iter(rows.groupby("quantity")))
        assert len(of["mixing"]) == 2 * 16 and len(of["modulus"]) == 2 * 4
        assert of["distance"]["value"].max() < bound
        leading = of["modulus"].loc[of["modulus"]["i"] == 0, "value"]
        np.testing.assert_allclose(leading, 1, atol=1e-5)


def test_a_probe_sees_delta_updates_and_scalars():
    rows, _ = seen("delta")
    assert rows["value"].tolist() == [1] * 9 and set(rows["quantity"]) == {"beta"}
    rows, params = seen("pi_sigmoid_two_cells")
    found = rows.set_index(["block", "quantity"])["value"]
    assert found["stage2_block1", "a"] == float(params["stage2_block1"]["merge"]["a"]) == pytest.approx(-np.log(2))
    assert found["stage3_block1", "p0"] == 0.5 and len(found) == 9
    assert seen("mul")[0].empty


def test_the_connection_of_the_page_is_a_net(monkeypatch):
    """Two blocks without a change of shape: velocities add up."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    monkeypatch.setattr(merges, "MERGES", dict(MERGES))
    monkeypatch.setattr(build_module, "MERGES", merges.MERGES)
    names: dict = {}
    exec(code, names)
    config = names["get_config"]()
    config.model.update({"name": "mlp", "depth": 6, "width": 8})
    net, x = build(config.model, 10), jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = net.init(jax.random.key(0), x)
    _, points = apply_with_points(net, variables, x)
    first, second = points.values()
    close(second.s, first.s + first.f)
    head = variables["params"]["head"]
    last = second.s + second.f + 0.5 * first.f
    close(net.apply(variables, x), last @ head["kernel"] + head["bias"][None])


def test_groups_of_merges_by_name():
    old = [name for name, merge in MERGES.items() if not merge.recent]
    assert flags.merges("all", MERGES) == old and flags.merges("streams", MERGES) == RECENT
    assert flags.merges("mul,core,x0", MERGES) == [
        "mul",
        *(m for m in flags.merges("core", MERGES) if m != "mul"),
        "x0",
    ]
    assert flags.merges("all,streams", MERGES) == old + RECENT
    with pytest.raises(ConfigError, match="unknown 'mull'; choose from core, streams, all, add, add_bn"):
        flags.merges("mull", MERGES)
