"""The study of CONTRIBUTING.md, built in a folder of its own: it runs, and all that lists studies finds it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from resjax.analysis import tables

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"^`(experiments/moved/[\w.]+)` .*?^```\w+\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the files of the page; `experiments` is a namespace, of which this is a second part."""
    folder = tmp_path_factory.mktemp("contributing")
    for name, text in FILE.findall((ROOT / "CONTRIBUTING.md").read_text()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(list((folder / "experiments/moved").iterdir())) == 5
    return folder


def python(folder, *words):
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, *words]
    return subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_it_runs(folder):
    said = python(folder, "-m", "experiments.moved", "--smoke")
    assert "moves farthest" in said and (folder / "results/moved_smoke.png").exists()
    rows = tables.read_csv(folder / "results/moved_smoke.csv")
    assert len(rows) == 4 and (rows["moved"] > 0).all()
    header = tables.read_header(folder / "results/moved_smoke.csv")
    assert "2 of 2 measurements made" in header["wall time"] and "moves farthest" in header["verdict"]


def test_it_is_found(folder):
    code = (
        "from runpy import run_module; from experiments.paper import claims, questions as q;"
        "print(claims.answers()['Q99'], q.commands()['moved']); run_module('experiments', run_name='__main__')"
    )
    answer, _, listed = python(folder, "-c", code).partition("\n")
    assert answer == "Not measured. ('',)" and "Q99: How far does training move the weights?" in listed
    for name in ("requirements.txt", "pyproject.toml"):  # what the Makefile's set-up depends on
        (folder / name).touch()
    smoke = ["make", "-n", "-C", folder, "-f", ROOT / "Makefile", "smoke"]
    assert "experiments.moved --smoke" in subprocess.run(smoke, check=True, capture_output=True, text=True).stdout
