"""The study of full CIFAR: its plan, what moves between machines, and its statistics."""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import Trainer

from experiments.images import kernels, tables
from experiments.images import study as images
from experiments.images.plan import ARMS, DESIGNS, Key
from resjax import config as config_lib
from resjax.analysis import plots
from resjax.models.merges import MERGES

GOOD = {"add": 0.8, "mul_bn1": 0.7}


def by_rate(config, seed):
    """Best at the rate .3, with a noise of the seed; more after three epochs."""
    best = GOOD[config.model.merge] + 0.1 * (config.epochs == 3)
    return best - 0.1 * abs(math.log10(config.optimizer.learning_rate / 0.3)) + 0.01 * (seed % 10)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(plots, "curves", lambda run_dir: None)
    monkeypatch.setattr(images, "draw", lambda out: [])


def measure(config, workdir, **options):
    """Stands in for `kernels.measure` and `gains.measure`."""
    if "mode" not in options:
        rows = [{"seed": 0, "block": "stage1_block1", "gain": math.nan}, {"seed": 0, "block": "b", "gain": 2.0}]
        return {"rows": rows, "theory": []}
    value = {"add": 0.5, "mul_bn1": 0.6}[config.model.merge]
    about = {"kernel": options["mode"], "pool": options["pool"], "n": options["n"]}
    about |= {"eigenlearning": value, "leave_one_out": 1 - value}
    return {"rows": [about | {"seed": seed} for seed in range(config.seeds)]}


def run(place: Path, *argv, train=None, machine="one"):
    """The small design on a machine with a work directory of its own; the archive is that of the place."""
    paths = [f"--workdir={place / machine}", f"--out={place / 'out'}", f"--archive={place / 'archive'}"]
    return images.main(["--smoke", *paths, *argv], train or Trainer(by_rate), measure)


def read(place, suffix=""):
    return pd.read_csv(place / f"out{suffix}.csv", comment="#")


@pytest.mark.parametrize("design", DESIGNS)
def test_every_run_of_the_plan_is_possible_and_no_run_has_two_names(design):
    plan, parts = images.planned(images.flags.parse(images._parser(), [f"--design={design}"]))
    names: dict[str, str] = {}
    for name in parts:
        part = plan.design.parts[name]
        for key in plan.keys(part):
            cells = plan.reported(name, key, 0.1)
            assert sum(cell.config.seeds for cell in cells) == part.seeds
            seeds = [cell.config.seed + i for cell in cells for i in range(cell.config.seeds)]
            assert seeds == [cells[0].config.seed + i for i in range(part.seeds)]
            for cell in cells:
                assert cell.config.model.merge == ARMS[key.arm].merge in MERGES
                assert (
                    names.setdefault(config_lib.hash8(cell.config), cell.label.partition(", ")[2])
                    == (cell.label.partition(", ")[2])
                )
            tuning = plan.tuning(part, key, 0.1).config
            assert tuning.dataset.validation == 0.1 and not set(seeds) & {tuning.seed, tuning.seed + 1} or part.around


def test_the_cost_of_the_plan_is_the_one_registered():
    """In images of a ResNet-8: hours at 1,100 images per second, as prereg.md has them."""
    plan, _ = images.planned(images.flags.parse(images._parser(), []))
    hours = {}
    for name, part in plan.design.parts.items():
        cells = [c for key in plan.keys(part) for c in plan.reported(name, key, 0.1) * (3 if part.around else 1)]
        hours[name] = sum(cell.cost for cell in cells) / 1_100 / 3600
    expected = {"A": 6, "A-rates": 4, "A-again": 6, "B-classes": 3, "B-small": 4, "C": 7}
    assert {name: round(hours[name]) for name in expected} == expected


def test_the_recipe_yields_to_the_command_line_and_decided_entries_are_refused(tmp_path, capsys):
    plan, _ = images.planned(images.flags.parse(images._parser(), ["--width=4", "--set=optimizer.clip_norm=2.0"]))
    config = plan.reported("A", Key("cifar10", "mul, LN", 8), 0.1)[0].config
    assert (config.model.width, config.optimizer.clip_norm, config.model.norm) == (4, 2.0, "ln")
    assert (config.schedule.name, config.batch_size, config.dataset.augment) == ("onecycle", 128, "crop_flip")
    assert run(tmp_path, "--seeds=3") == 2
    assert capsys.readouterr().err == "error: --seeds: the study decides it\n"
    assert run(tmp_path, "--parts=Z") == 2 and "unknown 'Z'; choose from A" in capsys.readouterr().err
    argv = [f"--workdir={tmp_path}", f"--out={tmp_path / 'o'}", f"--archive={tmp_path}", "--parts=A,A-again"]
    assert images.main(argv, Trainer(by_rate)) == 2
    assert capsys.readouterr().err == "error: --parts: A-again takes its rates from A-rates; name both\n"
    assert run(tmp_path, "--design=tpu") == 2 and "choose from cpu, gpu, products, smoke" in capsys.readouterr().err


def test_a_study_tunes_trains_and_compares(tmp_path, capsys):
    train = Trainer(by_rate)
    assert run(tmp_path, train=train) == 0
    tuning = read(tmp_path, "_tuning")
    assert set(tuning["seed"]) == {1000, 1001} and set(tuning.loc[tuning["picked"], "rate"]) == {0.3}
    rows = read(tmp_path)
    rows = rows[rows["part"] != "depth"]
    assert len(rows) == 2 * 2 * 2 and set(rows["seed"]) == {0, 1} and set(rows["learning_rate"]) == {0.3}
    differences = read(tmp_path, "_differences").set_index(["part", "arm", "metric"])
    assert differences.loc[("A", "mul_bn1", "OA"), "difference"] == pytest.approx(-0.1)
    assert differences.loc[("A", "mul_bn1", "OA"), "p_holm"] == 0.5
    assert np.isnan(differences.loc[("A", "add", "OA"), "difference"])
    (contrast,) = read(tmp_path, "_contrasts").to_dict("records")

    def gain(seed, more):
        logit = [math.log(p / (1 - p)) for p in (good + more + 0.01 * seed for good in (0.7, 0.8))]
        return logit[0] - logit[1]

    assert contrast["difference"] == pytest.approx(np.mean([gain(s, 0.1) - gain(s, 0) for s in (0, 1)]), abs=1e-5)
    assert "three epochs less two, mul_bn1: -0." in capsys.readouterr().out
    knew = read(tmp_path, "_knew").set_index("predictor")["tau"]
    assert knew.to_dict() == {"eigenlearning": 1, "leave_one_out": -1}
    header = (tmp_path / "out.csv").read_text()
    assert "14 of 14 cells were trained" in header and len(train.trained) == 14
    names = ("differences", "contrasts", "curves", "rates", "depth")
    drawn = images.figures.draw(images.tables.written(tmp_path / "out", *images.SUFFIXES), tmp_path / "out")
    assert drawn == [tmp_path / f"out_{name}{suffix}" for name in names for suffix in (".png", ".pdf")]


@pytest.mark.slow
def test_what_is_archived_is_trained_on_no_other_machine(tmp_path):
    first, second, third = Trainer(by_rate), Trainer(by_rate), Trainer(by_rate)
    assert run(tmp_path, train=first) == 0
    before = {suffix: read(tmp_path, suffix) for suffix in ("", *images.SUFFIXES[:-1])}
    for path in sorted((tmp_path / "archive").iterdir())[:3]:  # these had not been committed
        shutil.rmtree(path)
    shutil.rmtree(tmp_path / "one")
    assert run(tmp_path, train=second, machine="two") == 0 and len(second.trained) == 3
    assert run(tmp_path, train=third, machine="three") == 0 and not third.trained
    for suffix, table in before.items():
        pd.testing.assert_frame_equal(read(tmp_path, suffix), table)
    names = {path.name for path in (tmp_path / "archive").rglob("*") if path.is_file()}
    assert names == {"config.json", "env.json", "metrics.jsonl", "status.json", "summary.json"}


def test_finished_trains_nothing_and_takes_what_there_is(tmp_path, capsys):
    train = Trainer(by_rate)
    assert run(tmp_path, "--finished", train=train) == 2 and not train.trained
    assert "no run is finished" in capsys.readouterr().err
    assert run(tmp_path) == 0
    runs = {
        path.name: config_lib.json.loads((path / "config.json").read_text())
        for path in (tmp_path / "archive").iterdir()
    }
    (one,) = [n for n, c in runs.items() if c["seed"] == 0 and c["name"] == "mul_bn1" and c["epochs"] == 3]
    shutil.rmtree(tmp_path / "archive" / one)
    assert run(tmp_path, "--finished", train=train, machine="two") == 0 and not train.trained
    assert len(read(tmp_path)) == 14 and read(tmp_path, "_contrasts").empty


def test_minutes_start_what_fits(tmp_path, capsys):
    """The first run, at the assumed speed, does; at the speed that it tells, no other does."""
    train = Trainer(lambda config, seed: 0.5 + 0.01 * seed)
    argv = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", f"--archive={tmp_path / 'archive'}"]
    part = "--parts=board-20"
    assert images.main(["--design=gpu", part, "--minutes=0.5", *argv], train) == 2 and not train.trained
    assert "no run is finished" in capsys.readouterr().err
    assert images.main(["--design=gpu", part, "--minutes=60", *argv], train) == 0
    said = capsys.readouterr().out
    assert len(train.trained) == 1 and said.count("does not fit --minutes") == 5 and "board-20 3 h 0 min" in said
    assert {c.optimizer.clip_norm for c in train.trained} == {0} and {c.seeds for c in train.trained} == {3}
    assert images.main(["--design=gpu", part, *argv], train) == 0 and len(train.trained) == 6
    rows = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert (rows["best_OA"] >= rows["OA"] - 0.02).all() and len(rows) == 18


@pytest.mark.slow
def test_a_rate_that_is_better_at_full_length_is_reported_too(tmp_path):
    """Tuning on few images prefers .1; the same replicas at full length prefer .3 with the product."""

    def accuracy(config, seed):
        best = 0.3 if config.model.merge == "mul" and config.epochs == 10 else 0.1
        return 0.5 - 0.1 * abs(math.log10(config.optimizer.learning_rate / best)) + 0.001 * (seed % 10)

    argv = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", f"--archive={tmp_path / 'archive'}"]
    assert images.main(["--parts=A,A-rates,A-again", *argv], Trainer(accuracy)) == 0
    rates = read(tmp_path).groupby(["part", "arm"])["learning_rate"].unique().map(list).to_dict()
    assert rates["A", "mul"] == [0.1] and rates["A-again", "mul"] == [0.3]
    assert rates["A", "add"] == rates["A-again", "add"] == [0.1]
    around = read(tmp_path, "_around")
    assert sorted(set(around["learning_rate"])) == [0.03, 0.1, 0.3] and len(around) == 2 * 3 * 3 * 2
    contrasts = read(tmp_path, "_contrasts")
    assert contrasts["contrast"].nunique() == 2 and (contrasts["pairs"] == 8).all()


def test_the_first_seeds_of_all_arms_are_trained_first(tmp_path):
    train = Trainer(lambda config, seed: 0.5 - 0.1 * abs(math.log10(config.optimizer.learning_rate / 0.1)))
    argv = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", f"--archive={tmp_path / 'archive'}"]
    assert images.main(["--parts=A", *argv], train) == 0
    seeds = [config.seed for config in train.trained if config.seed < 1000]
    assert seeds == sorted(seeds) and len(seeds) == 2 * 3 * 4


def test_a_rate_at_an_edge_is_refused(tmp_path, capsys):
    def ever_better(config, seed):
        return min(0.99, 0.5 + 0.05 * math.log10(config.optimizer.learning_rate))

    argv = [f"--workdir={tmp_path}", f"--out={tmp_path / 'o'}", f"--archive={tmp_path}"]
    smoke = images.SMOKE | {"allow_edge": False}
    images.SMOKE, kept = smoke, images.SMOKE
    try:
        assert images.main(["--smoke", *argv], Trainer(ever_better)) == 2
    finally:
        images.SMOKE = kept
    assert "is at the edge of those tried" in capsys.readouterr().err


def test_a_replica_that_diverges_counts_as_a_guess(tmp_path):
    def lost(config):
        reported = config.seed < 1000 and config.model.merge == "mul_bn1" and config.epochs == 2
        return {config.seed: 1} if reported else {}

    assert run(tmp_path, train=Trainer(by_rate, lost)) == 0
    rows = read(tmp_path).set_index(["part", "arm", "seed"])
    row = rows.loc[("A", "mul_bn1", 0)]
    assert row["status"] == "diverged" and row["OA"] == pytest.approx(0.1) and np.isnan(row["ECE"])
    assert row["test_loss"] == pytest.approx(math.log(10), abs=1e-4)
    differences = read(tmp_path, "_differences").set_index(["part", "arm", "metric"])
    assert differences.loc[("A", "mul_bn1", "OA"), ["lost", "pairs"]].tolist() == [1, 2]


def invented(gains):
    """Rows of eight seeds; `gains`: (set, arm) -> mean gain in logits, with a spread over seeds."""
    rows = []
    spread = np.linspace(-1, 1, 8) * 0.02
    for dataset in ("cifar10", "cifar100"):
        for arm in ("add", "mul", "mul_bn1"):
            for seed in range(8):
                logit = 0.5 + gains.get((dataset, arm), 0) + (spread[seed] if arm != "add" else 0)
                accuracy = 1 / (1 + math.exp(-logit))
                values = {"OA": accuracy, "logit": logit, "test_loss": 1 - accuracy, "ECE": 0.1}
                about = {"part": "A", "set": dataset, "arm": arm, "depth": 8, "seed": seed, "status": "done"}
                rows.append(about | values)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("gains, words", [
    ({("cifar100", "mul"): 0.3}, ("holds", "is open")),
    ({("cifar100", "mul"): 0.3, ("cifar10", "mul"): 0.3}, ("is open", "is open")),
    ({("cifar100", "mul"): -0.3, ("cifar10", "mul"): -0.6}, ("fails", "is open")),
    ({("cifar10", "mul_bn1"): -0.3}, ("is open", "is open")),
], ids=str)  # fmt: skip
def test_verdicts_follow_the_plan(gains, words):
    """An interaction alone is no advantage; an advantage on both sets is no interaction."""
    found, said = images.derived(invented(gains), DESIGNS["cpu"])
    assert [sentence.rpartition("the claim ")[2] for sentence in said.values()] == list(words)
    contrasts = found["_contrasts"].set_index("arm")
    for arm in ("mul", "mul_bn1"):
        expected = gains.get(("cifar100", arm), 0) - gains.get(("cifar10", arm), 0)
        assert contrasts.loc[arm, "difference"] == pytest.approx(expected, abs=1e-9)
    assert found["_contrasts"]["p_holm"].min() >= 2 * 2 / 2**8


def test_epochs_to_the_loss_of_the_sum():
    losses = {"add": [3, 2, 1.0], "mul": [2, 1.0, 0.5], "mul_bn1": [3, 2.5, 2]}
    course = pd.DataFrame([
        {"part": "A", "set": "x", "arm": arm, "depth": 8, "seed": seed, "epoch": epoch + 1, "test_loss": loss + seed}
        for arm, own in losses.items() for seed in (0, 1) for epoch, loss in enumerate(own)
    ])  # fmt: skip
    found = tables.reached(course).set_index("arm")
    assert found.loc["add", ["reached", "mean"]].tolist() == [2, 3]
    assert found.loc["mul", ["reached", "mean"]].tolist() == [2, 2]
    assert found.loc["mul_bn1", ["pairs", "reached"]].tolist() == [2, 0] and np.isnan(found.loc["mul_bn1", "mean"])


@pytest.mark.parametrize("rows", [1, 3])
def test_errors_of_a_kernel(rows):
    """Leave-one-out is that of a regression without the image; eigenlearning is near what other images get."""
    rng, C, M, n = np.random.default_rng(0), 3, 150, 50
    features = rng.normal(size=(M * rows, 12)) * 2.0 ** -np.arange(12)
    kernel = features @ features.T + 0.05 * np.eye(M * rows)
    labels = np.argmax(rng.normal(size=(M, C)) + 3 * features[::rows, :1] * [1, 0, -1], 1)
    found = kernels.errors(kernel, labels, n, C)
    K = kernel / np.median(np.diag(kernel))
    Y = (np.eye(C)[labels] - np.bincount(labels[:n], minlength=C) / n).reshape(M * rows, -1)

    def residual(train, test):
        solved = np.linalg.solve(K[np.ix_(train, train)] + kernels.RIDGE * np.eye(len(train)), Y[train])
        return Y[test] - K[np.ix_(test, train)] @ solved

    seen = np.arange(n * rows)
    squares = [residual(np.delete(seen, own), own) ** 2 for own in seen.reshape(n, rows)]
    assert found["leave_one_out"] == pytest.approx(np.mean(squares) / np.mean(Y[seen] ** 2), rel=1e-6)
    rest = np.arange(n * rows, M * rows)
    assert found["eigenlearning"] == pytest.approx(np.mean(residual(seen, rest) ** 2) / np.mean(Y**2), rel=0.3)


def test_whether_a_kernel_knew():
    arms, errors = ["add", "mul", "mul_bn1"], [0.2, 0.4, 0.3]
    table = pd.DataFrame({"set": "digits", "kernel": "trace", "arm": arms, "eigenlearning": [1, 3, 2.0],
                          "leave_one_out": [3, 1, 2.0]})  # fmt: skip
    rows = pd.DataFrame({"part": "A", "set": "digits", "depth": 4, "arm": arms, "OA": [1 - e for e in errors]})
    found = tables.knew(table, rows, DESIGNS["smoke"]).set_index("predictor")
    assert found["tau"].to_dict() == {"eigenlearning": 1, "leave_one_out": -1} and (found["arms"] == 3).all()
    assert found.loc["eigenlearning", "p"] == pytest.approx(2 / 6)  # of all orders of three


def by_depth(losses, lost=()):
    """Rows of two arms, accuracy .9 at depth 8 and that less a loss at depth 56, of four seeds."""
    return pd.DataFrame([
        {
            "part": "depth", "set": "digits", "arm": arm, "depth": depth, "seed": seed,
            "status": "diverged" if arm in lost and depth == 56 and seed == 0 else "done",
            "OA": 0.9 - (depth == 56) * (loss + 0.001 * seed),
        }
        for arm, loss in losses.items() for depth in (8, 20, 56) for seed in range(4)
    ])  # fmt: skip


def test_what_stands_depth():
    table = tables.depths(by_depth({"add": 0.0, "mul": 0.1, "glu": 0.0095, "pure": 0.0}, lost=("pure",)))
    assert list(table["deep"]) == [56] * 4 and list(table["lost"]) == [0, 0, 0, 1]
    assert list(table["difference"]) == pytest.approx([-0.0015, -0.1015, -0.011, -0.0015])
    assert list(table["verdict"]) == ["stand", "do not stand", "open", "do not stand"]
    (words,) = tables.stand(table).values()
    assert words.startswith(
        "depth 56 less depth 8, in points, n = 4: stand: add (-0.2 [-0.4, +0.1]); do not stand: mul ("
    )
    assert words.endswith("pure (-0.2 [-0.4, +0.1], 1 lost); open: glu (-1.1 [-1.3, -0.9])")
    assert tables.depths(by_depth({"add": 0.0})[lambda rows: rows["depth"] == 8]).empty
    rows = by_depth({"add": 0.0, "mul": 0.0})
    unfinished = tables.depths(rows[(rows["arm"] == "add") | (rows["depth"] < 56)])
    assert list(unfinished["verdict"]) == ["stand", "open"] and list(unfinished["pairs"]) == [4, 0]
    assert list(tables.stand(unfinished).values())[0].endswith("open: mul (unknown)")


def test_whether_the_gain_foretold_what_stands_depth():
    arms = {"add": 0.0, "mul": 0.3, "glu": 0.1, "pure": 0.2}
    gains = pd.DataFrame({"part": "depth", "set": "digits", "arm": list(arms), "depth": 56,
                          "gain": [1.01, 9, 0.8, 1 / 3], "predicted_gain": [1.0, 0.99, 2.0, np.nan]})  # fmt: skip
    found = tables.foretold(tables.depths(by_depth(arms)), gains).set_index("predictor")
    assert found["tau"].to_dict() == pytest.approx({"gain": 1, "predicted_gain": 1 / 3})
    assert found["arms"].to_dict() == {"gain": 4, "predicted_gain": 3}
    assert tables.foretold(pd.DataFrame(), gains).empty


def test_gains_are_geometric_means_over_the_blocks_after_the_first():
    rows = [
        {"seed": seed, "block": i, "gain": gain} for seed in range(2) for i, gain in enumerate((math.nan, 2.0, 8.0))
    ]
    theory = [{"block": i, "gain": gain} for i, gain in enumerate((math.nan, 1.0, 4.0))]
    key = Key("digits", "mul", 8)
    found = tables.gains(
        {
            ("depth", key): {"rows": rows, "theory": theory},
            ("depth", key._replace(depth=4)): {"rows": rows[:1], "theory": []},
        }
    )
    assert list(found["gain"])[0] == pytest.approx(4) and list(found["predicted_gain"])[0] == pytest.approx(2)
    assert found[["gain", "predicted_gain"]].iloc[1].isna().all() and list(found["n"]) == [2, 0]
