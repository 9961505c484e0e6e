"""The empirical kernel against explicit Jacobians and neural-tangents, in every layout its blocks can take."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from resjax import config as base
from resjax.config import ConfigError
from resjax.models import build
from resjax.models.frozen import calibrated, frozen
from resjax.ntk.empirical import LIBRARY, MODES, Shape, empirical_ntk, flat
from resjax.ntk.factors import linear_layers


def dense(params, x):
    """Two layers, three logits; more than one leaf, and one above the size of those that are joined."""
    h = jnp.tanh(x @ params["w1"])
    return jnp.einsum("nh,hkc->nc", h, params["w2"]) + jnp.einsum("nc,c->nc", jnp.ones((len(x), 3)), params["b"])


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        "w1": jax.random.normal(keys[0], (5, 6)),
        "w2": jax.random.normal(keys[1], (6, 300, 3)) / 40,
        "b": jax.random.normal(keys[2], (3,)),
    }
    return params, jax.random.normal(keys[3], (11, 5)), jax.random.normal(keys[4], (7, 5))


@partial(jax.jit, static_argnums=0)
def whole_jacobian(f, params, x):
    return jax.jacobian(f)(params, x)


def explicit(f, params, x1, x2):
    """[n1, n2, C, C] in float64 from whole Jacobians."""
    rows = []
    for x in (x1, x2):
        jacobian = jax.tree.leaves(whole_jacobian(f, params, x))
        rows.append(np.concatenate([np.asarray(leaf, float).reshape(*leaf.shape[:2], -1) for leaf in jacobian], 2))
    return np.einsum("icp,jdp->ijcd", *rows)


def close(kernel, expected, tolerance=6e-6):  # of small matrices XLA adds up the products one after another
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("block_size", [None, 1, 2, 3, 4, 7, 11, 64])
def test_symmetric_kernels_in_blocks_of_any_size(problem, block_size):
    params, x, _ = problem
    kernel = empirical_ntk(dense, params, x, block_size=block_size)
    assert kernel.shape == (11, 11, 3, 3) and kernel.dtype == np.float64
    close(kernel, explicit(dense, params, x, x))
    np.testing.assert_array_equal(kernel, kernel.transpose(1, 0, 3, 2))


@pytest.mark.parametrize("block_size", [None, 2, 3, 64])
def test_two_sets_of_samples(problem, block_size):
    params, x1, x2 = problem
    close(empirical_ntk(dense, params, x1, x2, block_size=block_size), explicit(dense, params, x1, x2))
    close(empirical_ntk(dense, params, x2, x1, block_size=block_size), explicit(dense, params, x2, x1))


def test_little_memory_gives_the_same_kernel_in_more_groups(problem):
    params, x, _ = problem
    sample = 3 * sum(leaf.size for leaf in jax.tree.leaves(params)) * 4
    kernel_bytes = 11 * 11 * 9 * 8
    for samples in (5, 9, 14, 100):
        close(
            empirical_ntk(dense, params, x, max_memory=kernel_bytes + samples * sample), explicit(dense, params, x, x)
        )


def test_the_bound_on_memory_is_kept_in_what_is_allocated(monkeypatch, problem):
    """Counts the Jacobians alive at any moment: those of a group, and the block that streams past."""
    from resjax.ntk import empirical

    most, original = [0], empirical.factors

    def counting(f, params, x_Bx, mode):
        out = original(f, params, x_Bx, mode)
        now = sum(a.nbytes for a in jax.live_arrays() if a.ndim == 2 and a.shape[0] == 3 * len(x_Bx))
        most[0] = max(most[0], now)
        return out

    monkeypatch.setattr(empirical, "factors", counting)
    params, _, _ = problem
    x = jax.random.normal(jax.random.key(9), (64, 5))
    sample = 3 * sum(leaf.size for leaf in jax.tree.leaves(params)) * 4
    limit = 64 * 64 * 9 * 8 + 12 * sample
    empirical_ntk(dense, params, x, max_memory=limit, devices=jax.local_devices()[:1])
    assert 0 < most[0] <= 12 * sample < 64 * sample


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("pairs", [0, 64**2])
def test_memory_for_single_samples_and_their_product_is_enough(pairs, devices):
    """The product of two blocks grows with the square of a block: where 32 samples do not fit, fewer may."""
    from resjax.ntk.empirical import _Plan

    shape = Shape(n1=64, n2=64, C=10, rows=10, sample_bytes=3_000_000, pairs=pairs, symmetric=True)
    least = shape.kernel_bytes + devices * (4 * shape.sample_bytes + 8 * pairs * 10**2)
    assert _Plan.of(shape, None, least, devices) == (1, 1)
    with pytest.raises(ConfigError, match=f"it needs {least / 2**20:.1f} MiB"):
        _Plan.of(shape, None, least - devices, devices)
    for memory in range(least, 40 * least, least // 2):
        block, group = _Plan.of(shape, None, memory, devices)
        held = (3 + group) * block * shape.sample_bytes + 8 * pairs * (10 * block) ** 2
        assert shape.kernel_bytes + devices * held <= memory


def test_shortcuts(problem):
    params, x1, x2 = problem
    full = explicit(dense, params, x1, x2)
    close(empirical_ntk(dense, params, x1, x2, mode="trace"), np.einsum("ijcc->ij", full) / 3)
    close(empirical_ntk(dense, params, x1, x2, mode="pseudo"), full.sum((2, 3)) / 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("implementation", LIBRARY)
def test_neural_tangents_agrees(problem, implementation, mode):
    params, x1, x2 = problem
    ours = empirical_ntk(dense, params, x1, x2, mode=mode)
    close(empirical_ntk(dense, params, x1, x2, mode=mode, implementation=implementation), ours)


@cache
def small_net(merge, **entries):
    """Without the third stage if it is a ResNet; images of 4x4 become maps of 2x2 even so."""
    config = base.base()
    config.model.update({"merge": merge, "width": 32} | entries)
    net = build.build(config.model, 3)
    net = net.clone(stages=net.stages[:2])
    x = jax.random.normal(jax.random.key(1), (6, 4, 4, 1))
    return net, calibrated(net, net.init(jax.random.key(2), x), x), x


def test_our_mlp_agrees_with_neural_tangents():
    net, variables, x = small_net("mul_bn1", name="mlp", depth=6)
    f, params = frozen(net, variables)
    close(empirical_ntk(f, params, x, implementation="structured_derivatives"), empirical_ntk(f, params, x))


def test_calibrated_statistics_are_those_of_the_batch():
    net, variables, x = small_net("mul_bn1")
    logits = jax.jit(net.apply)
    train_logits, _ = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))(variables, x)
    np.testing.assert_allclose(logits(variables, x), train_logits, rtol=2e-4, atol=2e-4)
    plain = net.init(jax.random.key(2), x)
    assert not np.allclose(logits(plain, x), train_logits, atol=1e-2)
    far = plain | {"batch_stats": jax.tree.map(lambda leaf: leaf + 1e8, plain["batch_stats"])}
    for old, new in zip(*(jax.tree.leaves(calibrated(net, v, x)["batch_stats"]) for v in (plain, far)), strict=True):
        np.testing.assert_array_equal(old, new)  # whatever was there, no digit is lost
    without = small_net("mul", name="mlp", norm="ln")
    assert calibrated(without[0], without[1], x) is without[1]


def test_replicas_share_a_compilation():
    from resjax.ntk.factors import factors

    net, variables, x = small_net("mul_bn1", name="mlp", depth=6)
    empirical_ntk(*frozen(net, variables), x)
    compiled = factors._cache_size()
    empirical_ntk(*frozen(net, jax.tree.map(lambda leaf: 2 * leaf, variables)), x)
    assert factors._cache_size() == compiled


def relative(f, params, x):
    """Error of the kernel over its size, and the layers that entered by their structure."""
    expected = explicit(f, params, x, x)
    kernel = empirical_ntk(f, params, x)
    return np.abs(kernel - expected).max() / np.abs(expected).max(), linear_layers(f, params, x[:1])


class Squared(nn.Dense):
    """Not linear in its weights, though of the family."""

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.normal(), (x.shape[-1], self.features)) ** 2


class Nets:
    """Functions of one Dense layer's variables, [n, 9] -> [n, c], and whether its structure may be used."""

    layer, other = nn.Dense(9, name="d"), nn.Dense(9, name="e")

    @classmethod
    def cases(cls):
        apply = cls.layer.apply
        return {
            "plain": (lambda p, x: apply({"params": p}, x), 1),
            "by keyword": (lambda p, x: apply({"params": p}, inputs=x), 1),
            "tied": (lambda p, x: jnp.tanh(apply({"params": p}, x)) @ p["kernel"].T, 0),
            "scaled": (lambda p, x: apply({"params": jax.tree.map(lambda leaf: 3 * leaf, p)}, x), 0),
            "called twice": (lambda p, x: apply({"params": p}, jnp.tanh(apply({"params": p}, x))), 0),
            "in two modules": (lambda p, x: apply({"params": p}, jnp.sin(cls.other.apply({"params": p}, x))), 0),
            "decayed": (lambda p, x: apply({"params": p}, x) + jnp.sum(p["kernel"] ** 2), 0),
            "jitted": (lambda p, x: jax.jit(lambda p, x: apply({"params": p}, x))(p, x), 0),
            "derived": (lambda p, x: Squared(9).apply({"params": {"kernel": p["kernel"]}}, x), 0),
        }


@pytest.mark.parametrize("name", Nets.cases())
def test_structure_is_used_only_where_it_is_right(name):
    f, layers = Nets.cases()[name]
    x = jax.random.normal(jax.random.key(0), (5, 9))
    error, found = relative(f, Nets.layer.init(jax.random.key(1), x)["params"], x)
    assert error < 1e-6 and len(found) == layers


def test_every_layer_of_a_small_net_enters_right():
    # 1x1 and strided 3x3 convolutions down to maps of 2x2, dense layers with a bias
    net, variables, x = small_net("mul_bn1")
    f, params = frozen(net, variables)
    error, found = relative(f, params, x)
    assert error < 2e-6
    assert {"/".join(layer.path[-2:]) for layer in found} == {
        "shortcut/linear", "branch/linear1", "branch/linear2", "head",
    }  # fmt: skip


def test_products_have_full_precision_in_every_thread(problem):
    params, x, _ = problem
    seen = []

    def noting(params, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return dense(params, x)

    empirical_ntk(noting, params, x)
    assert "highest" in seen[1:]  # the first call, of shapes alone, is elsewhere


def test_rows_can_lie_on_several_devices(problem):
    params, x, _ = problem
    devices = jax.local_devices() * 3  # the same device three times: three threads, groups of their own
    close(empirical_ntk(dense, params, x, devices=devices, block_size=2), explicit(dense, params, x, x))


def test_flat_goes_sample_by_sample(problem):
    params, x, _ = problem
    kernel = empirical_ntk(dense, params, x)
    matrix = flat(kernel)
    assert matrix[3 * 2 + 1, 3 * 5 + 2] == kernel[2, 5, 1, 2]
    assert np.linalg.eigvalsh(matrix)[0] > -1e-5 * np.trace(matrix)
    np.testing.assert_array_equal(flat(matrix), matrix)


def bad(problem, message, **changes):
    params, x, _ = problem
    arguments = {"apply_fn": dense, "params": params, "x1": x} | changes
    with pytest.raises(ConfigError, match=message) as error:
        empirical_ntk(**arguments)
    assert "\n" not in str(error.value)


def test_bad_input_gets_one_line_with_the_sizes(problem):
    params, x, x2 = problem
    bad(problem, "choose from full, trace, pseudo", mode="both")
    bad(problem, "choose from blocked", implementation="fast")
    bad(problem, r"x1 \(11, 5\) and x2 \(7, 4\) differ", x2=x2[:, :4])
    bad(problem, r"no samples in x1 \(0, 5\)", x1=x[:0])
    bad(problem, r"must give logits \[n, C\]", apply_fn=lambda p, x: jnp.sum(dense(p, x), 1))
    bad(problem, r"of 1089 entries of the kernel are not finite \(11 x 11", x1=x.at[4, 0].set(jnp.nan))
    bad(problem, r"max_memory=0.0 MiB is too little for a kernel of 11 x 11 samples with 3 rows", max_memory=20_000)
    bad(problem, "take fewer samples or classes", max_memory=100_000, block_size=8)
    bad(problem, "max_memory=nan: must be a positive whole number", max_memory=float("nan"))
    bad(problem, "block_size=0: must be", block_size=0)


def test_a_partial_carries_its_arrays_as_arguments(problem):
    params, x, _ = problem
    shifted = Partial(lambda shift, p, x: dense(p, x + shift), jnp.ones(5)[None])
    close(empirical_ntk(shifted, params, x), explicit(dense, params, x + 1, x + 1))
