"""The theory of blocks that read earlier outputs or streams: closed forms, the other theory, and wide nets."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resjax import config as base
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.models.merges import MERGES
from resjax.models.streams import Connection
from resjax.probes.blocks.propagation import propagation
from resjax.theory import mean_field, population


def columns(signals):
    return np.array([[b.z.power, b.gain] for b in signals])


@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_without_a_weight_of_the_stem_it_is_the_sum(norm):
    """Two theories, over a change of shape. Only one has the stem as the block before the first."""
    want = columns(mean_field.stages(MERGES["add"], [2, 2], norm=norm))
    got = columns(population.stages(MERGES["x0"], [2, 2], norm=norm))
    np.testing.assert_allclose(got[:, 0], want[:, 0], rtol=0.02)
    np.testing.assert_allclose(got[1:, 1], want[1:, 1], rtol=0.02)


def test_attention_of_equal_weights_by_hand():
    """z_l = f_l, and the gradient of the last z reaches z_l by the branches of all later blocks, each of a mean."""
    got = columns(population.stages(MERGES["attnres"], [4], norm="ln"))
    power = [0.5]  # of v_0; the others have 1
    gradient = [0.0, 0.0, 0.0, 1.0]  # at z_1 ... z_4
    for _ in range(4):
        power.append(1.0)
    for block in (3, 2, 1):  # reads the mean of v_0 ... v_block, whose power is what its norm divides by
        read = sum(power[: block + 1]) / (block + 1) ** 2
        arriving = gradient[block] / read / (block + 1) ** 2  # c = 1
        for earlier in range(block):
            gradient[earlier] += arriving
    assert got[:, 0] == pytest.approx(np.ones(4), rel=0.02)
    assert got[1:, 1] == pytest.approx([a / b for a, b in zip(gradient, gradient[1:], strict=False)], rel=0.03)


def test_streams_start_as_a_sum_that_only_the_norm_rescales():
    sums, streams = (columns(population.stages(MERGES[name], [4], norm="ln")) for name in ("attnres", "hc"))
    np.testing.assert_allclose(sums[:, 0], streams[:, 0], rtol=0.02)
    np.testing.assert_allclose(sums[1:, 1], streams[1:, 1], rtol=0.03)


def test_powers_by_hand():
    two_cells = [b.z for b in population.stages(MERGES["two_cells"], [3, 3], norm="ln")]
    assert [z.power for z in two_cells] == pytest.approx([2] * 6, rel=0.02)  # a normalised input and a branch
    dense = [b.z for b in population.stages(MERGES["dense_mul"], [3], norm="ln")]
    assert [z.power for z in dense] == pytest.approx([0.5] * 3, rel=0.05)  # that of the stem, in mean and product
    assert [z.kurtosis for z in dense] == pytest.approx([9] * 3, rel=0.2)  # two Gaussians


def test_one_direction_of_many_is_nothing():
    z = mean_field.stages(MERGES["delta"], [2], norm="ln")
    assert [b.gain for b in z] == pytest.approx([1, 1]) and z[-1].z.power == pytest.approx(0.5, rel=1e-3)


def test_what_is_not_covered():
    with pytest.raises(ConfigError, match="merge 'pure': the theory does not cover its branch, which is not Gaussian"):
        population.stages(replace(MERGES["pure"], connection=MERGES["x0"].connection), [2])
    mixing = Connection(
        lambda h, carried, p: h @ p["kernel"], lambda carried, s, f, z, p: (z, carried), lambda v0: (),
        params={"kernel": lambda key, place: jnp.zeros((place.channels, place.channels))},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="does not cover 'kernel' of its connection, a matrix between units"):
        population.stages(replace(MERGES["x0"], connection=mixing), [2])


@pytest.mark.parametrize(
    "name", ["two_cells", *(pytest.param(n, marks=pytest.mark.slow) for n in ("attnres_mul", "dense", "hc_mul", "mhc"))]
)
def test_wide_nets_do_what_is_predicted(name):
    config = base.base()
    config.model.update({"name": "mlp", "merge": name, "width": 512, "depth": 8, "norm": "ln"})
    net, x = build(config.model, 10), jax.random.rademacher(jax.random.key(0), (256, 12), jnp.float32)
    seen = propagation(net, net.init(jax.random.key(1), x), x, jax.random.key(2))
    got, want = seen[["power", "gain"]].to_numpy(), columns(population.stages(MERGES[name], [3], norm="ln"))
    np.testing.assert_allclose(got[:, 0], want[:, 0], rtol=0.1)
    np.testing.assert_allclose(got[1:, 1], want[1:, 1], rtol=0.1)


def test_no_gradient_has_no_gain():
    """A branch that is scaled by 0 lets none through where the shortcut is not carried on."""
    signals = population.stages(replace(MERGES["attnres"], branch_scale=0.0), [3], norm="ln", units=1024)
    np.testing.assert_array_equal([b.gain for b in signals], [np.nan, np.nan, 0])


def test_batchnorm_takes_the_means_of_what_a_linear_layer_mixes():
    """It is c pi/(pi-1) over the mean variance of the stem's ReLU, 1/2 - 1/(2 pi), and of a branch, 1."""
    gain = population.stages(MERGES["dense"], [2], norm="bn")[1].gain
    c, v = np.pi / (np.pi - 1), (0.5 - 1 / (2 * np.pi) + 1) / 2
    assert gain == pytest.approx(c / v / 2, rel=0.02)
