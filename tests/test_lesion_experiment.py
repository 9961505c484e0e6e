"""The lesion study with made-up nets whose lesions cost what is written here."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run

from experiments.lesion import figures as lesion_figures
from experiments.lesion import study as lesion
from experiments.lesion import tables as lesion_tables
from resjax import config as config_lib
from resjax.analysis import plots, tables
from resjax.config import ConfigError
from resjax.sweep import flags, measuring

BLOCKS = ["stage1_block1", "stage1_block2", "stage2_block1", "stage2_block2"]
COST = {"add": 0.1, "mul": 0.2, "mul_bn1": 0.3, "mul_res": 0.1}  # of skipping one block
RECALIBRATED = 0.5  # of which this is left with statistics recomputed
ERROR = 0.02


def train(config, workdir) -> Path:
    run_dir = Path(workdir) / f"{config.name}-{config_lib.hash8(config)}"
    if not (run_dir / "status.json").exists():
        seeds = range(config.seed, config.seed + config.seeds)
        lost = config.model.merge == "mul" and config.model.norm == "bn" and config.model.depth > 8
        write_run(config, Path(workdir), dict.fromkeys(seeds, 1 - ERROR), dict.fromkeys(seeds, 1) if lost else {})
    return run_dir


def cost_of(merge, seed, lesion):
    return (COST[merge] + 0.001 * (seed % 3)) * (lesion == "delete")


def measure(config, workdir, *, probes, images, split, moments=("init", "trained"), recalibrate=False, draws=1):
    """Stands in for resjax.sweep.probed.measure; two blocks cost twice as much as one."""
    model, seeds = config.model, range(config.seed, config.seed + config.seeds)
    assert split == "test" and (images == 64 or (images, moments) == (360, ("trained",)))
    (probe,) = probes
    if model.merge == "mul" and model.norm == "bn" and model.depth > 8:
        return {probe: []}
    rows = []
    for seed in seeds:
        if probe == "paths":
            shares = {"init": [0.5, 0.5, 0], "trained": [np.nan] * 3 if model.merge == "mul_res" else [0, 0.5, 0.5]}
            rows += [
                {"seed": seed, "moment": moment, "length": length, "share": share}
                for moment, of_moment in shares.items()
                for length, share in enumerate(of_moment)
            ]
            continue

        def row(lesion, blocks, draw, error, tau=1.0, seed=seed):
            about = {"lesion": lesion, "blocks": ";".join(blocks), "k": len(blocks), "draw": draw, "tau": tau}
            return {"seed": seed, "moment": "trained"} | about | {"accuracy": np.float64(1 - error)}

        rows.append(row("none", [], 0, ERROR))
        for name in ("delete", "identity", "mean"):
            cost = cost_of(model.merge, seed, name) * (RECALIBRATED if recalibrate else 1)
            for draw, block in enumerate(BLOCKS):  # a block that changes the shape is not to be counted
                rows.append(row(name, [block], draw, 0.9 if block == "stage2_block1" else ERROR + cost))
            if draws:
                rows.append(row(name, BLOCKS[:2], 0, ERROR + 2 * cost))
        rows.append(row("swap", BLOCKS[:2], 0, ERROR + 0.05, tau=0.5))
        if draws:
            rows += [row("permute", BLOCKS[:2], draw, ERROR + 0.1 * draw, tau=0.51) for draw in (1, 2)]
    return {probe: rows}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study")

    def run(*argv):
        paths = [f"--workdir={path / 'runs'}", f"--out={path / 'out'}"]
        words = ["--seeds=3", "--merges=add,mul,mul_bn1,mul_res", "--ln=mul"]
        return lesion.main([*paths, *words, *argv], train, measure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "curves", lambda run_dir: None)
        patch.setattr(measuring, "workers", lambda: 1)
        run.code = run()
    run.path = path
    run.read_table = lambda name: pd.read_csv(path / f"{name}.csv", comment="#")
    run.read = lambda suffix: run.read_table(f"out{suffix}")
    return run


def pick(table, **values):
    """The rows with these values."""
    return table[(table[list(values)] == pd.Series(values)).all(axis=1)]


def test_costs_are_of_blocks_of_equal_shape_and_paired_with_the_sum(study):
    assert study.code == 0  # nothing failed; that mul diverged is a result
    effects = study.read("_effects")
    difference = ["difference", "difference_low", "difference_high"]
    skipped = pick(effects, norm="bn", depth=20, metric="delete").set_index("merge")
    assert skipped.loc["add", "mean"] == pytest.approx(0.101)
    np.testing.assert_allclose(skipped.loc["mul_bn1", difference].astype(float), 0.2)
    np.testing.assert_allclose(skipped.loc["mul_res", difference].astype(float), 0, atol=1e-9)
    assert skipped.loc["mul", ["n", "pairs", "diverged"]].to_list() == [0, 0, 3]
    assert pick(effects, norm="bn", depth=8, metric="delete", merge="mul")["pairs"].item() == 3
    recalibrated = pick(effects, norm="bn", depth=20, metric="delete_recalibrated", merge="mul_bn1")
    np.testing.assert_allclose(recalibrated[["mean", "difference"]], [[0.1505, 0.1]])
    for metric, mean in {"swap": 0.05, "path_length_init": 0.5, "path_length_trained": 1.5, "OA": 1 - ERROR}.items():
        assert pick(effects, norm="bn", depth=20, metric=metric, merge="add")["mean"].item() == pytest.approx(mean)
    assert pick(effects, norm="bn", depth=20, metric="path_length_trained", merge="mul_res")["n"].item() == 0  # nan
    assert pick(effects, norm="bn", depth=20, metric="OA", merge="mul")["diverged"].item() == 3


def test_a_row_per_net(study):
    nets = study.read("")
    assert len(nets) == 2 * (4 + 1) * 3
    lost = nets[nets["status"] == "diverged"]
    assert set(lost["merge"]) == {"mul"} and set(lost["depth"]) == {20} and lost["delete"].isna().all()
    assert nets["width"].eq(8).all()


def test_curves(study):
    curves = study.read("_curves")
    one = pick(curves, norm="bn", depth=20, merge="add")
    for curve, x, mean in [
        ("block delete", [1, 2, 3, 4], [0.121, 0.121, 0.9, 0.121]),
        ("number delete", [0, 1, 2], [ERROR, (3 * 0.121 + 0.9) / 4, ERROR + 0.202]),
        ("order", [0.5, 1], [ERROR + 0.15, ERROR]),
        ("paths trained", [0, 1, 2], [0, 0.5, 0.5]),
    ]:
        rows = pick(one, curve=curve).sort_values("x")
        assert list(rows["x"]) == x
        np.testing.assert_allclose(rows["mean"], mean, atol=1e-9)
    assert one["n"].eq(3).all()
    assert pick(curves, norm="bn", depth=20, merge="mul").empty and not pick(curves, norm="ln", depth=20).empty
    assert pick(curves, merge="mul_res", curve="paths trained").empty


def test_the_verdicts_say_who_loses_more_and_who_is_missing(study):
    header = (study.path / "out_effects.csv").read_text()
    said = next(line for line in header.splitlines() if line.startswith("# depth 20, bn, one block skipped: "))
    assert "error of add rises by +10.1 [+9.9, +10.3] points (n = 3)" in said
    more, rest = said.split("more: ")[1].split("; not distinguishable from add: ")
    assert more == "mul_bn1 +20.0 [+20.0, +20.0]"
    assert rest.startswith("mul_res") and said.endswith("no net: mul")
    trained = next(line for line in header.splitlines() if line.startswith("# depth 20, bn, trained: "))
    assert "mul no OA, 3 of 3 diverged" in trained and "add OA 98.0" in trained
    assert "# depth 20, ln, one block skipped: no net of add to compare with" in header
    assert "# command: python -m experiments.lesion" in header


def test_every_figure_is_drawn(study):
    for name in ("_blocks", "_numbers", "_paths", "_trainability", "_effects"):
        assert all((study.path / f"out{name}{suffix}").stat().st_size > 1000 for suffix in (".png", ".pdf"))
    with pytest.raises(ConfigError, match="none of the curves nothing"):
        lesion_figures.lines(study.read("_curves"), study.path / "none", {"nothing": ("", "")}, "error")
    with pytest.raises(ConfigError, match="no overall accuracy"):
        lesion_figures.trainability(study.read("_effects").query("metric == 'delete'"), study.path / "none")


def test_bad_flags_get_one_line(study, capsys):
    for words, message in {
        ("--datasets=digits,mnist",): "one at a time",
        ("--ln=ad",): "unknown 'ad'",
        ("--depths=9",): "config.model.depth=9",
        ("--set=model.depth=8",): "use --depths and --ln",
        ("--depth=8",): "use --depths and --ln",
    }.items():
        assert study(*words) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_the_smoke_study_is_of_residual_mlps():
    p = flags.parser("m", "", lesion.SMOKE)
    p.set_defaults(depths=(8,), ln="", rescue=False)
    configs = lesion.configurations(flags.parse(p, ["--smoke"]))
    assert {(c.model.name, c.model.depth, c.seeds) for c in configs.values()} == {("mlp", 8, 2)}


def test_tables_and_verdicts_follow_from_what_is_written(study):
    found, said = lesion.rederived(study.path / "out")
    header = tables.read_header(study.path / "out.csv")
    assert len(said) > 10 and said == {key: header[key] for key in said}
    for suffix, again in found.items():
        written = tables.read_csv(study.path / f"out{suffix}.csv")
        numbers = written.select_dtypes("number").columns.difference(["p", "p_holm"])
        np.testing.assert_allclose(again[numbers].astype(float), written[numbers], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
# --- Rescue -----------------------------------------------------------------------------------------------------
def test_a_rescue_trains_every_cell_under_every_optimiser_and_counts_failures(study):
    def train(config, workdir):
        seeds, tenth = range(3), config.optimizer.learning_rate == 0.01
        reached = {s: 0.98 - 0.01 * s if config.model.merge == "add" else 0.1 + 0.102 * s for s in seeds}
        run_dir = write_run(
            config, Path(workdir), reached, {} if config.model.merge == "add" or tenth else {0: 2, 1: 3}
        )
        assert config.optimizer.clip_norm in (0, 1)
        return run_dir

    paths = [f"--workdir={study.path / 'rescue_runs'}", f"--out={study.path / 'rescue'}"]
    flags = ["--rescue", "--seeds=3", "--merges=add,mul", "--ln=", "--depths=20"]
    assert lesion.main([*paths, *flags], train, None) == 0
    nets = study.read_table("rescue").set_index(["merge", "optimiser", "seed"]).sort_index()
    assert len(nets) == 2 * 4 * 3 and nets.loc["add", "outcome"].eq("trained").all()
    rates = nets.groupby(level="optimiser")["learning_rate"].unique().map(list).to_dict()
    assert rates == {"standard": [0.1], "clipped": [0.1], "slow": [0.01], "clipped and slow": [0.01]}
    assert nets.loc[("mul", "clipped"), "outcome"].to_list() == ["failed", "failed", "trained"]  # chance is .1
    assert nets.loc[("mul", "slow"), "outcome"].to_list() == ["failed", "trained", "trained"]  # .1, .202, .304
    header = (study.path / "rescue.csv").read_text()
    assert "# depth 20, bn, clipped, trained: add 3 of 3, OA 97.0 [94.5, 99.5] %; mul 1 of 3, OA 30.4 %, 2 " in header
    assert "slow, trained: add 3 of 3, OA 97.0 [94.5, 99.5] %; mul 2 of 3" in header
    assert "%, 1 at 10.0 to 10.0 % (failed: diverged, or test accuracy below 2 times chance)" in header
    assert (study.path / "rescue.png").stat().st_size > 1000
    assert {f"{where}: {words}" in header for where, words in lesion.rederived(study.path / "rescue")[1].items()} == {
        True
    }
    assert study("--rescue", "--set=optimizer.clip_norm=2") == 2


def test_depths_are_compared_within_seeds():
    rows = {
        "norm": "bn",
        "merge": ["add"] * 4 + ["mul"] * 3,
        "depth": [8, 8, 20, 20, 8, 8, 20],
        "seed": [0, 1] * 3 + [1],
    }
    nets = pd.DataFrame(rows | {"OA": [0.5, 0.9, 0.6, 0.7, 0.9, 0.8, np.nan]})
    where, words = next(lesion_tables.deeper(nets))
    assert where == "bn, depth 20 less depth 8, trained"
    assert words == "OA, in points: add -5.0 [-195.6, +185.6] (p = 1.000)"  # +10 and -20; no pair of mul
    assert not list(lesion_tables.deeper(nets[nets["depth"] == 8]))


def test_an_increase_is_against_the_same_net_without_a_lesion():
    rows = [("a", 0, "none", 0.9), ("a", 0, "delete", 0.7), ("a", 1, "delete", 0.5), ("a", 1, "none", 0.8)]
    table = pd.DataFrame(rows, columns=["cell", "seed", "lesion", "accuracy"]).assign(statistics="frozen")
    np.testing.assert_allclose(lesion_tables.increases(table), [0, 0.2, 0.3, 0])
