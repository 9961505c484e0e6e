"""What is committed under results/: tables that say their origin, a manifest that agrees, studies that can draw."""

import ast
import shlex
import subprocess
from pathlib import Path

import pytest

from experiments.paper import claims, redraw
from experiments.paper.questions import commands, questions, studies
from experiments.paper.run import LAUNCHING, _parser
from experiments.paper.run import commands as command_lines
from resjax import records
from resjax.sweep.flags import recorded

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
EVERYTHING = redraw.runs(RESULTS)
RUNS = [run for run in EVERYTHING if not run.smoke]
MANIFEST = records.read_json(RESULTS / redraw.MANIFEST)


def names(path):
    """What a module assigns or defines at its top."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        yield from (t.id for t in getattr(node, "targets", ()) if isinstance(t, ast.Name))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.out.relative_to(RESULTS)))
def test_the_manifest_is_that_of_the_tables(run):
    assert {"command", "commit", "device"} <= run.header.keys()
    said = MANIFEST[run.out.relative_to(RESULTS).as_posix()]
    there = redraw.figures_of(run, EVERYTHING)
    assert said == redraw.entry(run, RESULTS, claims.read(), there, []), "make figures"  # which draws all of them


def test_every_figure_and_table_is_in_the_manifest():
    assert len(MANIFEST) == len(RUNS)
    told = {(RESULTS / out).parent / name for out, e in MANIFEST.items() for name in (*e["figures"], *e["kept"])}
    small = {path for run in EVERYTHING if run.smoke for path in redraw.figures_of(run, EVERYTHING)}
    assert {path for path in RESULTS.rglob("*") if path.suffix in redraw.DRAWN} - small == told


def test_every_number_of_the_text_is_in_the_manifest_with_its_origin():
    told = [number["text"] for entry in MANIFEST.values() for number in entry["numbers"]]
    assert sorted(told) == sorted(claim.text for claim in claims.read())


def test_every_study_has_a_small_version_draws_and_answers_a_question():
    for name in studies():
        folder = ROOT / "experiments" / name
        assert {"MODULE", "SMOKE", "main", "draw"} <= set(names(folder / "study.py")), name
        assert (folder / "__main__.py").exists() and (folder / "README.md").exists(), name
    assert set(studies()) == set(commands()) == {q.study for q in questions().values() if q.study}


def test_the_paper_runs_what_made_the_results():
    todo = [(name, shlex.split(line)) for name, lines in commands().items() for line in lines]
    for run in RUNS:
        words = [word for word in run.words[3:] if not word.startswith("--workdir=")]
        assert (run.study, words) in todo or (run.study, [*words, f"--out=results/{run.out.name}"]) in todo, run.out


def test_the_paper_passes_its_flags_on():
    words = {"launcher": "submitit", "jobs": 3, "partition": "gpu"}
    args = _parser().parse_args([f"--{name}={value}" for name, value in words.items()] + ["--smoke", "--workdir=w"])
    args.results = Path("paper_smoke/results")
    assert set(words) <= set(LAUNCHING)
    for name, command in command_lines(args).items():
        assert command[1:5] == ["-m", f"experiments.{name}", "--smoke", f"--out=paper_smoke/results/{name}"]
        assert command[5:] == ["--workdir=w", "--launcher=submitit", "--jobs=3", "--partition=gpu"]


def test_figures_need_no_jax_and_are_the_same_bytes_again(tmp_path):
    out = tmp_path / "compare_digits"
    for path in RESULTS.glob("compare_digits*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code = "import sys\nfrom experiments.compare import study as compare\n"
    code += f"compare.draw({str(out)!r}); assert 'jax' not in sys.modules"
    drawn = []
    for _ in range(2):
        subprocess.run([redraw.sys.executable, "-c", code], check=True, cwd=ROOT)
        drawn.append([path.read_bytes() for path in sorted(tmp_path.glob("*.p[nd][gf]"))])
    assert len(drawn[0]) == 2 and drawn[0] == drawn[1]


def test_the_command_in_a_header_is_read_back():
    from experiments.degree import study as degree

    assert recorded(degree._parser(), RESULTS / "degree").needed == 0.5
