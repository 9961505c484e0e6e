import subprocess
import sys
from itertools import product
from math import comb

import numpy as np
import pytest

from resjax.stats import (
    Estimate,
    crossed_ci,
    hierarchical_ci,
    holm,
    jackknife_ci,
    mean_ci,
    paired_difference,
    sign_flip,
)


def test_mean_and_sample_std_of_known_values():
    out = mean_ci([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert out["mean"] == 5.0
    assert out["std"] == pytest.approx(np.sqrt(32 / 7))  # n - 1, not n
    assert out["n"] == 8
    assert 2.0 < out["ci_low"] < 5.0 < out["ci_high"] < 9.0


def test_known_interval_and_units_scale_it():
    x = [1.0, 2.0, 4.0]  # mean 7/3, sd sqrt(7/3), t of 2 degrees of freedom 4.302653
    fine, coarse = mean_ci(x), mean_ci([100 * v for v in x])
    assert fine["ci_high"] - fine["mean"] == pytest.approx(4.302653 * np.sqrt(7 / 3) / np.sqrt(3), rel=1e-6)
    assert fine["mean"] - fine["ci_low"] == pytest.approx(fine["ci_high"] - fine["mean"])
    for end in ("ci_low", "ci_high"):
        assert coarse[end] == pytest.approx(100 * fine[end])


def test_what_n_does_not_allow_is_none():
    nothing = {"mean": None, "std": None, "ci_low": None, "ci_high": None, "n": 0}
    assert mean_ci([]) == nothing
    assert mean_ci([0.7]) == nothing | {"mean": 0.7, "n": 1}


def test_equal_values_give_an_interval_of_width_zero():
    # .1 is not a binary fraction: a mean computed from the sum would differ from it in the last bit.
    assert mean_ci([0.1] * 3) == {"mean": 0.1, "std": 0.0, "ci_low": 0.1, "ci_high": 0.1, "n": 3}


@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
def test_a_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="diverged"):
        mean_ci([1.0, bad])


DRAWS = {
    "Gaussian": (lambda rng, size: rng.normal(3.0, size=size), 3.0),
    "skewed": (lambda rng, size: rng.gamma(5.0, size=size), 5.0),  # skewness .9
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("n", range(2, 17))
def test_intervals_hold_the_true_mean_as_often_as_they_say(n, kind):
    draw, mean = DRAWS[kind]
    intervals = [mean_ci(x) for x in draw(np.random.default_rng(n), (5000, n))]
    covered = np.mean([i["ci_low"] <= mean <= i["ci_high"] for i in intervals])
    assert 0.93 <= covered <= 0.96  # standard error .3 %


def test_other_confidences():
    intervals = [mean_ci(x, confidence=0.5) for x in np.random.default_rng(0).normal(size=(2000, 6))]
    assert 0.46 <= np.mean([i["ci_low"] <= 0 <= i["ci_high"] for i in intervals]) <= 0.54


@pytest.mark.parametrize(("between", "within"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.1)])
def test_hierarchical_intervals_hold_as_often_as_they_say(between, within):
    rng = np.random.default_rng(0)
    values = between * rng.normal(size=(3000, 8, 1)) + within * rng.normal(size=(3000, 8, 2))
    intervals = [hierarchical_ci(dict(enumerate(v))) for v in values]
    assert 0.94 <= np.mean([i["ci_low"] <= 0 <= i["ci_high"] for i in intervals]) <= 0.96


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (0.0, 1.0, 0.3), (1.0, 0.0, 0.3), (0.0, 0.0, 1.0)])
def test_crossed_intervals_hold_at_least_as_often_as_they_say(sizes):
    rng = np.random.default_rng(0)
    of_group, of_member, of_value = sizes
    values = of_group * rng.normal(size=(1500, 8, 1)) + of_member * rng.normal(size=(1500, 1, 6))
    values = values + of_value * rng.normal(size=(1500, 8, 6))
    assert np.mean([(i := crossed_ci(v))["ci_low"] <= 0 <= i["ci_high"] for v in values]) >= 0.935


def test_jackknife_of_a_mean_is_its_interval_and_of_a_ratio_covers():
    x = np.random.default_rng(0).normal(size=7)
    found, direct = jackknife_ci(lambda i: x[i].mean(), 7), mean_ci(x)
    assert found == pytest.approx(direct)
    rng = np.random.default_rng(1)
    a_TxN, b_TxN = rng.gamma(4, size=(2, 1500, 8))
    intervals = [
        jackknife_ci(lambda i, a=a, b=b: np.log(a[i].mean() / b[i].mean()), 8)
        for a, b in zip(a_TxN, b_TxN, strict=True)
    ]
    assert 0.93 <= np.mean([i["ci_low"] <= 0 <= i["ci_high"] for i in intervals]) <= 0.97
    lost = jackknife_ci(lambda i: np.inf if 0 not in i else 1.0, 3)
    assert lost == {"mean": 1.0, "std": None, "ci_low": None, "ci_high": None, "n": 3}


def test_pairing_removes_what_the_seeds_share():
    rng = np.random.default_rng(0)
    b = dict(enumerate(10 * rng.normal(size=8)))  # seeds differ by 10
    a = {seed: value + 0.5 + 0.05 * rng.normal() for seed, value in b.items()}  # the effect is .5
    out = paired_difference(a, b)
    assert 0.4 < out["ci_low"] < out["mean"] < out["ci_high"] < 0.6
    assert out["p"] == 2 / 2**8
    back = paired_difference(b, a)
    assert back["mean"] == -out["mean"] and back["p"] == out["p"]


def test_sign_flip_p_values_known_by_counting():
    zero = dict.fromkeys(range(3), 0.0)
    # Of the 8 sign patterns of (1, 2, 4), the sums >= 5 are 7 and 5: two-sided p = 4/8.
    assert paired_difference({0: -1.0, 1: 2.0, 2: 4.0}, zero)["p"] == 0.5
    assert paired_difference({0: 1.0, 1: 2.0, 2: 4.0}, zero)["p"] == 0.25
    assert paired_difference(zero, zero)["p"] == 1.0
    assert paired_difference({0: 1.0}, zero) == mean_ci([1.0]) | {"p": 1.0}
    many = paired_difference({s: 1.0 + s for s in range(14)}, dict.fromkeys(range(14), 0.0))
    assert many["p"] == 2 / 2**14  # still exact


@pytest.mark.parametrize("hits", [(-1, 1, -3), (1, 1, 1, -1), (2, -2, 0, 0, 5), (3, -1, -1, -1, 4, 0, 2), (-2,) * 6])
def test_p_values_of_ties_are_those_of_counting_in_integers(hits):
    sums = [abs(sum(s * h for s, h in zip(signs, hits, strict=True))) for signs in product((-1, 1), repeat=len(hits))]
    exact = np.mean([s >= abs(sum(hits)) for s in sums])
    before = {s: (350 - h) / 360 for s, h in enumerate(hits)}
    assert paired_difference(dict.fromkeys(before, 350 / 360), before)["p"] == exact
    # Differences of accuracies: 344, 353 and 348 of 360 right, and 345, 352 and 351.
    assert paired_difference({0: 344 / 360, 1: 353 / 360, 2: 348 / 360}, {0: 345 / 360, 1: 352 / 360, 2: 351 / 360})[
        "p"
    ] == pytest.approx(0.75)


def test_more_pairs_than_are_enumerated_draw_their_flips():
    d = np.array([1.0] * 12 + [-1.0] * 4)
    assert sign_flip(d) == pytest.approx(2 * sum(comb(16, k) for k in range(5)) / 2**16, abs=0.01)
    assert sign_flip(np.ones(20)) == 1 / (2**14 + 1)  # none of the draws is as far, save the data themselves


def test_only_seeds_that_both_have_count():
    a = {0: 1.0, 1: 3.0, 2: None, 3: np.nan, 4: 5.0}
    b = {0: 0.0, 1: 1.0, 2: 9.0, 3: 9.0, 7: 9.0}
    out = paired_difference(a, b)
    assert (out["n"], out["mean"]) == (2, 1.5)
    assert paired_difference({0: 1.0}, {1: 1.0}) == mean_ci([]) | {"p": None}


def test_holm_known_values():
    # Holm (1979): sorted .005, .01, .03, .04 times 4, 3, 2, 1, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02, None, 0.03]) == [0.04, None, 0.04]  # None is no comparison
    assert holm([0.02, np.nan, 0.03]) == [0.04, None, 0.04]
    assert holm([]) == []


def test_importing_it_costs_no_scipy():
    code = "import sys, resjax.stats; sys.exit(any(m.startswith('scipy') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_crossed_means_are_over_groups_and_their_intervals_over_both():
    values = np.array([[1.0, 2.0, 3.0], [5.0, np.nan, 7.0], [np.nan] * 3])
    found = crossed_ci(values)
    assert (found["mean"], found["n"]) == (4, 2) and -23 <= found["ci_low"] < 4 < found["ci_high"] <= 31
    assert crossed_ci(np.full((4, 3), 2.5))["ci_low"] == 2.5
    assert crossed_ci(values[:1]) == {"mean": 2, "std": None, "ci_low": None, "ci_high": None, "n": 1}
    assert crossed_ci(np.zeros((0, 3)))["mean"] is None


def test_what_members_have_in_common_widens_the_crossed_interval():
    shared = np.array([-1.0, 0, 1, 2]) + 0.01 * np.arange(6)[:, None]
    crossed = crossed_ci(shared)
    nested = hierarchical_ci(dict(enumerate(shared)))
    assert crossed["ci_high"] - crossed["ci_low"] > 1.8 * (nested["ci_high"] - nested["ci_low"])


# --- Estimates ------------------------------------------------------------------------------------------------------


def test_estimates_read_rows_and_intervals():
    row = {"mean": 0.42, "ci_low": 0.1, "ci_high": 0.65, "tau": -0.5, "tau_low": -0.7, "tau_high": -0.3}
    assert f"{Estimate.of(row):+.2f}" == "+0.42 [+0.10, +0.65]"
    assert f"{Estimate.of(row, 'tau', 100):.0f}" == "-50 [-70, -30]"
    assert f"{Estimate.of({'mean': 1.0, 'mean_low': 0.5, 'mean_high': 2.0})}" == "1.0 [0.5, 2.0]"
    assert Estimate.of(mean_ci([1.0, 2.0, 4.0])).value == pytest.approx(7 / 3)


def test_an_estimate_without_an_interval_or_a_value_says_so():
    assert f"{Estimate.of(mean_ci([2.0])):.1f}" == "2.0"
    assert f"{Estimate.of(mean_ci([])):.1f}" == "unknown"
    assert Estimate(1.0).interval() == ""


@pytest.mark.parametrize(
    ("low", "high", "side"), [(0.1, 2, 1), (-2, -0.1, -1), (-1, 1, 0), (0, 1, 0), (np.nan, np.nan, 0)]
)
def test_the_side_of_zero_that_an_interval_lies_on(low, high, side):
    assert Estimate((low + high) / 2, low, high).side == side
