"""Symmetry curves: transformations by hand, and nets whose symmetries are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resjax.config import ConfigError
from resjax.probes.functions.symmetry import TRANSFORMATIONS, senses, symmetry, transformed
from resjax.probes.subject import Subject

N = 60


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def table(net, x, key=0):
    """Of a net of two classes, and of images of which a third is labelled 1."""
    x = jnp.asarray(x)
    targets = jnp.asarray(np.eye(2, dtype=np.float32)[(np.arange(len(x)) % 3 == 0).astype(int)])
    variables = net.init(jax.random.key(key), x[:1])
    found = symmetry(Subject(net, variables, x, targets, optax.softmax_cross_entropy, jax.random.key(1)))
    return found.set_index(["transformation", "amount"])


def softmax(score):
    """Probabilities [..., 2] of the logits (score, -score)."""
    p = 1 / (1 + np.exp(-2 * score.astype(float)))
    return np.stack([p, 1 - p], -1)


# --- Transformations --------------------------------------------------------------------------------------------
def under(x, name, amount):
    return [np.asarray(transformed(jnp.asarray(x), matrix)) for matrix in senses(name, amount)]


@pytest.mark.parametrize("shape", [(4, 8, 8, 1), (4, 7, 10, 3)])
def test_what_is_exact(shape):
    x = images(*shape)
    for name, still in {"flip": 0, "shift": 0, "rotation": 0, "scale": 1}.items():
        (same,) = under(x, name, still)
        np.testing.assert_array_equal(same, x, err_msg=name)
    (flipped,) = under(x, "flip", 1)
    np.testing.assert_array_equal(flipped, x[:, :, ::-1])
    (turned,) = under(x, "rotation", 180)  # both ways are one
    np.testing.assert_array_equal(turned, x[:, ::-1, ::-1])


def moved(x, axis, by):
    """np.roll, but the edge is replicated."""
    return np.take(x, np.clip(np.arange(x.shape[axis]) - by, 0, x.shape[axis] - 1), axis)


def test_shifts_replicate_the_edge():
    x = images(3, 8, 9, 2)
    for by in (1, 2):
        want = [moved(x, axis, sign * by) for axis in (1, 2) for sign in (1, -1)]
        got = under(x, "shift", by)
        assert len(got) == 4
        assert all(any(np.array_equal(a, b) for b in got) for a in want)
    halves = under(x, "shift", 0.5)
    assert any(np.allclose(b, (x + moved(x, 1, 1)) / 2, atol=1e-6) for b in halves)


def test_quarter_turns_go_both_ways():
    x = images(3, 8, 8, 2)
    got = under(x, "rotation", 90)
    assert len(got) == 2
    for times in (1, -1):
        assert any(np.array_equal(np.rot90(x, times, (1, 2)), one) for one in got)


def test_a_zoom_below_one_shows_the_whole_image_in_the_middle():
    x = images(3, 8, 8, 1)
    (half,) = under(x, "scale", 0.5)
    want = x.reshape(3, 4, 2, 4, 2, 1).mean((2, 4))
    np.testing.assert_allclose(half[:, 2:6, 2:6], want, atol=1e-6)
    (double,) = under(x, "scale", 2)
    corner = (9 * x[:, 2, 2] + 3 * x[:, 1, 2] + 3 * x[:, 2, 1] + x[:, 1, 1]) / 16  # at row and column 1.75
    np.testing.assert_allclose(double[:, 0, 0], corner, atol=1e-6)


# --- Nets -------------------------------------------------------------------------------------------------------
class Score(nn.Module):
    """Logits (score, -score); `of` says what of the image is the score."""

    of: str

    @nn.compact
    def __call__(self, x, train=False):
        score = {
            "left": lambda: jnp.mean(x[:, :, : x.shape[2] // 2], (1, 2, 3)),
            "pixel": lambda: 3 * x[:, 0, 2, 0],
            "constant": lambda: jnp.zeros(len(x)) + 0.3,
            "smallest": lambda: jnp.min(x, (1, 2, 3)) + 2.5,
        }[self.of]()
        return jnp.stack([score, -score], 1)


class Mirrored(nn.Module):
    """Any net, averaged over the image and its mirror image."""

    @nn.compact
    def __call__(self, x, train=False):
        dense = nn.Dense(2, name="dense")
        return (dense(x.reshape(len(x), -1)) + dense(x[:, :, ::-1].reshape(len(x), -1))) / 2


@pytest.fixture(scope="module")
def pixels():
    return images(N, 8, 8, 1)


@pytest.fixture(scope="module")
def left(pixels):
    return table(Score("left"), pixels)


def test_rows(left):
    amounts = left.reset_index().groupby("transformation")["amount"].apply(list).to_dict()
    want = {name: list(amounts) for name, (amounts, _) in TRANSFORMATIONS.items()}
    assert amounts == want | {"shift": [0, 0.5, 1, 1.5, 2]}  # a quarter of 8 pixels
    assert set(left["images"]) == {N}
    assert left["consistency"].between(0, 1).all() and left["tv"].between(0, 1).all()


def test_where_nothing_is_transformed_nothing_changes(left, pixels):
    rows = left.loc[[("flip", 0), ("shift", 0), ("rotation", 0), ("scale", 1)]]
    assert (rows["consistency"] == 1).all() and (rows["tv"] == 0).all()
    label = np.arange(N) % 3 == 0
    assert (rows["accuracy"] == np.mean((pixels[:, :, :4].mean((1, 2, 3)) < 0) == label)).all()


def test_a_net_that_looks_left_is_flipped_by_hand(left, pixels):
    before, after = pixels[:, :, :4].mean((1, 2, 3)), pixels[:, :, 4:].mean((1, 2, 3))
    row = left.loc["flip", 1]
    assert 0.2 < row["consistency"] < 0.8
    assert row["consistency"] == np.mean((before > 0) == (after > 0))
    assert row["accuracy"] == np.mean((after < 0) == (np.arange(N) % 3 == 0))
    np.testing.assert_allclose(row["tv"], np.abs(softmax(before) - softmax(after))[:, 0].mean(), rtol=1e-5)
    assert left.loc[("rotation", 180), "consistency"] == row["consistency"]  # rows don't matter to it


def test_a_net_of_one_pixel_sees_shifts_as_by_hand(pixels):
    found, score = table(Score("pixel"), pixels), 3 * pixels[..., 0]
    for by in (1, 2):
        after = [score[:, by, 2], score[:, 0, 2], score[:, 0, 2 + by], score[:, 0, 2 - by]]
        row = found.loc["shift", by]
        np.testing.assert_allclose(row["consistency"], np.mean([(a > 0) == (score[:, 0, 2] > 0) for a in after]))
        tv = np.mean([np.abs(softmax(a) - softmax(score[:, 0, 2]))[:, 0] for a in after])
        np.testing.assert_allclose(row["tv"], tv, rtol=1e-5)


def test_a_mirrored_net_does_not_notice_flips(pixels):
    found = table(Mirrored(), pixels)
    assert found.loc[("flip", 1), ["consistency", "tv"]].tolist() == [1, 0]
    assert found.loc[("shift", 1), "consistency"] < 1 and found.loc[("shift", 1), "tv"] > 0.01


def test_a_net_that_sees_nothing_notices_nothing(pixels):
    found = table(Score("constant"), pixels)
    assert (found["consistency"] == 1).all() and (found["tv"] == 0).all()


def test_the_smallest_pixel_is_blind_to_where_it_is(pixels):
    found = table(Score("smallest"), pixels)
    blind = found.loc[[("flip", 1), ("rotation", 90), ("rotation", 180)]]
    assert (blind["consistency"] == 1).all() and (blind["tv"] == 0).all()
    assert found.loc[("rotation", 45), "tv"] > 0.01  # interpolation makes it larger


def test_images_beyond_one_pass_are_all_seen(monkeypatch, pixels):
    monkeypatch.setattr("resjax.data.batches.at_once", lambda shape: 7)
    x = pixels[:, :, :7]  # of another shape: compiled anew
    (flipped,) = under(x, "flip", 1)
    np.testing.assert_array_equal(flipped, x[:, :, ::-1])


def test_vectors_are_refused():
    with pytest.raises(ConfigError, match=r"symmetry transforms images.*\[6, 5\] are none"):
        table(nn.Dense(2), images(6, 5))
