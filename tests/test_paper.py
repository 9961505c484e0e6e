"""The paper: studies one after the other, exit codes and signals, LaTeX and the report."""

import os
import re
import signal
import sys
import threading
import time

import pandas as pd
import pytest

from experiments.paper import claims, redraw
from experiments.paper import report as paper_report
from experiments.paper import run as paper
from experiments.paper.claims import Claim
from experiments.paper.excerpt import Excerpt, Value
from experiments.paper.questions import Question, questions
from resjax.analysis import tables
from resjax.config import ConfigError

HEADER = {"command": "python -m experiments.lesion --out=x", "commit": "c0", "device": "1 x cpu", "date": "today"}


def exits(code):
    return [sys.executable, "-c", f"raise SystemExit({code})"]


def test_a_failing_study_does_not_stop_the_others(capsys):
    assert paper.study({"a": exits(1), "b": exits(0), "c": exits(2)}, os.environ) == ({"a": 1, "c": 2}, 0)
    assert "[2/3] b: exit code 0" in capsys.readouterr().out


def test_a_stopped_study_stops_the_paper():
    assert paper.study({"a": exits(130), "b": exits(0)}, os.environ) == ({}, 130)
    assert paper.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], os.environ) == 128 + 9


def test_a_study_that_crashes_does_not_stop_the_others():
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert paper.study({"a": killed, "b": exits(139), "c": exits(0)}, os.environ) == ({"a": 137, "b": 139}, 0)


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


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """One question with a study's table, one with nothing; a function that writes the report."""
    table = pd.DataFrame({"merge": ["add", "mul"], "seed": [0, 1], "OA": [0.9, 0.8], "OA_low": 0.5, "OA_high": 1.0})
    header = HEADER | {"commit": "0123456789abcdef" * 2 + "01234567 (with changes)", "Q1": "yes, 1 [0, 2]", "Q2": "no"}
    tables.write_csv(table, tmp_path / "results" / "x.csv", header)
    excerpt = Excerpt("Accuracies", "", ("merge",), {"OA": Value("OA (%)", 100)})
    two = {"Q1": Question("Does it?", "Q1", table=excerpt, study="lesion"), "Q3": Question("And this?")}
    monkeypatch.setattr(paper_report, "questions", lambda: two)
    return lambda: paper_report.write(tmp_path / "results", tmp_path / "paper").read_text()


def test_the_report_has_the_verdict_the_table_and_the_origin(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_report.claims, "answers", lambda: {"Q1": "It does.", "Q3": "Not measured."})
    page = asked()
    assert "Q1: yes, 1 [0, 2]" not in page and "<dt>x, Q1</dt><dd>yes, 1 [0, 2]</dd>" in page
    assert "Q2" not in page and "<td>90 [50, 100]</td>" in page and "Accuracies. x.csv" in page
    origin = "python -m experiments.lesion --out=x · n = 2 seeds · commit 01234567 (with changes) · 1 x cpu · today"
    assert f"<dt>x</dt><dd>{origin}</dd>" in page
    assert page.index("<p>It does.</p>") < page.index("Q3: And this?</h2>") < page.index("<p>Not measured.</p>")
    assert "Out of date" not in page
    assert sorted(p.name for p in (tmp_path / "paper" / "tables").iterdir()) == ["x.csv", "x.tex"]


@pytest.mark.parametrize(("text", "old"), [("90 [50, 100]", False), ("91 [50, 100]", True)])
def test_an_answer_that_the_tables_contradict_is_marked(asked, monkeypatch, text, old):
    claim = Claim(text, ("docs/experiments.md",), "results/x.csv", {"merge": "add"}, ("OA", "OA_low", "OA_high"), 100)
    monkeypatch.setattr(paper_report.claims, "answers", lambda: {"Q1": f"It has {text}."})
    monkeypatch.setattr(paper_report.claims, "read", lambda: [claim])
    assert ("Out of date" in asked()) == old


def test_an_excerpt_is_what_was_chosen_in_groups():
    table = pd.DataFrame({
        "norm": ["bn", "ln", "bn", "ln"], "merge": ["add", "add", "mul", "mul"], "depth": [8, 8, 8, 20],
        "mean": [0.1, 0.2, 0.3, 0.4], "ci_low": [0.0, 0.1, float("nan"), 0.3], "ci_high": 1.0, "verdict": "no",
    })  # fmt: skip
    values = {"mean": Value("error (%)", 100), "verdict": Value("said")}
    shown = Excerpt("", "", ("norm", "merge"), values, {"depth": 8}).of(table)
    assert shown.index.tolist() == [("bn", "add"), ("bn", "mul"), ("ln", "add")]
    assert shown.columns.tolist() == ["error (%)", "said"]
    assert shown["error (%)"].tolist() == ["10 [0, 100]", "30", "20 [10, 100]"]
    assert Excerpt("", "", ("norm",), values, {"depth": 9}).of(table) is None
    assert Excerpt("", "", ("nothing",), values).of(table) is None


def test_every_figure_of_the_results_and_every_excerpt_has_its_question():
    results = claims.ROOT / "results"
    everything = redraw.runs(results)
    runs = [run for run in everything if not run.smoke]
    for run in runs:
        asked = [question for question in questions().values() if question.study == run.study]
        for path in redraw.figures_of(run, everything):
            name = path.stem.removeprefix(run.out.name).removeprefix("_")
            assert any(re.fullmatch(pattern, name) for question in asked for pattern in question.figures), path
    for number, question in questions().items():
        own = [run for run in runs if run.study == question.study]
        names = [
            p.stem.removeprefix(r.out.name).removeprefix("_") for r in own for p in redraw.figures_of(r, everything)
        ]
        assert all(any(re.fullmatch(pattern, name) for name in names) for pattern in question.figures), number
        if question.verdicts != "$":
            assert any(question.has_verdict(key) for run in own for key in tables.verdicts(run.header)), number
        if question.table is not None:
            found = [tables.written(run.out, question.table.suffix) for run in own]
            read = [table[question.table.suffix] for table in found if question.table.suffix in table]
            assert any(question.table.of(table) is not None for table in read), number


def test_studies_that_failed_are_named(asked, tmp_path):
    asked()
    path = paper_report.write(tmp_path / "results", tmp_path / "paper", failed=["degree"])
    assert "<dt>failed</dt><dd>degree: what is shown of them is older</dd>" in path.read_text()


def test_a_report_of_nothing_is_refused(asked, tmp_path):
    with pytest.raises(ConfigError, match="no tables of small studies"):
        paper_report.write(tmp_path / "results", tmp_path / "paper", smoke=True)


def test_a_caption_says_how_many():
    assert paper_report._full("Loss", "6 seeds") == "Loss, n = 6 seeds."
    assert paper_report._full("One net.", "6 seeds") == "One net."


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
