"""The decisive experiment: its decomposition and rules on made-up errors, its plan, and its rungs on a tiny net."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments.cause import battery, study
from experiments.cause import rates as cause_rates
from experiments.cause import tables as cause
from resjax import config as config_lib
from resjax import stats
from resjax.config import ConfigError
from resjax.regression import ladder, splits
from resjax.regression.tasks import OWN, Target
from resjax.sweep import flags, measuring

ALPHAS = (0.125, 1, 64)


def rows(D, merge="mul", task="cube10_degree3", width=128, noise=0.01):
    """Errors of add and of a merge that differs by D[rung], or D["R3", alpha] where given, 6 splits x 2 inits."""
    rng, out = np.random.default_rng(width), []
    for split, init in itertools.product(range(6), range(2)):
        for rung, alpha in [
            ("R0", np.nan),
            ("R1", np.nan),
            ("R2", np.nan),
            *(("R3", a) for a in ALPHAS),
            ("R3u", 1),
            ("R4", np.nan),
        ]:
            error = 0.5 + 0.1 * split
            about = {"task": task, "n": 256, "blocks": 2, "width": width, "split": split, "init": init}
            about |= {
                "rung": rung,
                "alpha": alpha,
                "train_error": 0.01,
                "own_alpha": alpha,
                "kernel": 4.0,
                "moved": 0.1,
            }
            lazy = D["R1"] if alpha == 64 else D.get(rung, D["R3"])
            difference = D.get((rung, alpha), lazy) + noise * rng.normal()
            out += [about | {"merge": "add", "error": error}, about | {"merge": merge, "error": error + difference}]
    return pd.DataFrame(out)


def judged(*tables):
    table = pd.concat(tables)
    D = cause.differences(table)
    return cause.verdicts(cause.by_rung(D), D, cause.gate(table)).set_index(["task", "width"])


def test_the_steps_add_up_exactly():
    wide = cause.by_rung(cause.differences(rows({"R0": 0.1, "R1": 0.3, "R2": 0.2, "R3": -0.1, "R4": 0.4}, noise=1)))
    assert len(wide) == 12
    np.testing.assert_allclose(sum(cause.terms(wide).values()), wide["R4"], rtol=0, atol=1e-15)
    found = cause.estimates(wide).set_index("quantity")
    np.testing.assert_allclose(found.loc[list(cause.TERMS), "mean"].sum(), found.loc["D4", "mean"], atol=1e-15)
    assert found["splits"].eq(6).all() and found["pairs"].eq(12).all() and found["lost"].eq(0).all()
    assert (found["ci_low"] < found["mean"]).all() and (found["mean"] < found["ci_high"]).all()


SAME = {"R0": 0.1, "R1": 0.1, "R2": 0.1, "R3": 0.1, "R4": 0.1}


@pytest.mark.parametrize("kind", [{"error": np.inf}, {"train_error": 0.55}], ids=["diverged", "unfitted"])
def test_a_lost_pair_leaves_no_number_behind(kind):
    table = rows(SAME)
    lost = (table["merge"] == "mul") & (table["rung"] == "R4") & (table["split"] == 0) & (table["init"] == 1)
    table.loc[lost, list(kind)] = list(kind.values())
    found = cause.estimates(cause.by_rung(cause.differences(table))).set_index("quantity")
    assert found.loc["D4", ["splits", "pairs", "lost"]].tolist() == [6, 11, 1]
    assert found.loc[["D4", "optimisation"], ["mean", "ci_low", "ci_high", "p", "p_holm"]].isna().all(axis=None)
    assert not found.loc["D4", "differs"] and found.loc["D3", "mean"] == pytest.approx(0.1, abs=0.01)
    assert cause.in_words(found.loc["D4"]) == "not interpretable (1 of 12 pairs lost)"


def test_nets_that_did_not_reach_the_training_error_are_lost_with_the_steps_they_took():
    table = rows(SAME)
    stuck = (table["merge"] == "add") & (table["rung"] == "R3") & (table["alpha"] == 1) & (table["split"] < 2)
    table.loc[stuck, "train_error"] = 0.4
    D = cause.differences(table)
    found = cause.estimates(cause.by_rung(D)).set_index("quantity")
    terms = {"initial bias": 0, "finite width": 0, "conditioning": 4, "feature learning": 4, "optimisation": 4}
    assert found["lost"].to_dict() == {"D0": 0, "D1": 0, "D2": 4, "D3": 4, "D3u": 0, "D4": 0} | terms
    by_scale = cause.by_scale(table, D).set_index(["merge", "rung", "alpha"]).sort_index()
    assert by_scale.loc[("mul", "R3"), "pairs"].to_dict() == dict.fromkeys(ALPHAS, 12)
    assert by_scale.loc[("add", "R3"), "lost"].to_dict() == {0.125: 0, 1: 4, 64: 0}
    assert by_scale.loc[("mul", "R3", 64)][["scale", "moved"]].tolist() == pytest.approx([128, 0.1])
    assert by_scale.loc[("mul", "R3", 1), "D"] != by_scale.loc[("mul", "R3", 1), "D"]  # nan: the sum's are lost
    assert by_scale.loc[("mul", "R3u", 1), "D"] == pytest.approx(0.1, abs=0.01)


def test_differences_that_count_are_corrected_and_of_some_size():
    tables = [
        rows(dict.fromkeys(SAME, D), task=task, noise=0.001) for task, D in {"a": 0.3, "b": 0.015, "c": 0.0}.items()
    ]
    found = cause.estimates(cause.by_rung(cause.differences(pd.concat(tables)))).set_index(["quantity", "task"])
    assert found.loc["D4", "differs"].to_dict() == {"a": True, "b": False, "c": False}  # b is told from 0, but small
    assert (found.loc["D4", "p_holm"] >= found.loc["D4", "p"]).all() and found.loc[("D4", "b"), "p_holm"] < 0.05
    said = cause.sentences(found.reset_index(), judged(*tables).reset_index(), None, cause.gate(pd.concat(tables)))
    assert said["difference at matched stability"].startswith(
        "1 of 3 cells differ (p < .05 after Holm, at least 0.02), 2 have"
    )


def test_a_setting_whose_lazy_nets_do_not_follow_their_kernel_counts_for_nothing():
    right = {"R0": 0.2, "R1": 0.2, "R2": 0.2, "R3": 0.2, "R4": 0.2}
    astray = right | {("R3", 64): 0.9, "R3": -0.2}
    stopped = right | {"R1": 0.4, "R3": 0.4, ("R3", 64): 0.2}
    table = pd.concat([rows(D, task=task) for task, D in {"a": right, "b": astray, "c": stopped}.items()])
    gate = cause.gate(table).set_index(["task", "merge"])["follows"]
    assert gate.drop("add", level="merge").to_dict() == {
        ("a", "mul"): "kernel", ("b", "mul"): "nothing", ("c", "mul"): "conditioning",
    }  # fmt: skip
    found = judged(rows(right, task="a"), rows(astray, task="b")).xs(128, level="width")
    assert found.loc["b", list(cause.RULES)].eq(cause.UNTESTED).all()
    assert found.loc["a", "initial_bias"] == cause.YES  # b would have refuted it


def test_without_a_pair_there_is_nothing_to_say():
    table = rows({"R0": 0.1, "R1": 0.1, "R2": 0.1, "R3": 0.1, "R4": 0.1})
    with pytest.raises(ConfigError, match="nothing to compare"):
        cause.differences(table[table["merge"] == "add"])
    table.loc[(table["merge"] == "mul") & (table["rung"] == "R4"), "error"] = np.inf
    D = cause.differences(table)
    rules = cause.verdicts(cause.by_rung(D), D, cause.gate(table))
    assert rules.loc[0, "optimisation"] == cause.UNTESTED == rules.loc[0, "finite_width"]
    said = cause.sentences(cause.estimates(cause.by_rung(D)), rules, None, cause.gate(table))
    assert said["cube10_degree3 (n 256, 2 blocks, width 128)"] == (
        "mul: D4 not interpretable (12 of 12 pairs lost); largest step initial bias +0.099 [+0.092, +0.106]; "
        "not testable: finite width, optimisation"
    )


RIGHT = {
    "finite_width": [
        ({"R0": 0.0, "R1": 0.4, "R2": 0.4, "R3": 0.4, "R4": 0.45}, 64),
        ({"R0": 0.0, "R1": 0.3, "R2": 0.3, "R3": 0.3, "R4": 0.35}, 128),
    ],
    "optimisation": [({"R0": 0.0, "R1": 0.0, "R2": 0.0, "R3": 0.05, "R4": 0.5}, 128)],
    "feature_learning": [
        ({"R0": -0.3, "R1": -0.3, "R2": -0.3, "R3": 0.3, ("R3", 0.125): 0.4, ("R3", 64): -0.3, "R4": 0.3}, 128)
    ],
    "initial_bias": [({"R0": 0.2, "R1": 0.2, "R2": 0.2, "R3": 0.25, "R4": 0.2}, 128)],
}  # fmt: skip
WRONG = {
    "finite_width": [  # it grows with the width
        ({"R0": 0.0, "R1": 0.3, "R2": 0.3, "R3": 0.3, "R4": 0.35}, 64),
        ({"R0": 0.0, "R1": 0.4, "R2": 0.4, "R3": 0.4, "R4": 0.45}, 128),
    ],
    "optimisation": [({"R0": 0.0, "R1": 0.0, "R2": 0.0, "R3": 0.2, "R4": 0.5}, 128)],  # D3 is not small
    "feature_learning": [
        # The middle scale is out of order.
        ({"R0": -0.3, "R1": -0.3, "R2": -0.3, "R3": 0.3, ("R3", 0.125): 0.1, ("R3", 64): -0.3, "R4": 0.3}, 128),
    ],
    "initial_bias": [({"R0": 0.2, "R1": 0.2, "R2": 0.2, "R3": 0.5, "R4": 0.2}, 128)],  # more than twice
}


@pytest.mark.parametrize("rule", cause.RULES)
def test_every_rule_holds_where_it_should_and_only_there(rule):
    right = judged(*(rows(D, width=width) for D, width in RIGHT[rule]))
    wrong = judged(*(rows(D, width=width) for D, width in WRONG[rule]))
    assert right[rule].eq(cause.YES).all() and wrong[rule].eq(cause.NO).all()


def test_bias_must_follow_the_flips():
    same = {"R0": 0.2, "R1": 0.2, "R2": 0.2, "R3": 0.2, "R4": 0.2}
    flipped = {rung: -value for rung, value in same.items()}
    tables = [rows(same, task=f"task{i}") for i in range(12)]
    assert judged(*tables, rows(flipped, task="flip"))["initial_bias"].eq(cause.YES).all()
    missed = flipped | {"R3": 0.2}  # 12 of 13 agree, but not the flip
    assert judged(*tables, rows(missed, task="flip"))["initial_bias"].eq(cause.NO).all()


def test_interaction_is_paired():
    D3, D2 = ({"R0": d, "R1": d, "R2": d, "R3": d, "R4": d} for d in (-0.1, 0.2))
    table = pd.concat([rows(D3), rows(D2, task="cube10_degree2")])
    wide = cause.by_rung(cause.differences(table))
    found = cause.interaction(wide, "cube10_degree3", "cube10_degree2").set_index("rung")
    np.testing.assert_allclose(found["mean"], -0.3, atol=0.02)
    assert list(found.index) == cause.RUNGS and (found["ci_high"] < -0.25).all()


def test_hierarchical_intervals():
    rng = np.random.default_rng(0)
    groups = {s: list(rng.normal(rng.normal(), 0.1, size=3)) for s in range(40)}
    found = stats.hierarchical_ci(groups)
    means = np.array([np.mean(members) for members in groups.values()])
    assert found["mean"] == pytest.approx(means.mean())
    half = 1.96 * means.std(ddof=1) / np.sqrt(40)  # groups dominate
    assert found["ci_high"] - found["ci_low"] == pytest.approx(2 * half, rel=0.1)
    assert stats.hierarchical_ci({0: [1.0, 2.0], 1: []}) == {
        "mean": 1.5, "std": None, "ci_low": None, "ci_high": None, "n": 1,
    }  # fmt: skip


TAUGHT = Target("net", merge="add")


# --- The rungs of a tiny net --------------------------------------------------------------------------------------
def tiny(merge, **entries):
    config = config_lib.base()
    config.update_from_flattened_dict(
        {
            "model.name": "mlp", "model.merge": merge, "model.depth": 4, "model.width": 8, "model.norm": "ln",
            "loss.name": "mse", "seeds": 2, "epochs": 3, "batch_size": 8, "dataset.train_size": 24,
            "dataset.name": "cube8_degree2", "dataset.augment": "none",
        } | entries
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def climbed():
    words = {
        "rungs": study.RUNGS, "test": 30, "inits": 2, "alphas": (1, 256), "unmatched": (2,), "rates": (0.01, 0.1, 1e6),
    }  # fmt: skip
    return pd.DataFrame(ladder.measure(tiny("mul", epochs=30), "", allow_edge=True, **words)["rows"])


@pytest.mark.slow
def test_all_rungs_are_climbed(climbed):
    counts = climbed["rung"].value_counts()
    assert counts.to_dict() == {"R0": 4, "R1": 4, "R2": 4, "R3": 8, "R3u": 4, "R4": 4, "tuning": 6}
    assert set(zip(climbed["split"], climbed["init"], strict=True)) - {(5000, 0), (5001, 0)} == {
        (0, 0), (0, 1), (1, 0), (1, 1),
    }  # fmt: skip
    at = climbed.set_index(["rung", "split", "init"])["error"]
    assert (at["R0"].groupby("split").nunique() == 1).all() and (at["R1"].groupby("split").nunique() == 2).all()
    assert climbed.loc[climbed["rung"] == "R4", ["rate", "stable"]].eq(0.1).all(axis=None)  # the third diverges
    assert np.isinf(climbed.loc[(climbed["rung"] == "tuning") & (climbed["rate"] == 1e6), "error"]).all()


def test_scales_are_those_of_the_sum(climbed):
    """At the alphas of R3 all merges have the same alpha^2 K, replica by replica; at those of R3u they don't."""
    words = {"rungs": ("R1", "R3"), "test": 30, "inits": 2, "alphas": (1, 256), "rates": (1, 2)}
    of_sum = pd.DataFrame(ladder.measure(tiny("add"), "", **words)["rows"])

    def squared(table, rung):
        own = table[table["rung"] == rung].set_index(["alpha", "split", "init"])
        return own["own_alpha"] ** 2 * own["kernel"]

    np.testing.assert_allclose(squared(climbed, "R3"), squared(of_sum, "R3"), rtol=1e-4)
    assert (of_sum.loc[of_sum["rung"] == "R3", "own_alpha"] / of_sum["alpha"]).dropna().between(0.9999, 1.0001).all()
    assert climbed.loc[climbed["rung"] == "R3u", "own_alpha"].eq(2).all()
    apart = squared(climbed, "R3u") / squared(of_sum, "R3").loc[[1]].to_numpy() / 4
    assert (abs(np.log(apart)) > 0.05).all()


def test_the_lazy_net_is_its_linearisation(climbed):
    """Both end at the same training error; R2 takes the steps of alpha = 1, so that only nearly so."""
    lazy = climbed[(climbed["rung"] == "R3") & (climbed["alpha"] == 256)]
    assert (lazy["moved"] < 0.01).all() and (lazy["train_error"] <= ladder.THRESHOLD).all()
    R1 = climbed[climbed["rung"] == "R1"]
    np.testing.assert_allclose(lazy["error"], R1["error"], rtol=0.15)  # 24 points: 1 % is far from the kernel's end


@pytest.mark.parametrize(
    ("target", "outputs"), [(Target("classes"), 10), (Target("eigen", 3), 1), (Target("hermite", 2), 1)]
)
def test_targets_on_images(target, outputs):
    config = tiny("add", **{"dataset.name": "digits"})
    task = splits.task_of(config, target, 30, split=1)
    assert task.x_NxD.shape == (24, 64) and task.y_N.shape == (24, outputs) and task.test_y_M.shape == (30, outputs)
    np.testing.assert_allclose(np.linalg.norm(task.x_NxD, axis=1), 8)
    both = np.concatenate([task.y_N, task.test_y_M])
    if outputs == 1:
        assert np.mean(both**2) == pytest.approx(1)
    else:
        np.testing.assert_allclose(both.sum(1), 0, atol=1e-12)


@pytest.mark.parametrize(("kind", "merge"), [("parity", ""), ("net", ""), ("classes", "add")])
def test_targets_that_mean_nothing(kind, merge):
    with pytest.raises(ConfigError, match="want a kind of own, shuffled, net"):
        Target(kind, merge=merge)


# --- The program ---------------------------------------------------------------------------------------------------
def measure(config, workdir, **options):
    """Made-up errors, of all rungs and scales."""
    D = {"R0": 0.0, "R1": 0.0, "R2": 0.0, "R3": 0.0, "R4": 0.0}
    table = rows(dict.fromkeys(D, -0.1), noise=0)
    table = table[table["merge"] == ("add" if config.model.merge == "add" else "mul")]
    table = table[table["rung"].isin(options["rungs"])]
    tuning = table.iloc[:1].assign(rung="tuning")
    columns = ["split", "init", "rung", "alpha", "own_alpha", "kernel", "error"]
    more = {"train_error": 0.0, "steps": 1, "moved": 0.0, "rate": 0.1, "stable": 0.2}
    return {"rows": pd.concat([table, tuning])[columns].assign(**more).to_dict("records")}


@pytest.mark.slow
def test_the_study_writes_its_tables_and_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "workers", lambda: 1)
    argv = ["--smoke", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    assert study.main(argv, measure) == 0
    for suffix in ("", "_differences", "_interaction", "_scale", "_stability", "_verdicts", "_tuning"):
        table = pd.read_csv(tmp_path / f"out{suffix}.csv", comment="#")
        assert len(table) and {"n", "blocks", "width"} <= set(table.columns)
    assert len(list(tmp_path.glob("out_*.png"))) == 5
    text = " ".join(capsys.readouterr().out.split())
    assert "mul: D4 -0.100 [-0.1" in text and "interaction at n 64, 2 blocks, width 16" in text


def test_merges_at_equal_rates(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "workers", lambda: 1)

    def at_rates(config, workdir, *, test, rates):
        low = 0.1 if config.model.merge == "mul" else 0.2
        errors = {rate: np.inf if rate > low else 0.5 - rate for rate in rates}
        return {"rows": [
            {"split": s, "init": 0, "rate": rate, "error": error + s, "train_error": error}
            for rate, error in errors.items() for s in range(4)
        ]}  # fmt: skip

    argv = ["--designs=rates", "--merges=mul", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    assert study.main(argv, at_rates) == 0
    table = pd.read_csv(tmp_path / "out.csv", comment="#").fillna({"arm": ""})
    table = table[table["task"] == "cube10_degree3"].set_index(["arm", "rate", "merge"])
    assert table.loc[("", 0.1, "mul"), ["mean", "D", "lost"]].tolist() == pytest.approx([1.9, 0, 0])
    assert table.loc[("", 0.2, "mul"), ["lost", "nets"]].tolist() == [4, 4] and np.isnan(
        table.loc[("", 0.2, "mul"), "mean"]
    )
    assert "no clipping, rate 0.1: add median 1.900; mul median 1.900, D +0.000" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_recipe_at_one_rate_is_that_of_the_ladder(climbed):
    config = tiny("mul", epochs=30)
    found = pd.DataFrame(cause_rates.measure(config, "", test=30, rates=(0.1,))["rows"]).set_index("split")
    ladder = climbed[(climbed["rung"] == "R4") & (climbed["init"] == 0)].set_index("split")
    np.testing.assert_allclose(found[["error", "train_error"]], ladder[["error", "train_error"]], rtol=1e-5)


def battery_rows(**D):
    """R4 of arms by name: errors of add and of the arm's merge, 6 splits x 2 inits, for one task."""
    rng, out = np.random.default_rng(0), []
    for name, difference in D.items():
        for split, init, merge in itertools.product(range(6), range(2), (battery.ARMS[name].merge, "add")):
            error = 0.5 + 0.1 * split + 0.01 * rng.normal() + (difference if merge != "add" else 0)
            about = {"task": "t", "arm": name, "merge": merge, "split": split, "init": init}
            out.append(about | {"rung": "R4", "error": error, "train_error": 0.0})
    return pd.DataFrame(out)


def test_what_an_arm_supports():
    rows = battery_rows(
        **{
            "reference": 0.3,
            "product forwards, sum backwards": 0.0,
            "sum forwards, product backwards": 0.3,
            "from sum to product": 0.1,
            "BatchNorm": 0.6,
            "identity at init, g = 0": -0.2,
            "no decay, training error": 0.0,
        }
    )
    found = battery.table(rows).set_index("arm")
    assert found["supports"].to_dict() == {
        "reference": "",
        "product forwards, sum backwards": "optimisation",
        "sum forwards, product backwards": "optimisation",
        "from sum to product": "optimisation, in part",
        "BatchNorm": "neither: it grows",
        "identity at init, g = 0": "neither: it turns",
        "no decay, training error": "optimisation",
    }
    np.testing.assert_allclose(found["changed_mean"].iloc[1:6], [-0.3, 0, -0.2, 0.3, -0.5], atol=0.03)
    wide = battery_rows(**{"reference": 0.3, "BatchNorm": 0.2})
    wide.loc[(wide["arm"] == "BatchNorm") & (wide["split"] < 2) & (wide["merge"] != "add"), "error"] += 0.4
    assert battery.table(wide).set_index("arm").loc["BatchNorm", "supports"] == "undecided"
    same = battery.table(battery_rows(**{"reference": 0.0, "BatchNorm": 0.0})).set_index("arm")
    assert same.loc["BatchNorm", "supports"] == "nothing: no difference"


def test_what_arms_of_their_own_kind_support():
    rows = battery_rows(**{
        "reference": -0.3, "ReLU teacher": 0.2, "shuffled targets, training error": 0.0,
        "taught by the sum's net": -0.3, "taught by the product's net": 0.0,
    })  # fmt: skip
    shuffled = (rows["arm"] == "shuffled targets, training error") & (rows["merge"] == "mul")
    rows.loc[shuffled, "train_error"] = 0.4
    errors = {"taught by the sum's net": 0.01, "taught by the product's net": 0.3}
    teachers = [
        {"task": "t", "arm": arm, "merge": "mul", "split": s, "init": 9, "rung": "teacher", "train_error": error}
        for arm, error in errors.items()
        for s in range(6)
    ]
    found = battery.table(pd.concat([rows, pd.DataFrame(teachers)])).set_index("arm")["supports"]
    assert found.to_dict() == {
        "reference": "", "ReLU teacher": "expressivity", "shuffled targets, training error": "expressivity",
        "taught by the sum's net": "nothing: same targets",
        "taught by the product's net": "expressivity",
    }  # fmt: skip
    lacking = rows[~((rows["arm"] == "ReLU teacher") & (rows["merge"] == "add"))]
    assert "ReLU teacher" not in set(battery.table(lacking)["arm"])


def test_the_battery_is_measured_once_for_equal_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "workers", lambda: 1)
    calls = []

    def counted(config, workdir, **options):
        calls.append((config.model.merge, config.dataset.name, options["target"]))
        return measure(config, workdir, **options)

    counted.__module__ = ladder.__name__
    argv = ["--designs=battery", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    assert study.main(argv, counted) == 0
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert list(table["arm"].unique()) == list(battery.ARMS) and len(table) == 2 * len(battery.ARMS)
    plain = [call for call in calls if call == ("add", "cube10_degree2", OWN)]
    assert len(plain) == 3  # the sum itself, with BatchNorm, and without decay: not once an arm
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize(("target", "n"), [(Target("shuffled"), 24), (TAUGHT, 24), (replace(TAUGHT, extra=40), 64)])
def test_targets_of_the_battery(target, n):
    config = tiny("mul", **{"optimizer.learning_rate": 0.003})
    plain, task = (splits.task_of(config, of, 30, split=1) for of in (OWN, target))
    np.testing.assert_array_equal(task.x_NxD[:24], plain.x_NxD)
    np.testing.assert_array_equal(task.test_y_M, plain.test_y_M)
    assert task.y_N.shape == (n, 1) and np.isfinite(task.y_N).all() and np.any(task.y_N[:24] != plain.y_N)
    if target.kind == "shuffled":
        np.testing.assert_array_equal(np.sort(task.y_N, 0), np.sort(plain.y_N, 0))
    assert not {x.tobytes() for x in task.x_NxD} & {x.tobytes() for x in task.test_x_MxD}


@pytest.mark.slow
def test_the_rate_is_chosen_by_what_is_reported_and_teachers_tell_how_well_they_fit():
    words = {"rungs": ("R4",), "test": 30, "inits": 1, "rates": (0.01, 0.1), "allow_edge": True}
    config = tiny("add", seeds=1, epochs=20)
    found = pd.DataFrame(ladder.measure(config, "", target=Target("shuffled"), choose="train_error", **words)["rows"])
    tried = found[found["rung"] == "tuning"].groupby("rate")["train_error"].mean()
    assert found.loc[found["rung"] == "R4", "rate"].item() == tried.idxmin() == 0.1
    taught = pd.DataFrame(ladder.measure(config, "", target=TAUGHT, **words)["rows"]).set_index("rung")
    assert 0 < taught.loc["teacher", "train_error"] < 1 and taught.loc["teacher", "init"] == splits.TEACHER


def test_rates_are_chosen_on_images_that_no_split_has():
    labels = np.arange(200) % 10
    reported = [set(splits._chosen(labels, 60, split)) for split in range(20)]
    tuning = [set(splits._chosen(labels, 60, splits.TUNING_SEED + i)) for i in range(2)]
    assert not set.union(*reported) & set.union(*tuning) and tuning[0] == tuning[1] and len(set.union(*reported)) == 140
    with pytest.raises(ConfigError, match="there are 200"):
        splits._chosen(labels, 101, 0)


def test_the_plan(monkeypatch):
    def plan(*argv):
        return study.configurations(flags.parse(study._parser(), argv))

    cube = plan()
    assert {cell.about["task"] for cell in cube.values()} == {f"cube10_degree{k}" for k in (1, 2, 3, 4)}
    assert all(cell.config.optimizer.clip_norm == 1 for cell in cube.values() if "no clipping" not in cell.about["arm"])
    axes, far = plan("--designs=axes"), plan("--designs=far")
    assert {cell.about["width"] for cell in axes.values()} == {64, 128, 256}
    assert {cell.config.model.depth for cell in axes.values()} == {6, 10}
    assert {cell.about["width"] for cell in far.values()} == {128, 512}
    assert {cell.config.model.depth for cell in far.values()} == {6, 18}
    assert all(cell.config.seeds == 8 and cell.config.loss.name == "mse" for cell in cube.values())
    assert {"add", "mul"} <= {cell.about["merge"] for cell in plan("--designs=digits,cifar10", "--merges=mul").values()}
    with pytest.raises(ConfigError, match="--designs: unknown 'sphere'; choose from cube, axes, far, digits"):
        plan("--designs=sphere")
    with pytest.raises(ConfigError, match="battery goes alone"):
        plan("--designs=cube,battery")
    with pytest.raises(ConfigError, match="--width: the study decides it"):
        plan("--width=64")
    with pytest.raises(ConfigError, match="--set model.norm: the study decides it"):
        plan("--set=model.norm=bn")
