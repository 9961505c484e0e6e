import subprocess
import sys
import warnings

import numpy as np
import pytest

from resjax.stats import crossed_ci, hierarchical_ci, holm, mean_ci, paired_difference


def test_mean_and_sample_std_of_known_values():
    out = mean_ci([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert out["mean"] == 5.0
    assert out["std"] == pytest.approx(np.sqrt(32 / 7))  # n - 1, not n
    assert out["n"] == 8
    assert 2.0 < out["ci_low"] < 5.0 < out["ci_high"] < 9.0


def test_the_interval_is_bias_corrected_and_accelerated():
    # Skewed values: BCa leans to the long tail, which neither the percentile nor the t interval does.
    skewed = mean_ci([0.0] * 7 + [1.0] + [0.1, 0.2, 0.0, 0.05])
    below, above = skewed["mean"] - skewed["ci_low"], skewed["ci_high"] - skewed["mean"]
    assert above > 2 * below
    mirrored = mean_ci([-v for v in [0.0] * 7 + [1.0] + [0.1, 0.2, 0.0, 0.05]])
    assert mirrored["mean"] - mirrored["ci_low"] > 2 * (mirrored["ci_high"] - mirrored["mean"])


def test_the_same_values_give_the_same_interval_and_units_scale_it():
    x = np.random.default_rng(3).normal(size=9)
    assert mean_ci(x) == mean_ci(list(x))
    fine, coarse = mean_ci(x), mean_ci(100 * x)
    for end in ("ci_low", "ci_high"):  # up to how the resampled means round at the bias correction
        assert coarse[end] == pytest.approx(100 * fine[end], abs=100 * 0.01 * fine["std"])


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


def test_a_failing_bca_falls_back_to_percentiles(monkeypatch):
    import scipy.stats

    genuine, tried = scipy.stats.bootstrap, []

    def no_bca(*args, method, **kwargs):
        tried.append(method)
        out = genuine(*args, method="percentile", **kwargs)
        if method == "BCa":
            warnings.warn("degenerate", scipy.stats.DegenerateDataWarning, stacklevel=1)
            out.confidence_interval = out.confidence_interval._replace(low=np.nan)
        return out

    monkeypatch.setattr(scipy.stats, "bootstrap", no_bca)
    out = mean_ci([1.0, 2.0, 4.0])
    assert tried == ["BCa", "percentile"]
    assert out["ci_low"] < out["mean"] < out["ci_high"]


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    intervals = [mean_ci(rng.normal(loc=3.0, size=24)) for _ in range(300)]
    covered = np.mean([i["ci_low"] <= 3.0 <= i["ci_high"] for i in intervals])
    assert 0.89 <= covered <= 0.98  # about 93.5 % at n = 24, standard error 1.4 %
    narrow = [mean_ci(rng.normal(loc=3.0, size=24), confidence=0.5) for _ in range(300)]
    assert 0.40 <= np.mean([i["ci_low"] <= 3.0 <= i["ci_high"] for i in narrow]) <= 0.60


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
    assert holm([]) == []


def test_importing_it_costs_no_scipy():
    code = "import sys, resjax.stats; sys.exit(any(m.startswith('scipy') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_crossed_means_are_over_groups_and_their_intervals_over_both():
    values = np.array([[1.0, 2.0, 3.0], [5.0, np.nan, 7.0], [np.nan] * 3])
    found = crossed_ci(values)
    assert (found["mean"], found["n"]) == (4, 2) and 1 <= found["ci_low"] < 4 < found["ci_high"] <= 7
    assert crossed_ci(np.full((4, 3), 2.5))["ci_low"] == 2.5
    assert crossed_ci(values[:1]) == {"mean": 2, "std": None, "ci_low": None, "ci_high": None, "n": 1}
    assert crossed_ci(np.zeros((0, 3)))["mean"] is None


def test_what_members_have_in_common_widens_the_crossed_interval():
    shared = np.array([-1.0, 0, 1, 2]) + 0.01 * np.arange(6)[:, None]
    crossed = crossed_ci(shared)
    nested = hierarchical_ci(dict(enumerate(shared)))
    assert (
        np.ptp(shared.mean(0)) > crossed["ci_high"] - crossed["ci_low"] > 1.8 * (nested["ci_high"] - nested["ci_low"])
    )
