"""Each merge as a function of two arrays: identity, gradients, constants of the theory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resjax.models.merges import CRITICAL_ALPHA, EPS, MERGES, register

CORE = {"add", "mul", "mul_bn", "mul_bn1", "gate_sig", "gate_sig_bn", "sig_sig", "se"}
CATALOGUE = CORE | {
    "add_bn", "add_zero", "mul_res", "mul_rezero", "gate_2sig", "gate_alpha", "gate_tanh", "gate_exp", "pi", "pi_alpha",
    "sort", "geo", "max", "iand", "highway", "shortcut_gate", "arl", "nal", "cbam", "eca", "simam", "homotopy",
    "gate_granularity", "swap_fwdmul_bwdadd", "swap_fwdadd_bwdmul", "stopgrad_s", "stopgrad_f",
}  # fmt: skip
ELEMENTWISE = [name for name, merge in MERGES.items() if not merge.extra and not merge.connection]


def more(merge):
    """The keywords of `combine` at init."""
    return dict(merge.params) | ({"t": 0.0} if merge.scheduled else {})


@pytest.fixture
def s_f():
    return jax.random.normal(jax.random.key(0), (2, 1000))


@pytest.mark.parametrize(("combine", "declared", "words"), [
    (lambda s, f: s, {"identity": "sometimes"}, "identity='sometimes'; choose from exact, affine, near, no"),
    (lambda s, f: s, {}, "identity=None; choose from"),
    (lambda s, f, a: s, {"identity": "no"}, "combine gets s, f by what is declared: missing a required argument: 'a'"),
    (lambda s, f: s, {"identity": "no", "params": {"a": 1.0}}, "combine gets s, f, a by what is declared"),
    (lambda s, f: s, {"identity": "no", "scheduled": True}, "combine gets s, f, t by what is declared"),
])  # fmt: skip
def test_a_merge_that_contradicts_itself_is_refused_in_one_line(combine, declared, words):
    with pytest.raises(ValueError, match=re.escape(words)) as e:
        register("contradicts", combine, "?", **declared)
    assert "contradicts" in str(e.value) and "\n" not in str(e.value) and "contradicts" not in MERGES


def test_the_catalogue_is_complete():
    assert {name for name, merge in MERGES.items() if not merge.recent} == CATALOGUE
    assert {name for name, merge in MERGES.items() if merge.core} == CORE


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered already"):
        register("add", lambda s, f: s - f, "s - f", identity="exact")


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_identity_where_the_branch_is_zero(name, s_f):
    merge, s = MERGES[name], s_f[0]
    if merge.shortcut_norm:
        s = s + merge.shortcut_bias
    f = jnp.full_like(s, merge.branch_bias)  # what the branch's norm gives for zero
    z = np.asarray(merge.combine(s, f, **more(merge)))
    exact = np.array_equal(z, np.asarray(s)) and not merge.shortcut_norm
    assert exact == (merge.identity == "exact")
    slope, rest = np.polyfit(s, z, 1, full=True)[:2]
    affine = bool(rest < 1e-8) and abs(slope[0]) > 1e-3
    assert affine == (merge.identity in ("exact", "affine", "near"))
    if merge.identity == "near":
        assert 0 < np.abs(z - s).max() <= 1.01 * np.sqrt(EPS)


@pytest.mark.parametrize(
    "name, second_moment",
    [
        ("mul", 1.0), ("gate_sig", 0.293379), ("gate_sig_bn", 0.293379), ("gate_2sig", 1.1735), ("gate_alpha", 1.0),
        ("gate_tanh", 1.3943), ("arl", 2.2934), ("nal", 0.293379), ("sig_sig", 0.086071), ("add_bn", 2.0),
    ],
)  # fmt: skip
def test_second_moment_for_gaussian_paths(name, second_moment):
    # E z^2 of MERGES' predictions at init by Gauss-Hermite quadrature; the shortcut and the branch are N(0, 1).
    x, w = np.polynomial.hermite_e.hermegauss(80)
    w = w / w.sum()
    z = MERGES[name].combine(x[:, None], x[None, :])
    assert np.sum(np.asarray(z, float) ** 2 * w[:, None] * w[None, :]) == pytest.approx(second_moment, rel=1e-4)


def test_mul_bn1_has_mean_one_and_variance_two_g_squared_plus_g_to_the_fourth():
    g, (x, w) = 0.3, np.polynomial.hermite_e.hermegauss(20)
    w = w / w.sum()
    z = MERGES["mul_bn1"].combine(1 + g * x[:, None], 1 + g * x[None, :])
    weights = w[:, None] * w[None, :]
    mean = np.sum(z * weights)
    assert mean == pytest.approx(1)
    assert np.sum(z**2 * weights) - mean**2 == pytest.approx(2 * g**2 + g**4)


def test_the_critical_gate_is_the_shifted_sigmoid():
    f = jnp.linspace(-200, 200, 4001)
    expected = CRITICAL_ALPHA * jax.nn.sigmoid(f - jnp.log(CRITICAL_ALPHA - 1))
    np.testing.assert_allclose(MERGES["gate_alpha"].combine(jnp.ones_like(f), f), expected, rtol=1e-5, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda x: MERGES["gate_alpha"].combine(1.0, x)))(f)
    assert np.isfinite(slope).all()


def vjp(name, s, f):
    z, backward = jax.vjp(MERGES[name].combine, s, f)
    return z, backward(jnp.cos(z))


@pytest.mark.parametrize("swap, forward, backward", [
    ("swap_fwdmul_bwdadd", "mul", "add"), ("swap_fwdadd_bwdmul", "add", "mul"),
])  # fmt: skip
def test_swaps_go_forwards_as_one_parent_and_backwards_as_the_other(swap, forward, backward, s_f):
    s, f = s_f
    z, grads = vjp(swap, s, f)
    np.testing.assert_array_equal(z, MERGES[forward].combine(s, f))
    for got, expected in zip(grads, jax.vjp(MERGES[backward].combine, s, f)[1](jnp.cos(z)), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert not np.allclose(grads[0], vjp(forward, s, f)[1][0])


@pytest.mark.parametrize("name, blocked", [("stopgrad_s", 0), ("stopgrad_f", 1)])
def test_stopgrad_blocks_one_path(name, blocked, s_f):
    z, grads = vjp(name, *s_f)
    z_mul, grads_mul = vjp("mul", *s_f)
    np.testing.assert_array_equal(z, z_mul)
    np.testing.assert_array_equal(grads[blocked], 0)
    np.testing.assert_array_equal(grads[1 - blocked], grads_mul[1 - blocked])


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_gradients_are_finite_also_at_zero(name, s_f):
    merge = MERGES[name]
    s, f = (jnp.concatenate([a, jnp.zeros(3), jnp.array([50.0, -50.0])]) for a in s_f)
    z, backward = jax.vjp(lambda s, f: merge.combine(s, f, **more(merge)), s, f)
    assert all(np.isfinite(g).all() for g in (z, *backward(jnp.ones_like(z))))


def test_homotopy_goes_from_the_sum_to_the_product(s_f):
    combine = MERGES["homotopy"].combine
    np.testing.assert_array_equal(combine(*s_f, t=0.0), MERGES["add"].combine(*s_f))
    np.testing.assert_allclose(combine(*s_f, t=1.0), MERGES["mul"].combine(*s_f), atol=1e-6)
