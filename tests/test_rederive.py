"""Intervals anew from committed rows: equal headers, equal rows, and ties that rounding has not broken."""

import shutil

import numpy as np
import pandas as pd
import pytest

from experiments.paper import rederive, redraw
from experiments.paper.claims import ROOT
from resjax import stats
from resjax.analysis import tables
from resjax.analysis.intervals import with_intervals

RESULTS = ROOT / "results"


@pytest.fixture
def copied(tmp_path):
    def copy(name):
        for path in [*RESULTS.glob(f"{name}.csv"), *RESULTS.glob(f"{name}_*.csv")]:
            shutil.copy(path, tmp_path)
        return tmp_path / name

    return copy


def test_a_run_keeps_its_rows_and_says_what_was_derived_anew(copied):
    out = copied("compare_digits")
    path = out.with_name("compare_digits_differences.csv")
    rows, before = out.with_suffix(".csv").read_text(), tables.read_csv(path)
    damaged = before.assign(difference_low=0.0, p=1.0)
    tables.write_csv(damaged, path, tables.read_header(path))
    (run,) = [run for run in redraw.runs(out.parent) if run.out == out]
    written = rederive.rederive(run, "0123abc")
    header = tables.read_header(path)
    assert all(tables.read_header(p) == header for p in written) and len(written) == 3
    assert header["statistics"].endswith("at commit 0123abc")
    assert header == run.header | {"statistics": header["statistics"]}
    assert tables.read_text(out.with_suffix(".csv")) == "".join(
        line for line in rows.splitlines(keepends=True) if line[0] != "#"
    )
    again = tables.read_csv(path)
    pd.testing.assert_frame_equal(again[["merge", "n", "mean"]], before[["merge", "n", "mean"]])
    row = again.set_index("merge").loc["mul"]
    values = tables.unrounded(tables.read_csv(out.with_suffix(".csv"))).pivot(
        index="seed", columns="merge", values="OA"
    )
    want = stats.mean_ci(values["mul"] - values["add"])
    assert row["difference_low"] == pytest.approx(want["ci_low"], rel=1e-5)
    assert row["p"] == pytest.approx(before.set_index("merge").loc["mul", "p"])


def test_a_run_that_is_not_there_and_a_study_that_can_not_end_in_one_line(copied, capsys):
    out = copied("degree")
    for name, said in {out: "derives no tables", out.with_name("degre"): "no run left tables"}.items():
        assert rederive.main([str(name)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_shares_are_as_exact_as_before_they_were_written(tmp_path):
    accuracies = np.array([357, 354, 360, np.nan, 0]) / 360
    table = pd.DataFrame({"dataset": "digits", "OA": accuracies, "loss": np.sqrt([2, 3, 5, 7, 11]), "n": 12.0})
    other = table.assign(dataset="mnist", OA=[0.9731, 0.98, 1, 0.5, 0.1234])
    path = tables.write_csv(pd.concat([table, other]), tmp_path / "t.csv", {})
    again = tables.unrounded(tables.read_csv(path))
    np.testing.assert_array_equal(again["OA"], [*accuracies, *other["OA"]])
    assert not np.array_equal(tables.read_csv(path)["OA"], again["OA"], equal_nan=True)
    np.testing.assert_allclose(again["loss"], np.sqrt([2, 3, 5, 7, 11] * 2), rtol=1e-5)


def test_a_curve_has_the_intervals_of_its_means_and_standard_deviations():
    values = [[1.0, 2.0, 4.0], [3.0, 3.0, 3.0], [5.0]]
    known = [stats.mean_ci(v) for v in values]
    curve = pd.DataFrame(known).astype(float)
    found = with_intervals(curve.assign(ci_low=0.0, ci_high=0.0))
    pd.testing.assert_frame_equal(found, curve)
