import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from resjax.analysis import race as racing
from resjax.analysis.race import race, verdict
from resjax.config import ConfigError

DIFFICULTY = {"digits": 0.1, "cube": 0.6}


def grid(merges=5, depths=2, widths=2, seeds=3, noise=0.0):
    """Every configuration of two tasks that differ in difficulty; errors have no ties."""
    rng = np.random.default_rng(0)
    rows = []
    for dataset, merge, depth, width in itertools.product(DIFFICULTY, range(merges), range(depths), range(widths)):
        truth, junk = 0.02 * merge + 0.011 * depth + 0.006 * width + 0.001 * rng.normal(), rng.normal()
        for seed in range(seeds):
            error = DIFFICULTY[dataset] + truth + noise * rng.normal()
            rows.append((dataset, 80, f"merge{merge}", 8 + 6 * depth, 16 << width, seed, error, junk))
    return pd.DataFrame(rows, columns=["dataset", "train_size", "merge", "depth", "width", "seed", "error", "junk"])


def raced(table, *names, baselines=()):
    names = dict.fromkeys([*names, *baselines])
    result = race(table, {name: (1, name in baselines) for name in names})
    return result.set_index("predictor")


def test_a_perfect_predictor_wins_and_its_opposite_loses():
    table = grid().assign(same=lambda t: t["error"] ** 3, opposite=lambda t: -t["error"])
    result = race(table, {"opposite": (1, False), "junk": (1, True), "same": (1, False)})
    assert list(result["predictor"]) == ["same", "junk", "opposite"]
    same, junk, opposite = (row for _, row in result.iterrows())
    names = [
        "tau",
        "tau_low",
        "tau_high",
        "psi",
        "psi_merge",
        "psi_merge_low",
        "psi_depth",
        "psi_width",
        "worst",
        "cmi",
    ]
    assert list(same[names]) == [1] * len(names)
    assert same["cmi_p"] == 1 / (1 + racing.PERMUTATIONS)
    assert list(opposite[["tau", "psi", "psi_merge_high", "cmi"]]) == [-1, -1, -1, 1]  # information has no sign
    assert -0.2 < junk["tau"] < 0.2 and junk["cmi"] < 0.2 and junk["cmi_p"] > 0.05
    assert same["gain_low"] > 0.3 and same["gain"] == pytest.approx(1 - junk["tau"])
    assert opposite["behind_low"] == opposite["behind"] == 2
    assert list(same[["configurations", "cells", "seeds", "diverged", "coverage"]]) == [40, 2, 3, 0, 1]


def test_the_sign_turns_a_predictor_around():
    table = grid().assign(alignment=lambda t: -t["error"])
    result = race(table, {"alignment": (-1, False)}).iloc[0]
    assert (result["tau"], result["psi_merge"], result["sign"]) == (1, 1, -1)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_tau_is_that_of_scipy_in_every_cell_with_ties(levels):
    table = grid(noise=0.02)
    rng = np.random.default_rng(levels)
    table["p"] = rng.integers(levels, size=len(table) // 3).repeat(3) / 7  # of a configuration, hence exact ties
    table["error"] = table.groupby(racing.CELL + racing.AXES)["error"].transform("mean").round(2)
    means = table.groupby(racing.CELL + racing.AXES)[["p", "error"]].mean().round(9)
    expected = [kendalltau(cell["p"], cell["error"]).statistic for _, cell in means.groupby("dataset")]
    result = raced(table, "p").loc["p"]
    assert (result["tau"], result["worst"]) == pytest.approx((np.mean(expected), min(expected)))
    assert result["worst_cell"] == f"{['cube', 'digits'][int(np.argmin(expected))]}, n = 80"


def test_ties_survive_a_missing_seed():
    table = grid().assign(parameters=lambda t: 0.1 * t["depth"])  # .1 * 3 / 3 is not .1 * 2 / 2 in floating point
    whole = raced(table, "parameters")["tau"]
    part = raced(table.drop(index=[0, 7, 30]), "parameters")["tau"]
    assert part.item() == pytest.approx(whole.item())


def test_granulated_tau_by_hand():
    """Axis by axis, the signs of the four pairs that differ in it alone; errors are 0 to 7 in this order."""
    table = grid(merges=2, seeds=1).query("dataset == 'digits'")
    table = table.assign(error=np.arange(8) / 10, p=[0, 1, 2, 3, 4, 5, 7, 6], q=[5, 5, 0, 1, 0, 1, 0, 1])
    result = raced(table, "p", "q")
    axes = ["psi_merge", "psi_depth", "psi_width"]
    assert list(result.loc["p", axes]) == [1, 1, (3 - 1) / 4]  # one pair of widths is the wrong way round
    assert list(result.loc["q", axes]) == [(-1 - 1 + 0 + 0) / 4, (-1 - 1 + 0 + 0) / 4, (0 + 1 + 1 + 1) / 4]
    assert result["psi"].to_numpy() == pytest.approx([5 / 6, -1 / 12])
    assert result.loc["p", "tau"] == pytest.approx(26 / 28)


def test_who_knows_one_axis_alone_gets_no_credit_for_the_others():
    result = raced(grid(), "depth", "width")
    assert list(result.loc["depth", ["psi_merge", "psi_depth", "psi_width"]]) == [0, 1, 0]
    assert list(result.loc["depth", ["psi_merge_low", "psi_merge_high"]]) == [0, 0]
    assert list(result["cmi"]) == [0, 0] and list(result["cmi_p"]) == [1, 1]


def test_who_knows_the_task_alone_predicts_nothing():
    table = grid(noise=0.02).assign(
        task=lambda t: t["dataset"].map(DIFFICULTY), noisy=lambda t: t["dataset"].map(DIFFICULTY) + 0.01 * t["junk"]
    )
    pooled = table.groupby(racing.CELL + racing.AXES)[["noisy", "error"]].mean()
    assert kendalltau(pooled["noisy"], pooled["error"]).statistic > 0.4  # the trap
    result = raced(table, "task", "noisy")
    assert list(result.loc["task", ["tau", "psi", "cmi"]]) == [0, 0, 0]
    assert result.loc["noisy", "tau_low"] < 0 < result.loc["noisy", "tau_high"]


def test_information_is_that_of_the_table_of_signs():
    """Against counts of both orders of every pair, one conditioning set at a time."""
    rng = np.random.default_rng(3)
    cell, *axes = (rng.integers(k, size=40) for k in (2, 3, 2, 2))
    x, y = rng.normal(size=(2, 40))
    pairs = racing._pairs(cell, axes)
    sign_x, sign_y = (racing._signs(v[:, None], pairs) for v in (x, y))
    sets = [given for size in range(3) for given in itertools.combinations(axes, size)]
    assert len(sets) == len(pairs.events) == 7
    for given, events in zip(sets, pairs.events, strict=True):
        counts = {}
        for i, j in itertools.permutations(range(40), 2):
            if cell[i] == cell[j]:
                key = tuple((axis[i], axis[j]) for axis in given)
                counts.setdefault(key, np.zeros((2, 2)))[int(x[i] > x[j]), int(y[i] > y[j])] += 1
        information = entropy = 0
        for n in counts.values():
            h = [-sum(p * np.log(p) for p in part.ravel() / n.sum() if p) for part in (n.sum(1), n.sum(0), n)]
            information, entropy = information + n.sum() * (h[0] + h[1] - h[2]), entropy + n.sum() * h[1]
        assert racing._information(sign_x, sign_y, [events])[0] == pytest.approx(information / entropy, abs=1e-8)


def test_p_values_of_noise_are_not_small():
    rng = np.random.default_rng(1)
    table = grid()
    noise = {f"p{i}": rng.normal(size=len(table) // 3).repeat(3) for i in range(40)}
    p = raced(table.assign(**noise), *noise)["cmi_p"]
    assert (p < 0.05).mean() < 0.15 and p.median() > 0.25


def test_the_gain_of_a_baseline_is_never_above_zero():
    table = grid(noise=0.02).assign(good=lambda t: t["error"] + 0.05 * t["junk"], equal=lambda t: 2 * t["good"])
    result = raced(table, "equal", baselines=("good", "junk"))
    assert list(result.loc["equal", ["gain", "gain_low", "gain_high"]]) == [0, 0, 0]
    assert (result.loc[["good", "junk"], ["gain", "gain_low", "gain_high"]] <= 0).all(axis=None)
    assert raced(table, "junk")["gain"].isna().all()  # no baseline


def test_gains_compare_on_the_configurations_that_the_predictor_has():
    table = grid().assign(
        short=lambda t: t["error"].where(t["depth"] == 8), plain=lambda t: t["error"] * (t["depth"] == 8)
    )
    result = raced(table, "short", baselines=("plain",))
    assert list(result.loc["short", ["configurations", "coverage", "tau", "gain"]]) == [20, 0.5, 1, 0]
    assert result.loc["plain", "tau"] < 1 and np.isnan(result.loc["short", "psi_depth"])


def test_the_same_rows_in_any_order_give_the_same_numbers():
    table = grid(noise=0.02).assign(p=lambda t: t["error"] + 0.05 * t["junk"])
    pd.testing.assert_frame_equal(raced(table, "p", "junk"), raced(table.sample(frac=1, random_state=0), "p", "junk"))


def test_what_is_missing_is_counted_and_left_out():
    table = grid().assign(same=lambda t: t["error"], inf=lambda t: t["error"].where(t["merge"] != "merge4", np.inf))
    table.loc[table["seed"] == 1, "same"] = np.nan
    table.loc[:2, "error"] = np.nan  # a whole configuration
    table.loc[4, "error"] = np.inf  # diverged, too
    alone = table.iloc[[-1]].assign(dataset="alone")
    result = raced(pd.concat([table, alone]), "same", "inf")
    assert list(result["configurations"]) == [39, 39] and set(result["diverged"]) == {4} and set(result["cells"]) == {2}
    assert result.loc["same", "coverage"] == pytest.approx((116 - 38) / 116)
    assert result.loc["same", "tau"] > 0.99 and 0.8 < result.loc["inf", "tau"] < 1  # of 28 tied pairs of 190


def test_a_shared_seed_is_resampled_for_all_at_once():
    table = grid().assign(same=lambda t: t["error"] + t["seed"])  # a shift that all configurations share
    assert list(raced(table, "same").loc["same", ["tau_low", "tau_high"]]) == [1, 1]


def test_intervals_hold_the_truth_where_configurations_of_a_merge_are_alike(monkeypatch):
    """Of predictors without any relation to the error; with configurations as units it would be four of five."""
    monkeypatch.setattr(racing, "PERMUTATIONS", 1)
    rng = np.random.default_rng(0)
    table = grid(merges=8, seeds=2)
    of_merge = rng.normal(size=(2, 40, 8))[:, :, table["merge"].str[-1].astype(int)]
    own = rng.normal(size=(2, 40, len(table) // 2)).repeat(2, axis=2)
    values = of_merge + 0.7 * own
    table = table.assign(error=values[1, 0])
    predictors = pd.DataFrame({f"p{i}": value for i, value in enumerate(values[0])})
    result = raced(pd.concat([table, predictors], axis=1), *predictors)
    assert ((result["tau_low"] <= 0) & (result["tau_high"] >= 0)).mean() >= 0.9


def test_an_interval_takes_two_merges():
    table = grid(merges=1).assign(p=lambda t: t["error"] + 0.02 * t["junk"])
    row = raced(table, "p").loc["p"]
    assert np.isfinite(row["tau"]) and np.isnan([row["tau_low"], row["tau_high"], row["psi_merge"]]).all()


def test_the_interval_by_hand():
    """Two merges of one cell: without either one tau is 1 or -1, and seeds tell nothing."""
    table = grid(merges=2, widths=1, seeds=1).query("dataset == 'digits'")
    table = table.assign(error=[0.1, 0.2, 0.3, 0.4], p=[1, 2, 4, 3])
    row = raced(table, "p").loc["p"]
    assert row["tau"] == pytest.approx(4 / 6)
    assert (row["tau_low"], row["tau_high"]) == (-1, 1)  # 4/6 +- 12.7 * 1, cut at what a tau can be


def test_the_verdict_claims_what_the_intervals_allow():
    table = grid(merges=8, noise=0.02).assign(
        loo=lambda t: t["error"], gcv=lambda t: t["error"] ** 2, parameters=lambda t: t["depth"]
    )
    predictors = {"loo": (1, False), "gcv": (1, False), "junk": (1, False), "parameters": (1, True)}
    result = race(table, predictors)
    text = verdict(result, table, kernel_rows={"loo", "gcv", "absent"})
    assert text.startswith("64 configurations in 2 cell(s), 3 seed(s), 0 diverged (95 % intervals")
    assert "loo has the largest tau, 1.00 [1.00, 1.00], not distinguishable from gcv;" in text
    assert "2 of 2 kernel predictors beat the best plain baseline: loo by" in text
    poor = verdict(result, table, kernel_rows=["junk"])
    assert "None of 1 kernel predictors is distinguishably better" in poor
    assert verdict(result, table).endswith("].") and "kernel" not in verdict(result, table)


def test_too_few_configurations_are_no_claim():
    table = grid(merges=3)  # 24 configurations
    result = race(table, {"junk": (1, True)})
    assert result["configurations"].item() == 24
    text = verdict(result, table)
    assert "24 configurations" in text and "too few for a claim" in text and "tau" not in text


@pytest.mark.parametrize(
    ("change", "predictors", "message"),
    [
        (lambda t: t.drop(columns="depth"), {"junk": (1, True)}, "no column depth"),
        (lambda t: t, {"absent": (1, True)}, "no column absent"),
        (lambda t: t, {}, "no predictor"),
        (lambda t: t, {"junk": (0, True)}, "sign of junk is 0"),
        (lambda t: t, {"merge": (1, True)}, "merge holds .*, not numbers"),
        (lambda t: pd.concat([t, t.iloc[:1]]), {"junk": (1, True)}, "two rows for digits, 80, merge0, 8, 16, 0"),
        (lambda t: t.query("merge == 'merge0' and depth == 8 and width == 16"), {"junk": (1, True)}, "nothing to rank"),
        (lambda t: t.assign(error=np.nan), {"junk": (1, True)}, "nothing to rank"),
    ],
)
def test_a_bad_table_ends_in_one_line(change, predictors, message):
    with pytest.raises(ConfigError, match=message) as caught:
        race(change(grid()), predictors)
    assert "\n" not in str(caught.value)
