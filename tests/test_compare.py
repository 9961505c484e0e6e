import math
import signal
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from fake_runs import Trainer

from experiments.compare import study as compare
from resjax.analysis import plots
from resjax.config import ConfigError
from resjax.models.merges import MERGES
from resjax.runtime.interrupt import Interrupted
from resjax.sweep import flags, launchers

REGISTRY = {m: SimpleNamespace(core=m in ("add", "mul"), recent=False) for m in ("add", "mul", "se")}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "curves", lambda run_dir: None)

    def run(*argv, train=None):
        paths = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", "--epochs=2"]
        return compare.main([*paths, *argv], train or Trainer(), REGISTRY)

    run.read = lambda suffix: pd.read_csv(tmp_path / f"out{suffix}.csv", comment="#")
    run.out = tmp_path / "out"
    return run


def test_a_study_writes_its_tables_and_figure(study, capsys):
    train = Trainer(lambda c, s: 0.8 + 0.01 * s - 0.02 * (c.model.merge == "mul"))
    assert study("--datasets=digits,mnist", "--seeds=3", train=train) == 0
    results, differences = study.read(""), study.read("_differences").set_index(["dataset", "merge"])
    assert len(results) == 2 * 2 * 3
    assert differences.loc[("mnist", "mul"), "difference"] == pytest.approx(-0.02)
    header = Path(f"{study.out}.csv").read_text().split("dataset,")[0]
    assert "# command: python -m experiments.compare --workdir=" in header and "--seeds=3" in header
    assert "# commit: 0123abc" in header and "# device: 1 x cpu" in header
    assert "# wall time: " in header and "4 of 4 cells were trained" in header
    assert all(Path(f"{study.out}{suffix}").exists() for suffix in (".png", ".pdf"))
    out = capsys.readouterr().out
    assert "-2.00 [-2.00, -2.00]" in out and "[4/4] mnist, mul" in out
    assert "3 seeds, 1 comparisons: no corrected p falls below 0.250" in out


def test_a_finished_cell_is_not_trained_again(study):
    first, second = Trainer(), Trainer()
    assert study("--seeds=2", train=first) == study("--seeds=2", "--merges=all", train=second) == 0
    assert [c.model.merge for c in second.trained] == ["se"]
    assert "1 of 3 cells were trained" in Path(f"{study.out}.csv").read_text()


def test_a_failing_and_a_diverging_cell_are_named_and_the_rest_goes_on(study, capsys):
    train = Trainer(diverged=lambda c: {1: 2} if c.model.merge == "se" else {}, fails=["mul"])
    assert study("--merges=all", "--seeds=3", train=train) == 1
    results = study.read("")
    failed = results[results["merge"] == "mul"]
    assert failed["status"].tolist() == ["failed"]
    assert failed["reason"].tolist() == ["RuntimeError: out of memory second line"]
    assert results[results["merge"] == "se"]["reason"].dropna().tolist() == ["seed 1 diverged in epoch 2"]
    differences = study.read("_differences").set_index("merge")
    assert differences.loc["se", ["n", "pairs", "diverged"]].tolist() == [2, 2, 1]
    assert differences.loc["mul", "n"] == 0
    out = capsys.readouterr().out
    assert "digits, mul: RuntimeError: out of memory second line" in out
    assert "digits, se: seed 1 diverged in epoch 2" in out


def test_the_baseline_is_always_there(study):
    train = Trainer()
    study("--merges=se", "--seeds=2", train=train)
    assert [c.model.merge for c in train.trained] == ["add", "se"]


@pytest.mark.parametrize(
    ("error", "code"), [(Interrupted(signal.SIGTERM), 143), (KeyboardInterrupt(), 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_run_that_was_stopped_stops_the_study(study, capsys, error, code):
    def interrupted(config, workdir):
        raise error

    assert study(train=interrupted) == code
    assert "stopped; the same command continues" in capsys.readouterr().err
    assert not Path(f"{study.out}.csv").exists()


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--datasets=cifar11", "cifar10, cifar100"),
        ("--datasets=", "digits"),
        ("--merges=mull", "core, streams, all, add, mul, se"),
        ("--set=model.depht=14", "model.depht"),
        ("--set=model.depth=deep", "'deep'"),
        ("--set=model.depth=9", "6n+2"),
        ("--set=model.norm=bm", "bn, ln, gn, none"),
        ("--learning_rate=nan", "must lie in"),
    ],
)
def test_bad_input_ends_with_one_line_before_anything_is_trained(study, capsys, argument, said):
    train = Trainer()
    assert study(argument, train=train) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not train.trained


def test_equal_cells_are_refused(study, capsys):
    assert study("--datasets=cifar10,cifar10_500each", "--train_size=100") == 2
    assert "same run" in capsys.readouterr().err


def _args(*argv):
    return flags.parse(flags.parser("m", "d", {"seeds": 2, "epochs": 3}), argv)


def test_settings_get_the_type_of_their_entry_and_the_last_word():
    settings = ("model.depth=14", "optimizer.weight_decay=0", "schedule.milestones=.3,.6", "model.scale=.3")
    args = _args("--datasets=mnist", "--depth=8", *(f"--set={s}" for s in settings), "--set=model.norm=ln")
    c = flags.config(args, "mnist", "mul")
    assert (c.model.depth, c.model.norm, c.model.scale, c.schedule.milestones) == (14, "ln", 0.3, (0.3, 0.6))
    assert type(c.optimizer.weight_decay) is float  # 0 and 0.0 would be two runs
    assert c.name == c.model.merge == "mul" and c.dataset.name == "mnist"
    with pytest.raises(ConfigError, match="epochs"):
        flags.config(_args("--set=epochs=2.5"), "mnist", "mul")


def test_smoke_yields_to_the_command_line():
    assert (_args().seeds, _args("--smoke").seeds, _args("--smoke", "--seeds=5").seeds) == (None, 2, 5)
    assert _args("--smoke", "--seeds=5").epochs == 3


def test_tuning_picks_by_validation_alone_and_trains_on_everything(study, capsys):
    best = {"add": 0.03, "mul": 0.1}

    def accuracy(c, seed):
        distance = abs(c.optimizer.learning_rate - best[c.model.merge])
        return 0.9 - distance + 0.01 * (seed % 1000)

    class TestKnowsBetter(Trainer):
        def __call__(self, config, workdir):
            run_dir = super().__call__(config, workdir)
            content = (run_dir / "summary.json").read_text()
            reached = 1 - config.optimizer.learning_rate  # the lower the rate, the better the test set
            (run_dir / "summary.json").write_text(content.replace('"OA": 0', f'"OA": {reached}, "_": 0'))
            return run_dir

    train = TestKnowsBetter(accuracy)
    assert study("--tune", "--tune_factors=.01,.1,.3,1", "--tune_epochs=1", "--seeds=3", train=train) == 0
    tuning, final = train.trained[:9], train.trained[9:]  # nine: the grid of `mul`, whose best ends it, goes on
    assert {(c.dataset.validation, c.seed, c.seeds, c.epochs) for c in tuning} == {(0.1, 1000, 2, 1)}
    assert {(c.dataset.validation, c.seed, c.seeds, c.epochs) for c in final} == {(0.0, 0, 3, 2)}
    assert {c.model.merge: c.optimizer.learning_rate for c in final} == best
    table = study.read("_tuning")
    assert len(table) == (2 * 4 + 1) * 2 and not {"OA", "test_loss", "AA", "kappa"} & set(table)
    assert table[table["picked"]].groupby("merge")["learning_rate"].first().to_dict() == best
    assert not table["at_edge"].any()


def peak(best):
    """Validation accuracy falls with the distance to the best rate, on a logarithmic scale."""
    return lambda c, seed: 0.9 - 0.1 * abs(math.log10(c.optimizer.learning_rate / best[c.model.merge]))


def test_a_grid_goes_on_until_the_best_lies_inside(study):
    train = Trainer(peak({"add": 0.1, "mul": 1.0, "se": 0.03}))
    assert study("--merges=all", "--tune", "--tune_factors=.5,1,2", "--seeds=2", train=train) == 0
    table = study.read("_tuning").drop_duplicates(["merge", "learning_rate"])
    tried = table.groupby("merge")["learning_rate"].apply(list).to_dict()
    assert tried == {
        "add": [0.05, 0.1, 0.2],
        "mul": [0.05, 0.1, 0.2, 0.4, 0.8, 1.6],
        "se": [0.0125, 0.025, 0.05, 0.1, 0.2],
    }
    assert table[table["picked"]].set_index("merge")["learning_rate"].to_dict() == {"add": 0.1, "mul": 0.8, "se": 0.025}
    assert not table["at_edge"].any()


def test_a_grid_stops_where_more_replicas_are_lost(study):
    train = Trainer(peak({"add": 0.1, "mul": 1.0}), lambda c: {1000: 1} if c.optimizer.learning_rate > 0.3 else {})
    assert study("--tune", "--tune_factors=.5,1,2", "--seeds=2", train=train) == 0
    table = study.read("_tuning").query("merge == 'mul' and picked")
    assert set(table["learning_rate"]) == {0.2} and not table["at_edge"].any()


def test_a_pick_at_the_edge_fails_the_study_unless_it_is_asked_for(study, capsys):
    train = Trainer(peak({"add": 0.1, "mul": 1e-4}))
    words = ["--tune", "--tune_factors=.5,1,2", "--seeds=2"]
    assert study(*words, train=train) == 2
    error = capsys.readouterr().err
    assert "digits, mul: rate 0.00313" in error and "add" not in error and error.count("\n") == 1
    assert not Path(f"{study.out}.csv").exists()
    assert study(*words, "--allow_edge", train=train) == 0
    table = study.read("_tuning")
    assert table.groupby("merge")["at_edge"].first().to_dict() == {"add": False, "mul": True}
    assert len(table.query("merge == 'mul'")) == 2 * (3 + compare.EXTENSIONS)
    assert "warning: at the edge of the grid" in capsys.readouterr().out
    assert study("--tune", "--tune_factors=1") == 2 and "one rate is no grid" in capsys.readouterr().err


def _tried(*rows):
    return pd.DataFrame(rows, columns=["learning_rate", "status", "validation_accuracy", "validation_loss"])


def test_pick():
    a, b = (0.1, "done", 0.9, 0.5), (0.3, "done", 0.9, 0.4)
    assert compare.pick(_tried(a, b)) == 0.3  # a tie in accuracy: the lower loss
    assert compare.pick(_tried(a, b, (0.3, "diverged", None, None))) == 0.1  # one of its replicas was lost
    assert compare.pick(_tried(a, a, (0.3, "done", 0.99, 0.1), (0.3, "done", 0.7, 0.1))) == 0.1  # the mean
    assert compare.pick(_tried((0.1, "diverged", None, None), (0.3, "failed", None, None))) is None


OWN = """
from configs import default
from resjax.models.merges import register

register("{name}", lambda s, f: s * (2 + f), "s*(2 + f)", identity="affine")


def get_config(preset=""):
    return default.get_config(preset, merge="{name}")
"""


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections, at config files
def test_a_merge_of_ones_own_is_named_by_its_config_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(name="mine"))
    try:
        assert compare.with_own(f"add, {path},mul", launchers.in_this_process) == "add,mine,mul"
        assert MERGES["mine"].formula == "s*(2 + f)" and compare.with_own("core", None) == "core"
    finally:
        MERGES.pop("mine", None)
    with pytest.raises(ConfigError, match="is for --launcher=local"):
        compare.with_own(str(path), lambda jobs: [])
    with pytest.raises(ConfigError, match="none.py"):
        compare.with_own(f"add,{tmp_path / 'none.py'}", launchers.in_this_process)


def test_without_any_usable_rate_the_configs_is_trained(study, capsys):
    train = Trainer(diverged=lambda c: {1000: 1, 1001: 1} if c.seed else {})
    assert study("--tune", "--tune_factors=1,3", "--seeds=2", train=train) == 0
    assert [c.optimizer.learning_rate for c in train.trained[-2:]] == [0.1, 0.1]
    assert "no rate gave a result" in capsys.readouterr().out
