"""The kernel in pieces is the class-summed kernel, survives interruptions, and keeps to its files and its memory."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resjax.config import ConfigError
from resjax.ntk import in_pieces
from resjax.ntk.empirical import Shape, empirical_ntk
from resjax.ntk.factors import linear_layers
from resjax.ntk.in_pieces import Plan, kernel_in_pieces

N, C, P = 23, 6, 5 * 8 + 8 * 40 * 6
ROOMY = 2**26


def dense(params, x):
    """Two layers and six logits; more than one leaf."""
    return jnp.einsum("nh,hkc->nc", jnp.tanh(x @ params["w1"]), params["w2"])


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w1": jax.random.normal(keys[0], (5, 8)), "w2": jax.random.normal(keys[1], (8, 40, C)) / 40}
    x = jax.random.normal(keys[2], (N, 5))
    return params, x, empirical_ntk(dense, params, x, mode="trace")


def close(kernel, expected):
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(kernel, kernel.T)


def record(path):
    return json.loads(path.with_suffix(".json").read_text())


@pytest.fixture
def counted(monkeypatch):
    """The start and number of logits of every block of Jacobians; raises KeyboardInterrupt at number `stop`."""
    calls, original = [], in_pieces._padded

    def counting(x, start, block):
        if len(calls) == counting.stop:
            raise KeyboardInterrupt
        calls.append(start)
        return original(x, start, block)

    counting.stop = None
    monkeypatch.setattr(in_pieces, "_padded", counting)
    return calls, counting


@pytest.mark.parametrize("block", [None, 1, 4, 7, 16, 23, 64])
def test_blocks_of_any_size(tmp_path, problem, block):
    params, x, expected = problem
    path = tmp_path / "k.npy"
    close(kernel_in_pieces(dense, params, x, path, block=block, max_memory=ROOMY), expected)
    assert record(path)["plan"]["rows"] >= N
    close(np.load(path), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.json", "k.npy"]


def test_linear_layers_enter_by_their_structure(tmp_path, problem):
    _, x, _ = problem
    net = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(C)])
    params = net.init(jax.random.key(3), x)

    def f(params, x):
        return net.apply(params, x)

    assert len(linear_layers(f, params, x[:1])) == 2
    kernel = kernel_in_pieces(f, params, x, tmp_path / "k.npy", block=4, max_memory=12 * 2**10)
    assert record(tmp_path / "k.npy")["plan"]["rows"] < N
    close(kernel, empirical_ntk(f, params, x, mode="trace"))


@pytest.mark.parametrize("kib", [80, 100, 150, 250, 800])
def test_little_memory_gives_the_same_kernel_in_more_strips(tmp_path, problem, kib):
    params, x, expected = problem
    path = tmp_path / "k.npy"
    close(kernel_in_pieces(dense, params, np.asarray(x), path, block=2, max_memory=kib * 2**10), expected)
    plan = record(path)["plan"]
    held = plan["rows"] * (4 * plan["logits"] * P + 4 * N)
    assert 0 < held < kib * 2**10 and (plan["rows"] < N) == (kib < 200)


def test_the_plan_is_the_cheapest_that_fits():
    shape = Shape(10_000, 10_000, 10, 1, 10 * 4 * 78_000, 0, True)
    bytes_of = {g: g * 4 * 78_000 for g in (1, 2, 5, 10)}
    plan = in_pieces._planned(shape, bytes_of, None, 2 * 2**30, None)
    assert plan.logits == 1 and len(plan.strips(10_000)) == 2
    used = plan.rows * (4 * 78_000 + 40_000)
    assert 0.9 * 2**31 < used + plan.block * 4 * 78_000 < 2**31
    assert 1.2 < plan.blocks(10_000) * plan.block / 10_000 < 1.51
    assert in_pieces._planned(shape, bytes_of, None, 2**36, None)[::2] == (10, 10_112)
    n = shape._replace(n1=1_000, n2=1_000)
    assert in_pieces._planned(n, bytes_of, None, 2 * 2**30, None)[::2] == (5, 1_024)


def test_plans_count_what_they_compute():
    plan = Plan(2, 4, 8)
    assert plan.strips(19) == [(0, 8), (8, 16), (16, 19)]
    assert plan.blocks(19) == 5 + 3 + 1
    assert plan.cost(19, 10) == 9 * 4 * (10 + 0.5 * 5)


def test_an_interrupted_kernel_continues_after_its_pieces(tmp_path, problem, counted):
    params, x, expected = problem
    (calls, counting), path = counted, tmp_path / "k.npy"
    arguments = {"block": 4, "max_memory": 220 * 2**10}
    kernel_in_pieces(dense, params, x, tmp_path / "other.npy", **arguments)
    plan = Plan(*(record(tmp_path / "other.npy")["plan"][name] for name in Plan._fields))
    groups, first = C // plan.logits, -(-N // plan.block)  # blocks of one group of the first strip
    assert groups > 1 and len(plan.strips(N)) > 1
    assert len(calls) == 1 + groups * plan.blocks(N)  # one more for the shapes

    calls.clear()
    counting.stop = 1 + first + 2  # in the second group
    with pytest.raises(KeyboardInterrupt):
        kernel_in_pieces(dense, params, x, path, **arguments)
    assert not path.exists() and len([*(tmp_path / "k.pieces").iterdir()]) == 1
    calls.clear()
    counting.stop = 1 + (groups - 1) * first  # before the second strip
    with pytest.raises(KeyboardInterrupt):
        kernel_in_pieces(dense, params, x, path, **arguments)
    calls.clear()
    counting.stop = None
    close(kernel_in_pieces(dense, params, x, path, **arguments), expected)
    assert len(calls) == 1 + groups * (plan.blocks(N) - first)
    calls.clear()
    close(kernel_in_pieces(dense, params, x, path, **arguments), expected)
    assert not calls


def interrupted(tmp_path, problem, counted):
    """The path of a kernel that was begun in blocks of 4."""
    params, x, _ = problem
    (_, counting), path = counted, tmp_path / "k.npy"
    counting.stop = 10
    with pytest.raises(KeyboardInterrupt):
        kernel_in_pieces(dense, params, x, path, block=4, max_memory=220 * 2**10)
    counting.stop = None
    return path


def test_more_memory_continues_what_less_began(tmp_path, problem, counted):
    params, x, expected = problem
    path = interrupted(tmp_path, problem, counted)
    refused(path, problem, "begun with max_memory=225280, now it is 102400", max_memory=100 * 2**10)
    close(kernel_in_pieces(dense, params, x, path, max_memory=ROOMY), expected)
    assert record(path)["plan"]["block"] == 4


def refused(path, problem, message, **changes):
    params, x, _ = problem
    arguments = {"apply_fn": dense, "params": params, "x": x, "max_memory": ROOMY} | changes
    with pytest.raises(ConfigError, match=message) as error:
        kernel_in_pieces(path=path, **arguments)
    assert "\n" not in str(error.value)


def test_foreign_files_are_refused(tmp_path, problem):
    params, x, _ = problem
    path = tmp_path / "k.npy"
    kernel_in_pieces(dense, params, x, path)
    before = path.read_bytes()
    foreign = "k.npy: is the kernel of another net or of other samples"
    refused(path, problem, foreign, params=jax.tree.map(lambda leaf: 1.0001 * leaf, params))
    refused(path, problem, foreign, x=x.at[-1, -1].add(1e-3))
    refused(path, problem, foreign, x=x[:-1])
    refused(path, problem, foreign, apply_fn=lambda p, x: dense(p, jnp.sin(x)))  # the same leaves
    path.with_suffix(".json").unlink()
    refused(path, problem, "k.json, which says what it is of, is missing")
    assert path.read_bytes() == before


def test_truncated_files_are_refused(tmp_path, problem, counted):
    params, x, expected = problem
    path = interrupted(tmp_path, problem, counted)
    piece = next((tmp_path / "k.pieces").iterdir())
    piece.write_bytes(piece.read_bytes()[:-10])
    refused(path, problem, f"{piece.name}: damaged .* remove it")
    piece.unlink()
    close(kernel_in_pieces(dense, params, x, path), expected)
    path.write_bytes(path.read_bytes()[:-10])
    refused(path, problem, "k.npy: damaged .* remove it")
    np.save(path, np.zeros((3, 3), np.float32))
    refused(path, problem, r"has float32 \(3, 3\) and should have float32 \(23, 23\)")
    path.with_suffix(".json").write_text("{")
    refused(path, problem, "k.json: not JSON")


def test_bad_input_gets_one_line(tmp_path, problem):
    _, x, _ = problem
    refused(tmp_path / "k.txt", problem, "must end with .npy")
    refused(tmp_path / "k.npy", problem, "block=0: must be a positive whole number", block=0)
    refused(tmp_path / "k.npy", problem, "max_memory=0.0 MiB is too little for 23 samples", max_memory=10_000)
    refused(tmp_path / "k.npy", problem, "the logits are not finite", x=x.at[0, 0].set(jnp.nan))
    refused(tmp_path / "k.npy", problem, "not finite for samples from 0 and from", x=x.at[20, 0].set(jnp.nan))
    assert not (tmp_path / "k.npy").exists()
