import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from fake_runs import a_config, write_run

from resjax import config as config_lib
from resjax import records
from resjax.analysis import tables


def test_load_has_a_row_per_epoch_seed_and_split(tmp_path):
    config = a_config("mul", epochs=3)
    course = tables.load(write_run(config, tmp_path, {0: 0.9, 5: 0.8}))
    assert len(course) == 3 * 2 * 2
    assert not course.duplicated(["epoch", "seed", "split"]).any()
    assert set(course["merge"]) == {"mul"} and set(course["hash"]) == {config_lib.hash8(config)}
    assert sorted(course["seed"].unique()) == [0, 5]
    assert course.loc[course["split"] == "test", "learning_rate"].isna().all()  # null, not a string or None
    assert all(course[m].dtype == float for m in tables.COURSE_METRICS)


def test_load_keeps_a_diverged_replica_up_to_its_end(tmp_path):
    course = tables.load(write_run(a_config(epochs=5), tmp_path, {0: 0.9, 1: 0.9}, diverged={1: 2}))
    lost = course[(course["seed"] == 1) & (course["split"] == "train")]
    assert lost["epoch"].tolist() == [1, 2]
    assert lost["loss"].isna().tolist() == [False, True]


def test_summary_has_a_row_per_run_and_seed_with_its_config(tmp_path):
    other = a_config("mul", **{"optimizer.learning_rate": 0.03, "model.depth": 14})
    runs = [
        write_run(a_config("add"), tmp_path, {0: 0.9, 1: 0.8}),
        write_run(other, tmp_path, {0: 0.7, 1: 0.6}),
    ]
    table = tables.summary(runs)
    assert table["merge"].tolist() == ["add", "add", "mul", "mul"]
    assert table["OA"].tolist() == [0.9, 0.8, 0.7, 0.6]
    assert table["depth"].tolist() == [8, 8, 14, 14]
    assert table["learning_rate"].tolist() == [0.1, 0.1, 0.03, 0.03]
    assert table["hash"].tolist() == [run.name[-8:] for run in runs for _ in range(2)]
    assert table["parameters"].unique() == [4321]
    assert table["validation_loss"].isna().all() and table["validation_loss"].dtype == float


def test_a_diverged_replica_has_no_result_even_where_the_file_gives_one(tmp_path):
    run = write_run(a_config(), tmp_path, {0: 0.9, 1: 0.8}, diverged={1: 3})
    content = json.loads((run / "summary.json").read_text())
    content["per_seed"][1]["OA"] = 0.1  # chance, reached before it broke
    (run / "summary.json").write_text(json.dumps(content))
    row = tables.summary([run]).iloc[1]
    assert row["status"] == "diverged" and row["epoch"] == 3 and np.isnan(row["OA"])


@pytest.mark.parametrize("reader", [tables.load, lambda run: tables.summary([run])])
@pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"epoch": 1}', "\udcff"])
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
def test_a_missing_or_damaged_file_is_named_in_one_line(tmp_path, reader, name, content):
    run = write_run(a_config(epochs=2), tmp_path, {0: 0.9})
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content.encode(errors="surrogateescape"))
    used = {"config.json", "metrics.jsonl" if reader is tables.load else "summary.json"}
    if name not in used or (name, content) == ("metrics.jsonl", ""):
        reader(run)  # not its business; an empty metrics.jsonl is a run before its first epoch
        return
    with pytest.raises(ValueError) as caught:
        reader(run)
    assert str(run / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_row_is_named_by_its_line(tmp_path):
    run = write_run(a_config(epochs=2), tmp_path, {0: 0.9})
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole[:-20])
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 4: not JSON"):
        tables.load(run)
    (run / "metrics.jsonl").write_text(whole.replace('"accuracy": 0', '"accuracy": "high", "_": 0'))
    with pytest.raises(ValueError, match=r"metrics\.jsonl: not a number"):
        tables.load(run)


def test_every_preset_has_its_own_label():
    presets = [name for name, entries in config_lib.PRESETS.items() if "dataset.name" in entries]
    labels = [tables.config_columns(a_config(preset=preset))["dataset"] for preset in presets]
    assert len(set(labels)) == len(presets)
    assert {"digits", "cifar100 (coarse_label)", "cifar10 (5000 images)"} < set(labels)


def test_differences_are_paired_by_seed_and_corrected_within_a_dataset(tmp_path):
    seeds = range(8)
    base = {s: 0.5 + 0.05 * s for s in seeds}
    reached = {
        "add": base,
        "mul": {s: base[s] - 0.02 - 0.001 * s for s in seeds},
        "se": {s: base[s] + 0.01 * (-1) ** s for s in seeds},
    }
    runs = [write_run(a_config(m, d), tmp_path, reached[m]) for d in ("digits", "mnist") for m in reached]
    out = tables.differences(tables.summary(runs)).set_index(["dataset", "merge"])
    assert len(out) == 6
    mul = out.loc["digits", "mul"]
    assert mul["difference"] == pytest.approx(-0.02 - 0.001 * 3.5)
    assert -0.027 < mul["difference_low"] < mul["difference"] < mul["difference_high"] < -0.02
    assert mul["mean"] == pytest.approx(np.mean(list(base.values())) - 0.0235)
    assert mul["p"] == 2 / 2**8 and mul["p_holm"] == 2 * mul["p"]  # two merges against add, not four
    assert out.loc["digits", "add"][["difference", "p_holm"]].isna().all()


def test_differences_state_who_is_missing(tmp_path):
    runs = [
        write_run(a_config("add"), tmp_path, dict.fromkeys(range(4), 0.9), diverged={0: 1}),
        write_run(a_config("mul"), tmp_path, dict.fromkeys(range(4), 0.8), diverged={1: 1, 2: 1}),
        write_run(a_config("gate_sig"), tmp_path, {0: 0.1, 1: 0.1}, diverged={0: 1, 1: 1}),
    ]
    out = tables.differences(tables.summary(runs)).set_index("merge")
    assert out.loc["mul", ["n", "pairs", "diverged"]].tolist() == [2, 1, 2]
    assert out.loc["gate_sig", ["n", "pairs", "diverged"]].tolist() == [0, 0, 2]
    assert np.isnan(out.loc["gate_sig", "mean"])
    alone = tables.differences(tables.summary(runs[1:2]))
    assert alone["mean"].tolist() == [0.8] and alone["difference"].isna().all()


def test_differences_refuse_a_mixture_of_studies(tmp_path):
    configs = [a_config("add", **{"optimizer.learning_rate": rate}) for rate in (0.1, 0.2)]
    runs = [write_run(config, tmp_path, {0: 0.9}) for config in configs]
    with pytest.raises(ValueError, match="two rows for digits, add, seed 0"):
        tables.differences(tables.summary(runs))


def test_provenance_names_every_commit_and_device(tmp_path):
    runs = [write_run(a_config(m), tmp_path, {0: 0.9}) for m in ("add", "mul", "se")]
    env = json.loads((runs[0] / "env.json").read_text())
    (runs[1] / "env.json").write_text(json.dumps(env | {"dirty": True, "device": "NVIDIA H200"}))
    about = tables.provenance(runs)
    assert about == {"commit": "0123abc, 0123abc (with changes)", "device": "1 x cpu, 1 x NVIDIA H200"}


def test_csv_round_trip_below_its_header(tmp_path):
    reasons = ["", "broke, see # 3"]
    table = pd.DataFrame({"merge": ["add", "mul"], "reason": reasons, "OA": [0.1 + 0.2, np.nan]})
    path = tables.write_csv(table, tmp_path / "new" / "t.csv", {"command": "a\nb", "n": 8})
    assert path.read_text().splitlines()[:3] == ["# command: a b", "# n: 8", "merge,reason,OA"]
    back = pd.read_csv(path, comment="#")
    assert back["OA"].tolist()[0] == pytest.approx(0.3) and back["reason"][1] == reasons[1]
    assert [p.name for p in path.parent.iterdir()] == ["t.csv"]


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), records.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_reading_needs_neither_jax_nor_matplotlib():
    code = "import sys, resjax.analysis.tables; sys.exit(bool({'jax', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
