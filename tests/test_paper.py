"""The paper: studies one after the other, exit codes and signals, LaTeX and the report."""

import os
import signal
import sys
import threading
import time

import pandas as pd
import pytest

from experiments import paper, paper_report
from experiments.questions import Question
from resjax.analysis import tables

HEADER = {"command": "python -m experiments.lesion --out=x", "commit": "c0", "device": "1 x cpu", "date": "today"}


def exits(code):
    return [sys.executable, "-c", f"raise SystemExit({code})"]


def test_a_failing_study_does_not_stop_the_others(capsys):
    assert paper.study({"a": exits(1), "b": exits(0), "c": exits(2)}, os.environ) == ({"a": 1, "c": 2}, 0)
    assert "[2/3] b: exit code 0" in capsys.readouterr().out


def test_a_stopped_study_stops_the_paper():
    assert paper.study({"a": exits(130), "b": exits(0)}, os.environ) == ({}, 130)
    assert paper.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], os.environ) == 128 + 9


def test_a_signal_goes_to_the_study(tmp_path):
    ready = tmp_path / "ready"
    code = "import pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    code += f"pathlib.Path({str(ready)!r}).touch()\ntime.sleep(60)"

    def tell():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    assert paper.run([sys.executable, "-c", code], os.environ) == 143


def test_latex_is_escaped_and_numbers_stand_right():
    text = paper_report.latex(pd.DataFrame({"merge": ["mul_bn", "5 % & $x^2$"], "OA": [0.123456, float("nan")]}))
    assert text.splitlines()[0] == r"\begin{tabular}{lr}"
    assert r"mul\_bn & 0.1235 \\" in text and r"5 \% \& \$x\^{}2\$ &  \\" in text


def test_the_report_has_the_verdict_the_table_and_the_origin(tmp_path, monkeypatch):
    table = pd.DataFrame({"merge": ["add", "mul"], "seed": [0, 1], "OA": [0.9, 0.8]})
    tables.write_csv(table, tmp_path / "results" / "x.csv", HEADER | {"Q1": "yes, 1 [0, 2]", "Q2": "no"})
    questions = {"Q1": Question("Does it?", "lesion", "Q1", table=""), "Q3": Question("And this?")}
    monkeypatch.setattr(paper_report, "QUESTIONS", questions)
    page = paper_report.write(tmp_path / "results", tmp_path / "paper").read_text()
    assert "Q1: yes, 1 [0, 2]" in page and "Q2: no" not in page and ">0.9<" in page
    assert "By python -m experiments.lesion --out=x, n = 2 seeds, commit c0, device 1 x cpu, date today." in page
    assert page.index("Q3: And this?") < page.index("Not answered yet.")
    assert sorted(p.name for p in (tmp_path / "paper" / "tables").iterdir()) == ["x.csv", "x.tex"]


def test_a_table_that_names_no_study_is_refused(tmp_path):
    tables.write_csv(pd.DataFrame({"a": [1]}), tmp_path / "x.csv", {"command": "rm"})
    with pytest.raises(ValueError, match="names no study"):
        paper_report.write(tmp_path, tmp_path / "paper")


def test_a_table_comes_back_as_it_was_written(tmp_path):
    table = pd.DataFrame(
        {
            "hash": ["00123456", "1e234567"], "gate": ["", ""], "merge": ["add", ""], "n": [1, 2], "ok": [True, False],
            "loss": [float("inf"), float("nan")], "norm": ["none", "# ln"], "empty": [float("nan")] * 2,
        }
    )  # fmt: skip
    header = {"command": "python -m x --set a=b: c", "cube:1 (n 2)": "mul: +1 [0, 2]"}
    tables.write_csv(table, tmp_path / "t.csv", header)
    pd.testing.assert_frame_equal(tables.read_csv(tmp_path / "t.csv"), table, check_dtype=False)
    assert tables.read_header(tmp_path / "t.csv") == header
    assert tables.verdicts(header) == {"cube:1 (n 2)": "mul: +1 [0, 2]"}
    tables.write_csv(table, tmp_path / "t_old.csv", {"command": "another"})
    assert list(tables.written(tmp_path / "t", "_old", "_missing")) == [""]
