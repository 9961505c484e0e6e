"""The kernel study with made-up nets and kernels: what it runs, keeps, continues, and reports."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run
from rich.console import Console

from experiments.ntk_generalization import study as study_module
from experiments.ntk_generalization.measure import pool_of
from resjax import config as config_lib
from resjax.analysis import plots
from resjax.config import ConfigError
from resjax.data import dataset
from resjax.predictors.evaluate import PREDICTORS
from resjax.sweep import flags, launchers, measuring

ERRORS = {"add": 0.1, "mul": 0.2, "se": 0.15}


def error_of(config, seed):
    model = config.model
    return ERRORS[model.merge] + 0.002 * (model.depth - 8) + 0.001 * (8 - model.width) + 1e-4 * (seed % 3)


def train(config, workdir) -> Path:
    run_dir = Path(workdir) / f"{config.name}-{config_lib.hash8(config)}"
    if not (run_dir / "status.json").exists():
        reached = {seed: 1 - error_of(config, seed) for seed in range(config.seed, config.seed + config.seeds)}
        write_run(config, Path(workdir), reached, {config.seed: 1} if config.model.merge == "mul" else {})
    return run_dir


class Measure:
    """Stands in for the measurement: `leave_one_out` knows the answer, every other predictor nothing."""

    def __init__(self, fails=()):
        self.fails, self.calls = fails, []

    def __call__(self, config, workdir, pool):
        if config.model.merge in self.fails:
            raise RuntimeError("out of memory\nsecond line")
        self.calls.append((config.model.merge, pool))
        seeds = range(config.seed, config.seed + config.seeds)
        predictors = []
        for seed in seeds:
            values = {name: np.float64(seed % 2) for name in PREDICTORS}
            values |= {"leave_one_out": np.float32(error_of(config, seed)), "gcv": np.nan, "after_gcv": np.inf}
            predictors.append({"seed": seed} | values)
        at = [{"seed": seed, "moment": moment} for seed in seeds for moment in ("init", "trained")]
        curve = {
            "n": 8,
            "measured": 0.5,
            "standard_error": 0.01,
            "measured_pairs": 0.4,
            "eigenlearning": 0.51,
            "leave_one_out": 0.49,
        }
        modes = [{"rank": rank, "eigenvalue": 1 / rank, "power": rank / 4, "negative": 0.0} for rank in (1, 2, 4)]
        return {
            "predictors": predictors,
            "regression": [where | curve for where in at],
            "spectra": [where | mode for where in at for mode in modes],
        }


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "curves", lambda run_dir: None)
    monkeypatch.setattr(measuring, "workers", lambda: 1)

    def run(*argv, measure=None):
        paths = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", "--seeds=3"]
        words = ["--merges=add,mul,se", "--datasets=digits,cube_degree2", "--depths=8,14", "--widths=4,8"]
        return study_module.main([*paths, *words, *argv], train, measure or Measure())

    run.read = lambda suffix: pd.read_csv(tmp_path / f"out{suffix}.csv", comment="#")
    run.out = tmp_path / "out"
    return run


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(study_module, "draw", lambda out: [])


@pytest.mark.slow
def test_a_study_writes_its_tables_and_figures(study, capsys):
    measure = Measure()
    assert study(measure=measure) == 0
    assert len(measure.calls) == 3 * 2 * 2 * 2 and {pool for _, pool in measure.calls} == {192, 384}
    nets, race = study.read(""), study.read("_race").set_index("predictor")
    assert len(nets) == 24 * 3 and nets["error"].isna().sum() == 8  # one diverged replica in each run of mul
    assert set(nets["train_size"]) == {64}
    assert set(race.index[:2]) == {"leave_one_out", "validation_error"} and race["tau"].iloc[1] == 1
    assert race.loc["leave_one_out", "psi_merge"] == 1 and race.loc["leave_one_out", "diverged"] == 8
    assert bool(race.loc["parameters", "baseline"]) and race.loc["gcv", "configurations"] == 0
    assert "after_gcv" in race.index  # infinite values survive the file
    assert len(study.read("_regression")) == 24 * 3 * 2
    spectra = study.read("_spectra")
    assert set(spectra["depth"]) == {8} and set(spectra["width"]) == {4}
    for name in ("_spectra", "_regression", "_race", "_best"):
        assert all(Path(f"{study.out}{name}{suffix}").stat().st_size > 1000 for suffix in (".png", ".pdf"))
    out, header = " ".join(capsys.readouterr().out.split()), Path(f"{study.out}_race.csv").read_text()
    assert "too few for a claim" in out and "# verdict on the error: 24 configurations" in header
    assert "# command: python -m experiments.ntk_generalization" in header


def test_measured_runs_are_not_measured_again(study, undrawn):
    small = ("--datasets=digits", "--depths=8")
    study("--merges=add", *small)
    measure = Measure()
    study(*small, measure=measure)
    assert measure.calls == [(merge, 192) for merge in ("mul", "mul", "se", "se")]
    other = Measure()
    study("--pool=100", *small, measure=other)
    assert len(other.calls) == 6


def test_a_failing_measurement_is_named_and_the_others_count(study, undrawn, capsys):
    assert study("--depths=8", measure=Measure(fails=["se"])) == 1
    assert set(study.read("_regression")["merge"]) == {"add", "mul"}
    out = " ".join(capsys.readouterr().out.split())
    assert "digits, se, depth 8, width 4 failed, 0 s, about" in out
    assert out.count("RuntimeError: out of memory second line") == 4


def test_measurements_go_where_the_trainings_go(study, undrawn, monkeypatch, capsys):
    went = []

    def launcher(jobs):
        went.append(list(jobs))
        return launchers.in_this_process(jobs)

    monkeypatch.setattr(launchers, "chosen", lambda args: launcher)
    small = ("--datasets=digits", "--depths=8")
    assert study(*small) == 0
    trained, measured = went
    assert len(trained) == 6 and measured == trained
    assert study(*small, "--workers=2") == 2
    assert "--workers is for --launcher=local" in capsys.readouterr().err


def test_bad_flags_get_one_line(study, capsys):
    for words, message in {
        ("--datasets=mnist",): "no design for 'mnist'",
        ("--merges=ad",): "unknown 'ad'",
        ("--depths=9",): "config.model.depth=9",
        ("--set=model.depth=8",): "use --depths and --widths",
        ("--workers=0",): "at least one process",
        ("--pool=5000",): "a pool of 5000 images",
        ("--merges=add", "--widths=8", "--depths=8", "--datasets=digits"): "nothing to rank",
    }.items():
        assert study(*words) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert study("--pool=100", measure=Measure(fails=ERRORS)) == 2
    assert "no run could be measured" in capsys.readouterr().err


def test_the_command_line_has_the_last_word():
    def configs(*argv):
        args = flags.parse(study_module._parser(), ["--merges=add", *argv])
        return [config for config, _ in study_module.configurations(args).values()]

    plain = configs("--datasets=cube_degree2")
    assert {(c.model.depth, c.model.width, c.dataset.train_size) for c in plain} == {
        (4, 32, 64), (4, 64, 64), (6, 32, 64), (6, 64, 64),
    }  # fmt: skip
    assert {(c.eval_every, c.epochs, c.model.name, c.dataset.augment) for c in plain} == {(100, 100, "mlp", "none")}
    changed = configs("--datasets=digits", "--depth=8", "--width=16", "--epochs=3", "--set=dataset.augment=crop")
    assert [(c.model.depth, c.model.width, c.epochs, c.eval_every) for c in changed] == [(8, 16, 3, 3)]
    assert changed[0].dataset.augment == "crop"


@pytest.mark.slow
def test_several_processes_measure(tmp_path):
    config = config_lib.base()
    train(config, tmp_path)
    other = config_lib.with_preset(config_lib.base(), "cube_degree2")
    train(other, tmp_path)
    todo = {name: (c, {"pool": 8}) for name, c in {"a": config, "b": other}.items()}
    console, launcher = Console(quiet=True), partial(launchers.in_processes, processes=2)
    found = measuring.measure_all(todo, _rows, "ntk", str(tmp_path), console, launcher)
    assert {label: measured.tables["rows"] for label, measured in found.items()} == {
        "a": [{"name": "digits", "x": "nan"}],
        "b": [{"name": "cube10_degree2", "x": "nan"}],
    }
    assert all(measured.now and measured.env["device_count"] for measured in found.values())
    kept = json.loads(next(tmp_path.glob("*/ntk-*.json")).read_text())
    assert kept["env"]["versions"]["jax"]
    again = measuring.measure_all(todo, _refuses, "ntk", str(tmp_path), console, launcher)
    assert again == {label: measured._replace(now=False) for label, measured in found.items()}


def _refuses(*_):
    raise AssertionError("measured twice")


def _rows(config, workdir, pool):
    return {"rows": [{"name": config.dataset.name, "x": float("nan")}]}


def test_the_pool_begins_with_the_training_set():
    config = config_lib.base().dataset
    config.update({"train_size": 20, "validation": 0.2})
    data = dataset.load(config)
    pool = pool_of(data, 50)
    assert pool.n == 20 and pool.x_MxHxWxC.shape == (50, 8, 8, 1) and pool.num_classes == 10
    np.testing.assert_array_equal(pool.labels_M[:20], data.train.labels_N)
    np.testing.assert_array_equal(pool.labels_M[20:], data.validation.labels_N[:30])
    for size in (20, 5000):
        with pytest.raises(ConfigError, match=f"a pool of {size} images: there are 20 to train and 287 to validate"):
            pool_of(data, size)
