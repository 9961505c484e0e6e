"""Fair comparisons: rates inside their grid, scales of kernels, and what a comparison says of made-up nets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from resjax.config import ConfigError
from resjax.fair import scale
from resjax.fair.compare import compare
from resjax.fair.tuning import Trial, tune

FINE, LOST = Trial(0.5, 0.1), Trial(np.inf, np.inf)


def valley(best, limit, asked=None):
    """Replicas whose error grows with the distance of the rate from `best`, and which diverge above `limit`."""

    def try_rate(rate):
        if asked is not None:
            asked.append(rate)
        return [Trial(abs(np.log(rate / best)) + e, 0.1) if rate <= limit else LOST for e in (0.1, 0.2)]

    return try_rate


def test_the_best_rate_inside_the_grid():
    tuned = tune(valley(0.1, 0.35), [0.01, 0.03, 0.1, 0.3, 1, 3])
    assert (tuned.rate, tuned.largest_stable, tuned.at_edge) == (0.1, 0.3, False)
    assert list(tuned.trials) == [0.01, 0.03, 0.1, 0.3, 1]  # none above a rate that loses all


@pytest.mark.parametrize(("best", "rate"), [(1.0, 0.8), (0.003, 0.0025)])
def test_the_grid_grows_until_the_best_is_inside(best, rate):
    tuned = tune(valley(best, 100), [0.01, 0.02, 0.05, 0.1, 0.2])
    assert tuned.rate == rate and not tuned.at_edge
    assert min(tuned.trials) < rate < max(tuned.trials)


def test_an_edge_fails_unless_it_is_asked_for():
    with pytest.raises(ConfigError, match="the best rate, 12.8, is at the edge of those tried, 0.1 to 12.8"):
        tune(valley(1e9, np.inf), [0.1, 0.2])
    tuned = tune(valley(1e9, np.inf), [0.1, 0.2], allow_edge=True)
    assert tuned.at_edge and tuned.rate == 12.8


def test_a_rate_that_loses_a_replica_is_not_chosen():
    errors = {
        0.1: [FINE, FINE],
        0.2: [Trial(0.4, 0.1), FINE],
        0.4: [Trial(0.0, 0.0), Trial(0.9, 0.95)],
        0.8: [LOST, LOST],
    }
    tuned = tune(errors.__getitem__, list(errors))
    assert (tuned.rate, tuned.largest_stable) == (0.2, 0.2)  # .4 has the lowest error, of the replica that lives
    assert Trial(0.1, 0.95).lost and Trial(np.inf, 0.1).lost and not FINE.lost


def test_where_all_is_lost_lower_rates_are_tried():
    asked = []
    tuned = tune(valley(0.01, 0.02, asked), [0.1, 0.2])
    assert asked == [0.1, 0.2, 0.05, 0.025, 0.0125, 0.00625] and tuned.rate == 0.0125
    with pytest.raises(ConfigError, match="a replica diverged or did not fit"):
        tune(lambda rate: [LOST], [0.1, 0.2])


@pytest.mark.parametrize("rates", [[0.1], [], [0.2, 0.1], [0.0, 0.1]])
def test_grids_that_are_none(rates):
    with pytest.raises(ConfigError, match="two or more, positive and ascending"):
        tune(valley(0.1, 1), rates)


def test_mean_kernel_is_the_mean_squared_gradient():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(37, 3)), jnp.float32)
    w = {"a": jnp.ones((3, 4)), "b": jnp.full((1, 4), 2.0)}

    def net(w, x):
        return jnp.tanh(x @ w["a"]) * w["b"]

    J = jax.jacrev(net)(w, x)
    want = (jnp.sum(J["a"] ** 2) + jnp.sum(J["b"] ** 2)) / (37 * 4)
    assert scale.mean_kernel(Partial(net), w, x) == pytest.approx(float(want), rel=1e-5)
    assert scale.matched(2.0, kernel=0.1, reference=10.0) == pytest.approx(20)


def nets(limits, best=0.1):
    """Made-up architectures by name: an error of their own, and the rate above which a replica is lost."""

    def train(name, rate, seed):
        error, limit = limits[name]
        noise = 0.01 * np.random.default_rng(seed).normal() + 0.1 * seed
        return Trial(error + noise + 0.05 * abs(np.log(rate / best)), 0.0) if rate <= limit else LOST

    return train


def test_architectures_are_compared_at_their_own_stable_rates():
    train = nets({"add": (0.5, 0.2), "mul": (0.5, 10.0), "gate": (0.7, 0.2), "dead": (0.1, 0.0)})
    found = compare(train, ["add", "mul", "gate", "dead"], seeds=range(8), tuning_seeds=(90, 91))
    assert found["rate"].dropna().eq(0.1).all() and found["lost"].to_dict() == {
        "add": 0,
        "mul": 0,
        "gate": 0,
        "dead": 8,
    }
    assert found.loc[["add", "mul"], "largest_stable"].tolist() == [0.2, 3.2]  # of those tried
    np.testing.assert_allclose(found.loc[["mul", "gate"], "difference"], [0, 0.2], atol=1e-12)
    assert found.loc["gate", "p_holm"] == 2 * 2 / 2**8 and found.loc["mul", "p_holm"] == 1
    assert found.loc["dead", ["rate", "mean", "difference", "p", "p_holm"]].isna().all()
    assert found.loc["add", "ci_low"] < found.loc["add", "mean"] < found.loc["add", "ci_high"]


def test_a_lost_replica_sends_all_to_the_next_lower_rate():
    limits = {90: 1, 91: 1, 0: 1, 1: 0.06}

    def train(name, rate, seed):
        return Trial(1 - rate + seed, 0.0) if rate <= limits[seed] else LOST

    found = compare(train, ["net"], seeds=(0, 1), tuning_seeds=(90, 91), rates=(0.05, 0.1, 0.2, 2))
    assert found.loc["net", ["rate", "largest_stable", "lost", "mean"]].tolist() == [0.05, 0.2, 0, 1.45]
    limits[1] = 0
    found = compare(train, ["net"], seeds=(0, 1), tuning_seeds=(90, 91), rates=(0.05, 0.1, 0.2, 2))
    assert found.loc["net", "lost"] == 1 and found[["mean", "difference"]].isna().all(axis=None)  # no survivor's mean


def test_what_can_not_be_compared():
    with pytest.raises(ConfigError, match=r"seeds \[3\] are in seeds and in tuning_seeds"):
        compare(nets({"a": (1, 1)}), ["a"], seeds=range(4), tuning_seeds=(3,))
    with pytest.raises(ConfigError, match="at the edge"):
        compare(nets({"a": (1, 1e9)}, best=1e9), ["a"], seeds=(0, 1), tuning_seeds=(5,))
