"""Signal and gradients from block to block: against theory, by hand, and in ResNet-20 with its products."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn import relu

from resjax import config
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.models.frozen import calibrated
from resjax.models.merges import MERGES
from resjax.probes.blocks.merge_points import apply_with_points
from resjax.probes.blocks.propagation import propagation
from resjax.theory.laws import gaussian
from resjax.theory.mean_field import blocks

pytestmark = pytest.mark.usefixtures("each_key_once")

SIGNAL = ["mean", "power", "kurtosis", "log_norm_mean", "log_norm_std", "typical", "alive", "dead_units"]


def initialised(x, **kwargs):
    """A net of ten classes and its variables."""
    model = config.base().model
    model.update(kwargs)
    net = build(model, 10)
    return net, jax.jit(net.init)(jax.random.key(1), x)


# --- Wide nets against theory -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "norm", "depth", "columns", "rtol"),
    [
        ("mul_bn1", "ln", 4, ["mean", "power", "typical", "alive"], 0.05),
        ("gate_sig_bn", "bn", 2, ["power", "kurtosis", "typical", "alive"], 0.03),
    ],
)
@pytest.mark.slow
def test_wide_nets_do_what_theory_says(name, norm, depth, columns, rtol):
    x = jax.random.normal(jax.random.key(0), (512, 1024))
    kwargs = {"name": "mlp", "width": 1024, "merge": name, "norm": norm, "depth": 2 + 2 * depth}
    got = propagation(*initialised(x, **kwargs), x, jax.random.key(2))
    want = blocks(MERGES[name], gaussian().through(relu), depth, norm=norm)
    assert list(got["block"]) == [f"stage1_block{j}" for j in range(1, depth + 1)]
    for column in columns:
        np.testing.assert_allclose(got[column], [getattr(b.z, column) for b in want], rtol=rtol, err_msg=column)
    np.testing.assert_allclose(got["gain"][1:], [b.gain for b in want[1:]], rtol=rtol)
    assert np.isnan(got["gain"][0])


# --- ResNet-20 at initialisation --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(3), (128, 8, 8, 1))


@pytest.fixture(scope="module")
def variables(images):
    """Of ResNet-20 with shortcut B; with A it has the same, but for the shortcuts' own."""
    return initialised(images, merge="mul", depth=20)[1]


def resnet20(**kwargs):
    model = config.base().model
    model.update({"merge": "mul", "depth": 20} | kwargs)
    return build(model, 10)


@pytest.mark.slow
def test_a_rectified_product_halves_the_live_units_in_every_block(images, variables):
    got = propagation(resnet20(post_activation="relu"), variables, images, jax.random.key(2))
    assert list(got["stage"]) == [1] * 3 + [2] * 3 + [3] * 3
    np.testing.assert_allclose(got["alive"][:3], [0.5, 0.25, 0.125], rtol=0.1)
    np.testing.assert_array_equal(got["alive"][3::3], 1)  # a 1x1 convolution fills the zeros


@pytest.mark.slow
def test_padded_channels_are_born_dead_and_the_loss_is_that_of_guessing(images, variables):
    net = resnet20(post_activation="relu", shortcut="A")
    kwargs = {"train": True, "mutable": ["batch_stats"]}
    (logits, _), points = jax.jit(partial(apply_with_points, net, **kwargs))(variables, images)
    for name in ("stage2_block1", "stage2_block3", "stage3_block1", "stage3_block3"):
        z = np.asarray(points[name].z)
        assert z[..., :16].any() and not z[..., 16:].any()  # stage 1 has 16
    labels = jax.random.randint(jax.random.key(4), (128,), 0, 10)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert np.mean(np.abs(losses - np.log(10)) < 1e-3) > 0.95  # what is left lives in one sample or two


@pytest.mark.slow
def test_the_default_product_kills_no_unit(images, variables):
    got = propagation(resnet20(), variables, images, jax.random.key(2))
    np.testing.assert_array_equal(got["dead_units"], 0)
    np.testing.assert_allclose(got["alive"], [0.5] * 3 + [1] * 6, rtol=0.02)  # the stem's zeros stay in stage 1


@pytest.mark.slow
def test_batchnorm_by_either_statistics():
    x = jax.random.normal(jax.random.key(5), (64, 6))
    net, variables = initialised(x, name="mlp", depth=6, width=32, merge="mul_bn1")

    def table(variables, train):
        return propagation(net, variables, x, jax.random.key(6), train=train)

    batch, at_init = table(variables, True), table(variables, False)
    own = table(calibrated(net, variables, x), False)  # the running statistics are those of x
    np.testing.assert_allclose(own[SIGNAL], batch[SIGNAL], rtol=1e-3)
    assert abs(own["gain"][1] / batch["gain"][1] - 1) > 1e-3  # but no gradient passes through them
    assert abs(at_init["power"][1] / batch["power"][1] - 1) > 0.1


def test_dropout_follows_the_key():
    x = jax.random.normal(jax.random.key(5), (64, 6))
    net, variables = initialised(x, name="mlp", depth=4, width=32, dropout=0.5)
    powers = [propagation(net, variables, x, jax.random.key(k))["power"][0] for k in (0, 0, 1)]
    assert powers[0] == powers[1] != powers[2]


# --- Nets of one's own ------------------------------------------------------------------------------------------
class Triple(nn.Module):
    def __call__(self, f, s):
        return 3 * (s + f)


class Half(nn.Module):
    """Three times the sum of both halves of the units."""

    @nn.compact
    def __call__(self, h):
        left, right = jnp.split(h, 2, axis=-1)
        return Triple(name="merge")(right, s=left)


class Halves(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return Half(name="a")(Half(name="b")(x))


def test_every_column_by_hand():
    x = np.array(jax.random.normal(jax.random.key(7), (20, 4, 8)))
    x[3] = 0  # a sample
    x[:, 1, ::4] = 0  # a unit of the first point: 0 and 4 are added up
    got = propagation(Halves(), {}, jnp.asarray(x), jax.random.key(9))
    z1 = 3 * np.float64(x[..., :4] + x[..., 4:])
    z2 = 3 * (z1[..., :2] + z1[..., 2:])
    for row, z_BxU in zip(got.itertuples(), (z1.reshape(20, -1), z2.reshape(20, -1)), strict=True):
        live = z_BxU != 0
        log_norm = np.log(np.linalg.norm(np.delete(z_BxU, 3, 0), axis=1))
        power = np.mean(z_BxU**2)
        want = (z_BxU.mean(), power, np.mean(z_BxU**4) / power**2, log_norm.mean(), log_norm.std())
        want += (np.exp(np.mean(np.log(np.abs(z_BxU[live])))), live.mean(), np.mean(~live.any(0)))
        np.testing.assert_allclose([getattr(row, column) for column in SIGNAL], want, rtol=1e-5, atol=1e-6)
    assert list(got["dead_units"]) == [1 / 16, 0]
    assert list(got["stage"]) == [1, 2]
    assert got["gradient_power"][1] == pytest.approx(1, abs=0.5)  # a mean of 160 squares
    assert got["gradient_power"][0] == pytest.approx(9 * got["gradient_power"][1], rel=1e-5)
    assert got["gain"][1] == pytest.approx(18, rel=1e-5)  # of twice as many units


def test_powers_out_of_range_leave_kurtosis_and_norms():
    x = jax.random.normal(jax.random.key(7), (20, 8))
    tiny, one, dead = (propagation(Halves(), {}, scale * x, jax.random.key(9)) for scale in (1e-15, 1, 0))
    np.testing.assert_allclose(tiny[["kurtosis", "log_norm_std"]], one[["kurtosis", "log_norm_std"]], rtol=1e-4)
    np.testing.assert_allclose(one["log_norm_mean"] - tiny["log_norm_mean"], 15 * np.log(10), rtol=1e-4)
    assert list(dead["dead_units"]) == [1, 1]
    assert dead[["mean", "power", "typical", "alive"]].eq(0).all(axis=None)
    assert dead[["kurtosis", "log_norm_mean", "log_norm_std"]].isna().all(axis=None)


class Product(nn.Module):
    def __call__(self, s, f, train):
        return s * f


class Square(nn.Module):
    @nn.compact
    def __call__(self, h, train):
        return Product(name="merge")(h, nn.Dense(h.shape[-1], use_bias=False, name="branch")(h), train)


class Squares(nn.Module):
    """Two blocks h -> h * hW, in an order that isn't the alphabet's; or one, twice."""

    tied: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        first = Square(name="b")
        second = first if self.tied else Square(name="a")
        return second(first(x, train), train)


@pytest.mark.parametrize("tied", [False, True])
def test_shifts_and_their_gradients(tied):
    net, x = Squares(tied), jax.random.normal(jax.random.key(10), (5, 3))
    variables = net.init(jax.random.key(11), x)
    names = ["b", "b#2"] if tied else ["b", "a"]
    W1, W2 = (np.asarray(variables["params"][name[0]]["branch"]["kernel"]) for name in names)

    @jax.jit
    def run(shifts):
        return apply_with_points(net, variables, x, lambda call: call.merge(call.s, call.f) + shifts[call.name])

    rng = np.random.default_rng(0)
    shift, cotangent = rng.normal(size=(2, 5, 3)).astype(np.float32)
    shifts = {names[0]: jnp.asarray(shift), names[1]: jnp.zeros((5, 3))}
    out, backward, points = jax.vjp(run, shifts, has_aux=True)
    (gradients,) = backward(jnp.asarray(cotangent))
    z1 = np.asarray(x) * (np.asarray(x) @ W1) + shift
    z2 = z1 * (z1 @ W2)
    assert list(points) == names  # in the order of execution, out of jit as well
    for (s, f, z), want in zip(points.values(), ((x, x @ W1, z1), (z1, z1 @ W2, z2)), strict=True):
        np.testing.assert_allclose(s, want[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(f, want[1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(z, want[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out, z2, rtol=1e-5, atol=1e-6)
    by_hand = cotangent * (z1 @ W2) + (cotangent * z1) @ W2.T
    np.testing.assert_allclose(gradients[names[0]], by_hand, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(gradients[names[1]], cotangent)


def test_seeing_a_net_does_not_change_it():
    net, x = Squares(), jax.random.normal(jax.random.key(10), (5, 3))
    variables = net.init(jax.random.key(11), x)
    np.testing.assert_array_equal(apply_with_points(net, variables, x)[0], net.apply(variables, x))


def test_an_edit_replaces_what_goes_on():
    net, x = Squares(), jax.random.normal(jax.random.key(10), (5, 3))
    variables = net.init(jax.random.key(11), x)

    def edit(call):
        assert set(call.arguments) == {"s", "f", "train"}
        return call.s if call.name == "b" else call.merge(call.s, 2 * call.f)

    out, points = apply_with_points(net, variables, x, edit)
    np.testing.assert_allclose(out, 2 * x * (x @ variables["params"]["a"]["branch"]["kernel"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(points["b"].z, x)


class NoMerge(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2, name="merge")(x)  # of one argument: nothing is merged


def test_what_cannot_be_measured_is_one_line():
    net, x = NoMerge(), jnp.ones((5, 3))
    with pytest.raises(ConfigError, match="NoMerge has no merge points: submodules named 'merge', called with s and f"):
        propagation(net, net.init(jax.random.key(0), x), x, jax.random.key(1))
