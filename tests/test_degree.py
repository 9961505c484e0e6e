"""Degrees: energy of polynomials, learning curves against theory, samples needed on made-up curves, and the study."""

import jax
import numpy as np
import pandas as pd
import pytest
from jax.flatten_util import ravel_pytree

from experiments.degree import measure as degrees
from experiments.degree import study
from experiments.degree import tables as degree_tables
from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.regression import tasks as regression
from resjax.regression.fit import Fit
from resjax.sweep import flags, measuring
from resjax.training import step


def test_what_lies_beyond_is_told_together():
    np.testing.assert_array_equal(degrees.told(np.arange(1.0, 64.0))[[0, 15, 16]], [1, 16, np.arange(17, 64).sum()])


def net(merge, activation, **entries):
    c = config_lib.with_preset(config_lib.base(), "digits")
    c.update_from_flattened_dict(
        {
            "name": merge, "model.merge": merge, "model.name": "mlp", "model.depth": 6, "model.width": 8, "seeds": 2,
            "model.norm": "none", "model.activation": activation, "loss.name": "mse", "batch_size": 16, "epochs": 2,
            "dataset.name": "cube6_degree2", "dataset.train_size": 32, "dataset.augment": "none",
            "dataset.crop_padding": 0, "optimizer.learning_rate": 1e-3, "optimizer.clip_norm": 1.0,
        }
        | entries
    )  # fmt: skip
    return c


@pytest.mark.slow
@pytest.mark.parametrize(("merge", "highest"), [("add", 1), ("mul", 4)])
def test_two_blocks_without_activations_have_degree_two_to_the_blocks(merge, highest, tmp_path):
    found = degrees.measure(net(merge, "none"), tmp_path, test=8, lines=3, rate=1e-3, share=0.01)
    energy = pd.DataFrame(found["energy"])
    assert set(energy["moment"]) == {"init", "trained"} and energy["split"].nunique() == 2
    assert energy[energy["k"] > highest]["energy"].max() < 1e-10
    assert energy[energy["k"] == highest]["energy"].min() > 1e-5
    np.testing.assert_allclose(energy.groupby(["split", "moment"])["energy"].sum(), 1)


@pytest.mark.slow
def test_rates_are_the_one_asked_for_or_a_share_of_the_stability_limit(tmp_path):
    config = net("mul", "relu", **{"model.norm": "ln", "model.depth": 4, "seeds": 1})
    found = degrees.measure(config, tmp_path, test=8, lines=1, rate=1e-3, share=0.1)
    rows = pd.DataFrame(found["speed"]).set_index("rule").drop(columns="split")
    pd.testing.assert_series_equal(rows.loc["one"], rows.loc["tuned"], check_names=False)  # both have the rate 1e-3
    assert np.isfinite(rows.drop(columns="half")).all(axis=None)
    assert rows.loc["kernel", "area"] != rows.loc["one", "area"]

    x = np.float32(regression.draw("cube6_degree2", 32, test=8, seed=0).x_NxD)
    fit = Fit(config, 32, 1)
    params, unravel = ravel_pytree(step.init(fit.task, x[:1], 0).params)
    J = jax.jacrev(lambda p: fit.task.net.apply({"params": unravel(p)}, x)[:, 0])(params)
    limit = 2 * 32 / np.linalg.norm(J, 2) ** 2
    assert rows.loc["kernel", "rate"] == pytest.approx(0.1 * limit, rel=1e-4)


def test_statistics_of_a_batch_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="use ln"):
        degrees.measure(net("add", "relu", **{"model.norm": "bn"}), tmp_path, test=8, lines=1, rate=1e-3, share=0.1)


def test_theory_knows_what_is_learned_of_all_points():
    errors = degrees.predicted("add", 2, "ln", 6, 1, [1, 16, 63])
    assert errors[0] == pytest.approx(1, abs=0.1) and np.all(np.diff(errors) < 0) and errors[-1] < 0.01
    assert degrees.predicted("mul", 2, "ln", 10, 2, [256])[0] == pytest.approx(0.158, abs=2e-3)  # cause_prereg.md
    assert degrees.predicted("add", 2, "ln", 10, 2, [256])[0] == pytest.approx(0.035, abs=1e-3)


SIZES = (32, 64, 128)


def made_up(errors, splits=4, noise=0.0):
    """Rows of R4: merge -> errors by size."""
    rng = np.random.default_rng(0)
    return pd.DataFrame([
        {"degree": 2, "merge": merge, "activation": "relu", "norm": "ln", "clip": 1.0, "rung": "R4", "n": n, "split": s,
         "error": e + noise * rng.normal(), "rate": 0.01, "stable": 0.02, "train_error": 0.0}
        for merge, curve in errors.items()
        for n, e in zip(SIZES, curve, strict=True)
        for s in range(splits)
    ])  # fmt: skip


NO_THEORY = pd.DataFrame({"degree": [], "merge": [], "n": [], "error": []})


def test_samples_needed_lie_where_the_curve_crosses():
    rows = made_up({"add": (0.9, 0.7, 0.3), "mul": (0.9, 0.5, 0.3), "se": (0.9, 0.8, 0.7), "pi": (0.4, 0.3, 0.2)})
    found = degree_tables.needed(rows, NO_THEORY, 0.5, 128).set_index("merge")
    between = np.sqrt(64 * 128)
    assert found["samples"].to_dict() == pytest.approx({"add": between, "mul": 64, "se": np.inf, "pi": 32})
    assert found.loc["mul", "ratio_low"] == pytest.approx(64 / between) == found.loc["mul", "ratio_high"]
    assert found.loc["add", "ratio"] == 1 and found.loc[["se", "pi"], "ratio"].isna().all()
    assert found["censored"].to_dict() == {"add": "", "mul": "", "se": "above", "pi": "below"}
    without = degree_tables.needed(rows[rows["merge"] != "add"], NO_THEORY, 0.5, 128)
    assert without.empty
    noisy = degree_tables.needed(made_up({"add": (0.9, 0.7, 0.3), "mul": (0.9, 0.6, 0.4)}, 8, 0.02), NO_THEORY, 0.5, 64)
    for name, value in (("samples", between), ("ratio", 1.0)):
        low, high = noisy.set_index("merge").loc["mul", [f"{name}_low", f"{name}_high"]]
        assert low < value < high < 1.2 * low


def test_a_size_next_to_the_crossing_that_lost_a_net_leaves_no_number():
    rows = made_up({"add": (0.9, 0.7, 0.3), "mul": (0.9, 0.5, 0.3), "se": (0.9, 0.8, 0.7)})
    rows.loc[(rows["merge"] == "mul") & (rows["n"] == 32) & (rows["split"] == 0), "train_error"] = 0.6
    rows.loc[(rows["merge"] == "se") & (rows["n"] == 128) & (rows["split"] == 0), "error"] = np.inf
    found = degree_tables.needed(rows, NO_THEORY, 0.5, 128).set_index("merge")
    assert found["censored"].to_dict() == {"add": "", "mul": "lost", "se": "lost"}
    assert found.loc[["mul", "se"], ["samples", "ratio", "ratio_low"]].isna().all(axis=None)


def test_what_no_merge_learns_has_no_ratio():
    found = degree_tables.needed(made_up({"add": (1, 1, 1), "mul": (1.2, 1.1, 0.9)}), NO_THEORY, 0.5, 128)
    assert found["ratio"].isna().all() and np.isinf(found["samples"]).all()


def test_lost_replicas_are_counted_and_leave_no_mean():
    rows = made_up({"add": (0.9, 0.7, 0.3)})
    rows.loc[(rows["split"] == 0) & (rows["n"] > 32), "error"] = np.inf
    found = degree_tables.curves(rows, NO_THEORY)
    assert found["lost"].tolist() == [0, 1, 1] and found["mean"].isna().tolist() == [False, True, True]
    speed = pd.DataFrame({"degree": 2, "rule": "one", "merge": ["add", "add", "mul", "mul"], "split": [0, 1, 0, 1],
                          "rate": 0.01, "area": [0.5, 0.4, np.inf, 0.6], "half": [3, 4, np.inf, 5]})  # fmt: skip
    row = degree_tables.compared(speed).set_index("merge").loc["mul"]
    assert row["mean"] == pytest.approx(0.2) and row["lost"] == 1 and row["n"] == 1


@pytest.mark.slow
def test_the_study_writes_its_tables_and_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "workers", lambda: 1)
    asked = []

    def measure(config, workdir, *, rungs, test, inits, rates, allow_edge):
        product, n, degree = config.model.merge == "mul", config.dataset.train_size, int(config.dataset.name[-1])
        error = (0.8 if product else 1.0) * degree * 32 / n
        rows = [{"split": s, "rung": "tuning", "rate": 0.03, "error": 1.0, "train_error": 1.0} for s in (5, 6)]
        for rung in rungs:
            row = {"rung": rung, "rate": 0.03, "stable": 0.1, "error": error, "train_error": 0}
            rows += [row | {"split": s} for s in (0, 1)]
        return {"rows": rows}

    def look(config, workdir, *, test, lines, rate, share):
        asked.append((config.model.activation, config.model.norm, rate))
        assert config.dataset.train_size == 128
        lower = 0.1 * (config.model.merge == "mul")
        speed = [
            {"split": s, "rule": rule, "rate": rate, "area": 0.5 - lower + 0.01 * s, "half": 3}
            for s in (0, 1)
            for rule in ("one", "kernel", "tuned")
        ]
        energy = [
            {"split": s, "moment": moment, "k": k, "energy": 1 / 17}
            for s in (0, 1)
            for moment in ("init", "trained")
            for k in range(1, 18)
        ]
        return {"speed": speed, "energy": energy}

    argv = ["--smoke", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    assert study.main(argv, measure, look) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "net: add 128, mul 108 (x 0.84 [0.84, 0.84])" in said
        and "one rate for all: mul -0.100 [-0.100, -0.100]" in said
    )
    assert sorted(set(asked)) == [("none", "none", 0.03), ("relu", "ln", 0.03), ("relu", "none", 0.03)]
    names = ["", "_tuning", "_curves", "_needed", "_speed", "_energy", "_linear"]
    assert all((tmp_path / f"out{name}.csv").exists() for name in names)
    assert all((tmp_path / f"out{name}.png").exists() for name in ("_curves", "_needed", "_speed", "_energy"))
    needed = pd.read_csv(tmp_path / "out_needed.csv", comment="#").set_index(["degree", "rung", "merge"])
    assert needed.loc[(2, "R4", "add"), "samples"] == pytest.approx(128)
    assert needed.loc[(2, "theory", "add"), "samples"] > 0


@pytest.mark.parametrize("sizes", ["16,64", "64,1024"])
def test_sizes_that_the_cube_does_not_have(sizes, capsys):
    assert study.main([f"--sizes={sizes}"]) == 2
    assert "--sizes: from 32" in capsys.readouterr().err


def test_every_merge_has_the_same_budget():
    args = flags.parse(study._parser(), [])
    found = study.configurations(args)
    assert len(found) == 4 * (2 * 6 * 5 + 2 * 2)
    assert {about["n"] for about, _ in found.values() if about["norm"] == "none"} == {256}
    for about, config in found.values():
        steps = config.epochs * (about["n"] // config.batch_size)
        assert (steps, config.batch_size, config.seeds, config.model.width) == (800, 32, 8, 128)


def test_entries_that_the_study_decides_are_refused(capsys):
    assert study.main(["--batch_size=8"]) == 2
    assert "--batch_size: the study decides it" in capsys.readouterr().err
