"""Mean-field theory of signal at initialisation: constants of the merges, closed forms, and real blocks."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import relu, sigmoid
from scipy.integrate import quad
from scipy.special import gamma
from scipy.stats import norm as normal

from resjax.config import ConfigError
from resjax.models.layers import Linear, Norm
from resjax.models.merges import EPS, MERGES, Merge
from resjax.models.resnet import Block
from resjax.theory.laws import Law, gaussian
from resjax.theory.mean_field import block, blocks, branch_constant, critical, safe_depth

C = np.pi / (np.pi - 1)


def normal_mean(function):
    return quad(lambda x: function(x) * normal.pdf(x), -12, 12, epsabs=1e-13, limit=200)[0]


def sig(x):
    return 1 / (1 + np.exp(-x))


SIG2 = normal_mean(lambda x: sig(x) ** 2)
SLOPE2 = normal_mean(lambda x: (sig(x) * (1 - sig(x))) ** 2)
TANH2 = 1 + normal_mean(lambda x: np.tanh(x) ** 2)
TANH_SLOPE2 = normal_mean(lambda x: np.cosh(x) ** -4.0)
EXP2 = np.exp(2 * 0.3**2)


def test_the_printed_constants():
    np.testing.assert_allclose((SIG2, SLOPE2, C), (0.293379, 0.044836, 1.466942), atol=1e-6, rtol=0)
    np.testing.assert_allclose((np.sqrt(SLOPE2), 1 + C), (0.212, 2.467), atol=5e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "power", "A", "B"),
    [
        ("add", 2, 1, 1), ("add_bn", 2, 1, 1), ("add_zero", 1, 1, 0), ("mul", 1, 1, 1), ("mul_bn", 1, 1, 1),
        ("mul_bn1", 4, 2, 2), ("mul_res", 1, 1, 1), ("mul_rezero", 1, 1, 0), ("gate_sig", SIG2, SIG2, SLOPE2),
        ("gate_sig_bn", SIG2, SIG2, SLOPE2), ("gate_2sig", 4 * SIG2, 4 * SIG2, 4 * SLOPE2),
        ("iand", SIG2, SIG2, SLOPE2),
        ("gate_tanh", TANH2, TANH2, TANH_SLOPE2), ("gate_exp", EXP2, EXP2, EXP2), ("nal", SIG2, SIG2, SLOPE2),
        ("arl", 2 + SIG2, 2 + SIG2, SLOPE2), ("sig_sig", SIG2**2, SIG2 * SLOPE2, SIG2 * SLOPE2), ("pi", 3, 2, 2),
        ("pi_alpha", 2, 1, 1), ("max", 1, 0.5, 0.5), ("homotopy", 2, 1, 1), ("swap_fwdmul_bwdadd", 1, 1, 1),
        ("swap_fwdadd_bwdmul", 2, 1, 1), ("stopgrad_s", 1, 0, 1), ("stopgrad_f", 1, 1, 0),
        ("simam", 1 + sig(0.5) ** 2, 1, sig(0.5) ** 2),
    ],
)  # fmt: skip
def test_one_block_of_standard_normal_input(name, power, A, B):
    got, g2 = block(MERGES[name], gaussian()), MERGES[name].branch_scale ** 2
    a2 = g2 if MERGES[name].shortcut_norm else 1
    want = (power, A, B, a2 * A + C * g2 * B)
    np.testing.assert_allclose((got.z.power, got.A, got.B, got.gain), want, rtol=1e-6, atol=1e-9)


def test_a_sum_gains_variance_one_a_block():
    got = blocks(MERGES["add"], gaussian(), 5)
    q = np.arange(1, 6)
    np.testing.assert_allclose([b.z.variance for b in got], q + 1, rtol=1e-8)
    np.testing.assert_allclose([b.gain for b in got], 1 + C / q, rtol=1e-8)
    np.testing.assert_allclose([b.kurtosis_factor for b in got], 1, rtol=1e-5)
    second = [b.z.power for b in blocks(MERGES["pi"], gaussian(), 3)]
    np.testing.assert_allclose(second, [3, 5, 7], rtol=1e-8)


def test_a_product_keeps_its_power_and_triples_its_kurtosis():
    got = blocks(MERGES["mul"], gaussian(), 6)
    np.testing.assert_allclose([b.z.power for b in got], 1, rtol=1e-8)
    np.testing.assert_allclose([b.z.mean for b in got], 0, atol=1e-12)
    np.testing.assert_allclose([b.kurtosis_factor for b in got], 3, rtol=1e-4)
    np.testing.assert_allclose([b.gain for b in got], 1 + C, rtol=1e-8)
    size = np.exp(-(np.euler_gamma + np.log(2)) / 2)  # exp E[log |x|]
    assert size == pytest.approx(0.53, abs=5e-3)
    np.testing.assert_allclose([b.z.typical for b in got], size ** np.arange(2, 8), rtol=1e-3)
    np.testing.assert_allclose([b.gain for b in blocks(MERGES["mul_bn"], gaussian(), 3)], 1 + C, rtol=1e-8)


def test_layernorm_divides_by_power_and_batchnorm_by_variance():
    assert block(MERGES["mul"], gaussian(), norm="ln").gain == pytest.approx(2, rel=1e-8)
    h = gaussian(1, 0.5)
    assert block(MERGES["add"], h, norm="ln").gain == pytest.approx(1 + 1 / 1.25, rel=1e-8)
    assert block(MERGES["add"], h).gain == pytest.approx(1 + C / 0.25, rel=1e-8)
    assert block(MERGES["add_bn"], h, norm="ln").gain == pytest.approx(1 / 0.25 + 1 / 1.25, rel=1e-8)


@pytest.mark.parametrize(("g", "printed"), [(1, 1.645), (0.3, 1.287)])
def test_a_product_of_gates_around_one(g, printed):
    got = blocks(replace(MERGES["mul_bn1"], branch_scale=g), gaussian(), 3)[-1]
    assert got.z.mean == pytest.approx(1, rel=1e-8)
    assert got.z.variance == pytest.approx(2 * g**2 + g**4, rel=1e-8)
    assert got.gain == pytest.approx((1 + g**2) * (1 + C) / (2 + g**2), rel=1e-8)
    assert got.gain == pytest.approx(printed, abs=5e-4)


def test_mul_res_grows_by_its_scale():
    g, q0 = 0.3, 0.25
    for merge in (
        replace(MERGES["mul_res"], branch_scale=g),
        replace(MERGES["mul_rezero"], params={"alpha": g}),  # the same net with g = alpha
    ):
        got = blocks(merge, gaussian(std=np.sqrt(q0)), 4)
        np.testing.assert_allclose([b.z.power for b in got], q0 * (1 + g**2) ** np.arange(1, 5), rtol=1e-7)
        np.testing.assert_allclose([b.gain for b in got], 1 + g**2 * (1 + C), rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "power", "gain"),
    [
        ("gate_sig", 0.2934, None), ("gate_2sig", 1.1735, 1.437), ("gate_tanh", 1.3943, 2.076), ("arl", 2.2934, None),
        ("nal", 0.2934, None), ("gate_exp", EXP2, None),
    ],
)  # fmt: skip
def test_a_gate_multiplies_power_by_its_own(name, power, gain):
    got = blocks(MERGES[name], gaussian(), 4)
    np.testing.assert_allclose([b.z.power ** (1 / L) for L, b in enumerate(got, 1)], power, atol=5.1e-5)
    assert gain is None or got[-1].gain == pytest.approx(gain, abs=5e-4)


def test_normalised_shortcuts_repeat_the_same_block():
    for name, power, gain in (("gate_sig_bn", 0.2934, 1.224), ("add_bn", 2, 1.233)):
        for got in blocks(MERGES[name], gaussian(), 3)[1:]:
            assert got.z.power == pytest.approx(power, abs=5e-5)
            assert got.gain == pytest.approx(gain, abs=6e-4)
    got = block(MERGES["sig_sig"], gaussian())
    assert got.z.mean == pytest.approx(0.25, rel=1e-8)
    assert got.z.power == pytest.approx(0.0861, abs=5e-5)
    assert pytest.approx(got.B) == got.A == pytest.approx(0.0132, abs=5e-5)


def test_kinks_have_their_closed_forms():
    assert block(MERGES["max"], gaussian()).z.mean == pytest.approx(1 / np.sqrt(np.pi), rel=1e-6)
    got = block(replace(MERGES["max"], branch_bias=0.7, branch_scale=0.5), gaussian())
    distance, std = 0.7 / np.sqrt(1.25), np.sqrt(1.25)  # of f - s
    mean = 0.7 * normal.cdf(distance) + std * normal.pdf(distance)
    np.testing.assert_allclose((got.A, got.B, got.z.mean), (normal.sf(distance), normal.cdf(distance), mean), rtol=1e-5)
    assert block(MERGES["geo"], gaussian()).z.power == pytest.approx(2 / np.pi + EPS, rel=1e-7)
    around_one = block(MERGES["mul_bn1"], gaussian(), post_activation=relu)
    assert around_one.z.alive == pytest.approx(normal.cdf(1) ** 2 + normal.sf(1) ** 2, rel=1e-3)
    rectified = block(MERGES["add"], gaussian(), post_activation=relu)
    np.testing.assert_allclose((rectified.z.power, rectified.A, rectified.z.alive), (1, 0.5, 0.5), rtol=1e-6)


def test_sort_has_the_power_of_its_root_and_a_logarithmic_gain():
    def sort(eps):
        return replace(MERGES["sort"], combine=lambda s, f: s + f + jnp.sqrt(relu(s) * relu(f) + eps))

    def half(p):  # E relu(x)^p
        return 2 ** (p / 2) * gamma((p + 1) / 2) / (2 * np.sqrt(np.pi))

    want = 2 + 4 * half(1.5) * half(0.5) + half(1) ** 2
    assert block(sort(1e-14), gaussian()).z.power == pytest.approx(want, rel=1e-6)
    A = [block(sort(eps), gaussian()).A for eps in (1e-5, 1e-6)]
    assert (A[1] - A[0]) / np.log(10) == pytest.approx(1 / (8 * np.pi), rel=0.015)


def test_gates_with_a_map_of_their_own():
    def map_alone(name, **declared):
        return replace(MERGES[name], combine=lambda s, f, m: m + 0 * s, branch_scale=0.0, **declared)

    t = normal_mean(lambda u: sig(u - 6))
    assert block(map_alone("highway"), gaussian()).z.mean == pytest.approx(t, rel=1e-8)
    assert t == pytest.approx(0.0040, abs=5e-5)
    for norm, v in (("bn", 0.25), ("ln", 1.25)):  # only the gate is left of G
        got = block(map_alone("highway", extra_bias=0.0), gaussian(1, 0.5), norm=norm)
        assert got.gain == pytest.approx(SLOPE2 / v, rel=1e-7)
    got = block(map_alone("shortcut_gate", extra_bias=0.0), gaussian(1, 0.5))  # whose u has variance 2 E h^2
    power = normal_mean(lambda u: sig(np.sqrt(2.5) * u) ** 2)
    slope = normal_mean(lambda u: (sig(np.sqrt(2.5) * u) * sig(-np.sqrt(2.5) * u)) ** 2)
    np.testing.assert_allclose((got.z.power, got.gain), (power, 2 * slope), rtol=1e-5)
    assert block(map_alone("simam"), gaussian()).z.mean == pytest.approx(0.6225, abs=5e-5)


@pytest.mark.parametrize("name", ["se", "cbam", "eca", "gate_granularity"])
def test_a_map_that_mixes_units_is_refused(name):
    with pytest.raises(ValueError, match=f"merge '{name}': its map .* mixes many units or positions"):
        block(MERGES[name], gaussian())


def test_what_cannot_be_normalised_is_refused():
    with pytest.raises(ValueError, match="norm='gn': mean-field theory has bn and ln"):
        block(MERGES["add"], gaussian(), norm="gn")
    with pytest.raises(ValueError, match="variance 0: there is no signal left"):
        block(MERGES["add"], gaussian(1, 0))


def test_the_critical_gate():
    def family(alpha):
        return Merge("gate", lambda s, f: s * alpha * sigmoid(f - jnp.log(alpha - 1)), "", identity="exact")

    assert critical(family, 1.1, 3) == pytest.approx(1.475886, abs=1e-6)
    assert block(MERGES["gate_alpha"], gaussian()).z.power == pytest.approx(1, abs=1e-6)


def test_the_safe_depth_of_a_product_goes_like_one_over_g_squared():
    def mul_res(g):
        return replace(MERGES["mul_res"], branch_scale=g)

    for g in (0.2, 0.4):
        assert safe_depth(mul_res(g), gaussian()) == int(1 / np.log(1 + g**2 * (1 + C)))  # G leaves before E z^2
    assert safe_depth(mul_res(0.4), gaussian(), factor=2) == int(np.log(2) / np.log(1 + 0.16 * (1 + C)))
    assert safe_depth(mul_res(0.0), gaussian(), limit=5) == 5
    assert safe_depth(MERGES["gate_sig"], gaussian()) == 0


def test_the_branch_constant():
    assert branch_constant("bn") == pytest.approx(C, rel=1e-10)
    assert branch_constant("ln") == pytest.approx(1, rel=1e-10)
    np.testing.assert_allclose([branch_constant(n, jnp.square) for n in ("bn", "ln")], [2, 4 / 3], rtol=1e-9)
    assert block(MERGES["mul"], gaussian(), activation=jnp.square).gain == pytest.approx(3, rel=1e-8)


def test_a_rectified_product_halves_the_live_units():
    stem = gaussian().through(relu)
    dying = blocks(MERGES["mul"], stem, 4, post_activation=relu)
    np.testing.assert_allclose([b.z.alive for b in dying], 0.5 ** np.arange(2, 6), rtol=1e-9)
    kept = blocks(MERGES["mul"], stem, 3)  # without it what the stem left dead stays so
    np.testing.assert_allclose([b.z.alive for b in kept], 0.5, rtol=1e-9)
    assert block(MERGES["add"], stem).z.alive == pytest.approx(1)
    assert block(MERGES["add"], stem, post_activation=relu).z.alive == pytest.approx(0.625, rel=1e-6)
    gated = block(MERGES["gate_sig_bn"], stem, post_activation=relu)  # sparse, though no gate is shut
    assert gated.z.alive == pytest.approx(normal.sf(1 / np.sqrt(2 * np.pi)), rel=1e-3)


def test_a_law_keeps_its_moments_in_few_atoms():
    law = gaussian(0.3, 2).through(lambda x: x**3)
    few = law.compressed(64)
    assert few.x.size == few.w.size == 258 and few.w.min() >= 0
    for k in (0, 1, 2, 3):
        assert few.w @ few.x**k == pytest.approx(law.w @ law.x**k, rel=1e-10)
    assert few.kurtosis == pytest.approx(law.kurtosis, rel=1e-2)
    assert few.typical == pytest.approx(law.typical, rel=1e-2)
    atoms = Law(np.array([-2.0, 0, 0.5]), np.array([0.2, 0.5, 0.3])).compressed(8)
    assert atoms.alive == pytest.approx(0.5)
    np.testing.assert_allclose(np.unique(atoms.x[atoms.w > 0].round(12)), [-2, 0, 0.5])


# --- Against real blocks, which backpropagate random gradients --------------------------------------------------
def measure(merge, h, depth, norm, post_activation="none"):
    """E z^2, G and the share of live units of each block, [depth, 3]."""
    net = Block(
        features=h.shape[1], stride=1, merge=merge, scale=merge.branch_scale, gate_bias=merge.extra_bias,
        granularity="channel", shortcut="B", activation="relu", post_activation=post_activation, dropout=0.0,
        linear=partial(Linear), norm=partial(Norm, norm), dtype=jnp.float32,
    )  # fmt: skip
    out = []
    for index, key in enumerate(jax.random.split(jax.random.key(1), depth)):
        own, (init, probe) = net.clone(index=index), jax.random.split(key)
        apply = partial(own.apply, own.init(init, h, True), train=True, mutable=["batch_stats"])
        z, backward = jax.vjp(lambda h, apply=apply: apply(h)[0], h)
        gradient = jax.random.normal(probe, z.shape)
        gain = jnp.sum(backward(gradient)[0] ** 2) / jnp.sum(gradient**2)
        out.append([jnp.mean(z**2), gain, jnp.mean(z != 0)])
        h = z
    return np.array(out)


def predicted(signals):
    return np.array([[b.z.power, b.gain, b.z.alive] for b in signals])


@pytest.mark.parametrize(
    ("name", "depth"),
    [("mul", 2), ("highway", 1), *(pytest.param(name, 2, marks=pytest.mark.slow) for name in ("gate_sig_bn", "sort"))],
)
def test_blocks_with_batchnorm(name, depth):
    merge = MERGES[name] if name != "highway" else replace(MERGES[name], extra_bias=0.0)  # at -6 it is the identity
    h = jax.random.normal(jax.random.key(0), (512, 1024))
    want = predicted(blocks(merge, gaussian(), depth))
    np.testing.assert_allclose(measure(merge, h, depth, "bn"), want, rtol=0.03)


def test_blocks_with_batchnorm_and_relus_around_them():
    h = relu(jax.random.normal(jax.random.key(0), (512, 1024)))
    want = predicted(blocks(MERGES["gate_sig_bn"], gaussian().through(relu), 2, post_activation=relu))
    np.testing.assert_allclose(measure(MERGES["gate_sig_bn"], h, 2, "bn", "relu"), want, rtol=0.03)


@pytest.mark.parametrize(("name", "depth"), [
    ("branch_gate_group", 2), ("glu", 2),
    *(pytest.param(*row, marks=pytest.mark.slow)
      for row in (("mul_bn1", 4), ("gate_2sig", 4), ("pi_sigmoid", 2), ("laurel_lr", 1), ("branch_gate", 2))),
])  # fmt: skip
def test_blocks_with_layernorm(name, depth):
    h = jax.random.normal(jax.random.key(0), (512, 1024))
    want = predicted(blocks(MERGES[name], gaussian(), depth, norm="ln"))
    np.testing.assert_allclose(measure(MERGES[name], h, depth, "ln"), want, rtol=0.05)


def test_what_the_theory_does_not_cover():
    for name, words in {"attnres": "its connection", "pure": "its branch, whose output is not Gaussian"}.items():
        with pytest.raises(ConfigError, match=f"merge '{name}': the theory of two operands does not cover {words}"):
            block(MERGES[name], gaussian())
