"""The saturation study with made-up nets: what it trains and compares, its decisions, its tables and figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run

from experiments.saturation import study as study_module
from experiments.saturation import tables as saturation
from experiments.saturation import verdicts
from experiments.saturation.cells import Cell, parts
from resjax import config as config_lib
from resjax.analysis import plots, tables
from resjax.sweep import flags, measuring, runs
from resjax.sweep.study import Study

SEEDS = (0, 1, 2)
BINS = [f"bin_{i}" for i in range(16)]
LOST = {"mul": {2: 1}}  # merge -> seed -> epoch in which it diverges


# --- The study --------------------------------------------------------------------------------------------------
def slowness(config):
    """What a made-up cell loses in accuracy: the gate, unless its rate is larger or it is steeper."""
    cured = config.optimizer.gate_lr > 1 or config.model.merge in ("add", "gate_2sig")
    return 0.0 if cured else 0.05


def train(config, workdir) -> Path:
    run_dir = Path(workdir) / f"{config.name}-{config_lib.hash8(config)}"
    if (run_dir / "status.json").exists():
        return run_dir
    seeds = range(config.seed, config.seed + config.seeds)
    rate_matters = 0.02 * abs(np.log10(config.optimizer.learning_rate / 0.1))
    reached = {seed: 0.95 - slowness(config) - rate_matters + 0.001 * (seed % 3) for seed in seeds}
    write_run(config, Path(workdir), reached, LOST.get(config.model.merge))
    if config.probes.saturation:
        rows = [
            gate_row(seed, epoch, config.model.merge) | {"block": f"stage{i}_block1"}
            for seed in seeds
            for epoch in (0, config.epochs)
            for i in (1, 2)
        ]
        (run_dir / "probe_saturation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def gate_row(seed, epoch, merge):
    row = {"seed": seed, "block": "", "gate": "" if merge in ("add", "mul", "mul_bn1") else "f"}
    values = {
        "mean": 0.5,
        "distance": 0.3,
        "saturated": 0.02 + 0.001 * seed,
        "slope_rms": 0.2,
        "slope_max": 0.25,
        "stuck": 0.0,
    }
    values |= dict.fromkeys(BINS, 1 / 16)
    row |= values if row["gate"] else dict.fromkeys(values)
    return row | {"grad_ratio": 0.2, "zeros": 0.0, "dead_units": 0.0, "update_ratio": 0.01, "epoch": epoch}


def measure(config, workdir, **options):
    assert options == {"images": 16, "probes": ("masks",), "split": "test"}
    rng = np.random.default_rng(0)
    rows = [
        {"seed": seed, "moment": moment, "block": block, "image": image, "row": r, "column": c,
         "mask": 0.5, "relative": 1 + 0.1 * rng.normal(), "ink": rng.normal()}
        for seed in SEEDS for moment in ("init", "trained") for block in ("stage1_block1", "stage2_block1")
        for image in range(6) for r in range(2) for c in range(2)
    ]  # fmt: skip
    return {"masks": rows}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "curves", lambda run_dir: None)
    monkeypatch.setattr(measuring, "workers", lambda: 1)
    monkeypatch.setattr(study_module, "COSTED", ("add", "mul", "se"))
    save = plots.save  # a figure is drawn once, as PNG
    monkeypatch.setattr(plots, "save", lambda figure, path: save(figure, path) if path.suffix == ".png" else path)

    def run(*argv):
        words = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", f"--seeds={len(SEEDS)}"]
        return study_module.main([*words, "--merges=gate_sig,gate_2sig,gate_granularity", *argv], train, measure)

    run.read = lambda suffix: pd.read_csv(tmp_path / f"out{suffix}.csv", comment="#")
    run.out = tmp_path / "out"
    return run


@pytest.mark.slow
def test_the_study_writes_its_tables_verdicts_and_figures(study, capsys):
    assert study("--rates=0.1,1", "--schedules=cosine,step") == 0
    nets = study.read("")
    assert nets.groupby("cell").size().eq(3).all() and (nets["status"] == "diverged").sum() == 1
    assert set(nets["blocks"]) == {1, 2, 3} and set(nets["schedule"]) == {"cosine", "step"}
    hypotheses = study.read("_hypotheses").set_index(["evidence", "metric"])["verdict"]
    assert set(study.read("_shape")["effect"]) == {"slope", "value", "interaction"}
    assert hypotheses["share of gate values at an asymptote", "saturated"] == "refuted"
    assert hypotheses["the branch's rate x4.7, for both", "OA"] == hypotheses["gate_2sig", "OA"] == "supported"
    assert hypotheses["no ReLU", "OA"] == "refuted"  # the gap is there without it
    effects = study.read("_effects").set_index(["arm", "cell", "metric"])
    for more in ("relu", "branch rate x4.7"):
        assert effects.loc[("controls", f"gate_sig, {more}", "OA"), "baseline"] == f"add, {more}"
        assert effects.loc[("controls", f"add, {more}", "OA"), "baseline"] == "add"
    assert effects.loc[("controls", "gate_sig", "OA"), "difference"] == pytest.approx(-0.05)
    rates = study.read("_rates")
    assert rates["best"].tolist() == [1, 1]  # made-up losses fall with the accuracy
    assert rates["at_edge"].tolist() == [6, 6] and not rates["inside"].any()  # three replicas of both merges
    course = study.read("_course")
    assert course[course["quantity"] == "slope_share"]["mean"].eq(0.8).all()
    costs = study.read("_costs").set_index("merge")
    assert (
        costs["more_parameters"].tolist()[:2] == [0, 0]
        and costs.loc["se", ["more_parameters", "more_flops"]].gt(0).all()
    )
    for name in ("histograms", "course", "effects", "rates", "number", "masks"):
        assert Path(f"{study.out}_{name}.png").stat().st_size > 1000
    printed, header = " ".join(capsys.readouterr().out.split()), Path(f"{study.out}_hypotheses.csv").read_text()
    for verdict in ("Q5, explanations: gate_sig (n = 3): saturation refuted", "Q6, saturation", "Q12, masks: masks of"):
        assert verdict in printed
    assert "# verdict on Q5, explanations: gate_sig (n = 3)" in header and "Q6, number and granularity" in printed


def test_replicas_that_diverged_are_no_part_of_the_looks(study, monkeypatch, capsys):
    monkeypatch.setitem(globals(), "LOST", {"gate_sig": {2: 1}, "gate_2sig": dict.fromkeys(SEEDS, 1)})
    assert study("--parts=gates,controls") == 0
    seeds = study.read("_gates").groupby("cell")["seed"].unique().map(list)
    assert seeds["gate_sig"] == [0, 1] and seeds["add"] == [0, 1, 2] and "gate_2sig" not in seeds
    course = study.read("_course")
    assert course.loc[course["cell"] == "gate_sig", "n"].eq(2).all()
    hypotheses = study.read("_hypotheses")
    assert hypotheses.loc[hypotheses["metric"] == "saturated", "n"].tolist() == [2]
    assert "diverged and left out: 1 of gate_sig, 3 of gate_2sig" in " ".join(capsys.readouterr().out.split())


def test_without_any_look_the_rest_is_still_written(study, monkeypatch):
    lost = ("add", "gate_sig", "gate_2sig", "gate_granularity")
    monkeypatch.setitem(globals(), "LOST", dict.fromkeys(lost, dict.fromkeys(SEEDS, 1)))
    monkeypatch.setattr(study_module, "costs", pd.DataFrame)
    assert study("--parts=gates,controls") == 0
    assert len(study.read("")) and not Path(f"{study.out}_gates.csv").exists()
    results = study_module.Results({}, {})
    study_module._on_masks(results, pd.DataFrame(columns=["cell"]))
    assert list(results.tables) == ["_costs"]


def test_no_rate_is_lost_to_the_rate_of_the_command_line():
    args = flags.parse(study_module._parser(), ["--set=optimizer.learning_rate=0.2", "--rates=0.1,0.2,0.3",
                                                "--schedules=cosine", "--parts=rates"])  # fmt: skip
    rates = {label: config.optimizer.learning_rate for label, config in study_module.configurations(args).items()}
    assert {label: rate for label, rate in rates.items() if label.startswith("add")} == {
        "add, rate 0.1": 0.1, "add": 0.2, "add, rate 0.3": 0.3,
    }  # fmt: skip


def test_a_loss_of_zero_has_a_logarithm(tmp_path):
    config = flags.config(flags.parse(study_module._parser(), ["--seeds=2"]), "digits", "add")
    run_dir = write_run(config, tmp_path, {0: 0.0, 1: 0.01})  # made-up losses are the accuracies
    table = tables.summary([run_dir]).assign(reason="")
    found = Study("m", [], None, outcomes=[runs.Outcome("add", config, run_dir, table, True)])
    assert study_module.with_metrics(found)["log_train_loss"].tolist() == pytest.approx([np.log10(2.0**-23), -2])


def test_parts_are_chosen(study, capsys):
    assert study("--parts=rates", "--rates=0.1") == 0
    assert set(study.read("")["cell"]) == {"add", "gate_sig", "add, constant", "gate_sig, constant", "add, step",
                                           "gate_sig, step"}  # fmt: skip
    assert not Path(f"{study.out}_gates.csv").exists()
    assert study("--parts=rate") == 2 and study("--datasets=digits,cifar10") == 2 and study("--every=0") == 2
    assert "choose from gates, controls" in (err := capsys.readouterr().err) and "one at a time" in err
    assert "--every=0: at least 1" in err


def test_the_cells_of_the_full_study():
    args = flags.parse(study_module._parser(), [])
    labels = {name: [cell.label for cell in own] for name, own in parts(args).items()}
    assert labels["gates"][:2] == ["add", "gate_sig"] and "gate_granularity spatial" in labels["gates"]
    assert len(labels["rates"]) == 45 and "gate_sig_bn, rate 0.3, step" in labels["rates"]
    assert "se, 2 gated" in labels["number"] and "gate_granularity full, 1 gated" in labels["number"]
    configs = study_module.configurations(args)
    assert len(configs) == len({config_lib.hash8(c) for c in configs.values()}) == 72
    assert configs["gate_sig"].probes.saturation == 4 and configs["gate_sig, rate 0.3"].probes.saturation == 0
    assert {configs[f"{name}, branch rate x4.7"].optimizer.gate_lr for name in ("add", "gate_sig")} == {4.7}
    assert Cell("se", {"model.merge_blocks": 1}).label == "se, 1 gated"


# --- Decisions --------------------------------------------------------------------------------------------------
def nets_of(**losses):
    """Nets with this early loss, a list by seed, per cell."""
    rows = [
        {
            "cell": cell,
            "merge": cell,
            "seed": seed,
            "status": "done",
            "early_loss": loss,
            "log_train_loss": loss,
            "OA": -loss,
        }
        for cell, by_seed in losses.items()
        for seed, loss in enumerate(by_seed)
    ]
    return pd.DataFrame(rows)


NOISE = np.array([0.0, 0.01, -0.01, 0.02])


@pytest.mark.parametrize("left, verdict", [(0.1, "supported"), (0.8, "in part"), (0.5, "undecided"), (1.1, "refuted")])
def test_what_closes_a_gap(left, verdict):
    nets = nets_of(add=NOISE, gate_sig=1 + NOISE[::-1], cure=left + NOISE - NOISE.mean() + NOISE[::-1].mean())
    gates = pd.DataFrame({"cell": "gate_sig", "seed": range(4), "epoch": 1, "gate": "f", "saturated": 0.2 + NOISE})
    cure = saturation.Cure("gate_sig", "small slope", "it", {"gate_sig": 1, "add": -1}, {"cure": 1, "add": -1})
    table = saturation.hypotheses(nets, gates, [cure]).set_index("metric")
    assert table["verdict"].to_dict() == {"saturated": "supported"} | dict.fromkeys(saturation.METRICS, verdict)
    assert table.loc["OA", "gap"] == pytest.approx(1) and table.loc["OA", "left"] == pytest.approx(left, abs=0.01)
    assert table.loc["OA", "estimate"] == pytest.approx(1 - left, abs=0.01)
    swapped = cure._replace(gap={"gate_sig": -1, "add": 1})
    assert saturation.hypotheses(nets, gates, [swapped])["verdict"][1:].eq("no gap").all()


def test_a_contrast_counts_the_seeds_that_all_cells_have():
    nets = nets_of(a=[1, 2, np.nan, 4], b=[1, 1, 1, np.nan])
    assert saturation.contrast(nets, {"a": 1, "b": -2}, "early_loss")["n"] == 2
    assert saturation.contrast(nets, {"a": 1, "b": -2}, "early_loss")["mean"] == pytest.approx(-0.5)


@pytest.mark.parametrize(("few", "coarse", "said", "size"), [
    (0.5, 1.3, "the number", 0.2), (0.7, 1.5, "the granularity", -0.2), (1.6, 0.9, "the number", 0.5),
    (0.9, 1.11, "neither is shown", -0.01),
])  # fmt: skip
def test_number_and_granularity_are_compared_by_size(few, coarse, said, size):
    nets = nets_of(many=1 + NOISE, few=few + NOISE[::-1], coarse=coarse + NOISE[[1, 3, 0, 2]])
    words = verdicts.on_number(nets, "many", "few", "coarse")
    assert said in words and float(words.rpartition("sizes ")[2].split()[0]) == pytest.approx(size, abs=0.006)


def test_the_best_rate_of_a_gate():
    rows = []
    for merge, best in {"add": 0.1, "gate_sig": 1.0}.items():
        for rate in (0.1, 1.0, 10.0):
            for seed in range(3):
                lost = rate == 10 and seed == 0
                loss = np.nan if lost else (0.0 if rate == best else 1.0) + 0.01 * seed
                rows.append([merge, "cosine", rate, seed, loss, 2 * loss])
    columns = ["merge", "schedule", "learning_rate", "seed", "log_train_loss", "early_loss"]
    nets = pd.DataFrame(rows, columns=columns).assign(cell="")
    (row,) = saturation.best_rates(nets).to_dict("records")
    assert row["ratio"] == pytest.approx(10) and row["best"] == 1 and row["best_add"] == 0.1
    assert row["at_base"] == pytest.approx(1) and row["at_best"] == pytest.approx(0)
    assert row["early_at_base"] == pytest.approx(2) and row["early_at_best"] == pytest.approx(0)
    assert row["at_edge"] == 3 and not row["inside"]  # by add: 10 was tried, though lost
    none = saturation.effects(nets, [])
    said = verdicts.on_rates(pd.DataFrame([row]), none)
    assert "best rate 10 [10, 10] times add's (n = 3)" in said and said.endswith("best for the others")
    assert "3 of the replicas' picks end the grid, NO BEST RATE" in said
    assert "NO BEST RATE" not in verdicts.on_rates(pd.DataFrame([row | {"inside": True}]), none)
    default = dict.fromkeys(("difference", "difference_low", "difference_high"), 0.5)
    unpicked = pd.DataFrame([default | {"cell": "gate_sig", "baseline": "add", "metric": "log_train_loss", "pairs": 3}])
    said = verdicts.on_rates(pd.DataFrame([row]), unpicked)
    assert said.endswith("that all share the final losses differ by gate_sig 0.5 [0.5, 0.5] (n = 3)")


def test_no_seed_measures_the_rate_that_it_picked():
    losses = {("add", 0.1): [0, 0, 0], ("add", 1.0): [1, 1, 1]}  # "gate" is best at 1, but for the first seed
    losses |= {("gate", 0.1): [0, 3, 3], ("gate", 1.0): [9, 1, 2]}
    rows = [
        {"merge": merge, "schedule": "cosine", "learning_rate": rate, "seed": seed, "log_train_loss": float(loss)}
        for (merge, rate), of_seeds in losses.items()
        for seed, loss in enumerate(of_seeds)
    ]
    nets = pd.DataFrame(rows).assign(early_loss=lambda table: table["log_train_loss"])
    assert saturation.best_rates(nets)["at_best"].item() == (9 + 3 + 3) / 3


def test_slope_and_value_are_told_apart():
    by_shape = {"a": 0.0, "b": 3.0, "c": 1.0, "d": 5.0}
    nets = nets_of(**{cell: x + NOISE for cell, x in by_shape.items()})
    table = saturation.factorial(nets, {"a": (0.5, 0.25), "b": (0.5, 0.5), "c": (1.0, 0.25), "d": (1.0, 0.5)})
    early = table[table["metric"] == "early_loss"].set_index("effect")["estimate"]
    assert early.to_dict() == pytest.approx({"slope": 3.5, "value": 1.5, "interaction": 1})
    assert "n = 4: twice the slope at 0 changes early training loss by 3.5 [3.5, 3.5] nats" in verdicts.on_shape(table)


def test_the_gates_of_a_cell_are_judged_apart():
    gates = pd.DataFrame([gate_row(0, 0, "cbam") | {"cell": "cbam", "merge": "cbam", "gate": gate, "saturated": share}
                          for gate, share in {"channel_gate": 0.0, "spatial_gate": 0.5}.items()])  # fmt: skip
    course = saturation.over_training(gates)
    shares = course[course["quantity"] == "saturated"].set_index("gate")["mean"]
    assert shares.to_dict() == {"channel_gate": 0, "spatial_gate": 0.5}
    assert "cbam: spatial_gate 50" in verdicts.on_attention(course, pd.DataFrame({"cell": []}))


def test_masks_that_follow_the_ink_and_flat_ones():
    positions = [{"image": i, "row": r, "column": 0, "ink": float(r)} for i in range(2) for r in range(3)]
    looks = {"follows": [0.5, 1.0, 1.5], "flat": [1.0, 1.0, 1.0]}
    rows = [
        position | {"cell": cell, "merge": cell, "moment": "trained", "block": "b", "seed": seed, "relative": relative}
        for cell, relatives in looks.items()
        for seed in range(2)
        for position, relative in zip(positions, relatives * 2, strict=True)
    ]
    table = saturation.attention(pd.DataFrame(rows)).set_index("cell")
    assert table.loc["follows", "ink"] == pytest.approx(1) and np.isnan(table.loc["flat", "ink"])
    assert table["contrast"].tolist() == pytest.approx([np.sqrt(1 / 6), 0])
    assert "flat varies by 0 [0, 0] % over positions, correlation with the ink unknown" in verdicts.on_masks(
        table.reset_index()
    )
