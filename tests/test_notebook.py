"""The Colab notebook: what stands in it, and that it runs.

To run it takes minutes, most of which is compilation: `make notebook`. After a change of the notebook,

    .venv/bin/python tests/test_notebook.py notebooks/resjax_colab.ipynb

runs it and writes its outputs into it (first `ruff format`, which leaves outputs alone).
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "resjax_colab.ipynb"
MAY_IMPORT = {"resjax", "jax", "numpy", "pandas", "matplotlib", "IPython"} | sys.stdlib_module_names
PROGRESS = re.compile(r"^.* (steps, \d+ s left; .*|images/s, about .* left)\n", re.MULTILINE)  # a matter of the clock
ABSOLUTE = re.compile(r"(?<![\w:/.)])/(?:\w+/)|[A-Z]:\\|" + re.escape(str(Path.home())))
DEVICES = {"/dev/accel0", "/dev/vfio/0"}  # of a TPU


def executed(folder):
    """The notebook after a run in `folder` and its Python, where it leaves whatever it writes but compiled programs."""
    from nbclient import NotebookClient

    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):  # the user's own start-up files have no say
        os.environ[name] = str(folder)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a kernel of this interpreter, not one that the user registered
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=1200,  # seconds for a cell
        record_timing=False,
        resources={"metadata": {"path": folder}},
    )
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = PROGRESS.sub("", output.text)
        cell.outputs = [output for output in cell.outputs if output.get("text") != ""]
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell):
    """All that a cell printed or showed as text."""
    return "".join(o.text if o.output_type == "stream" else o.data.get("text/plain", "") for o in cell.outputs)


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def by_id(notebook):
    return {cell.id: cell for cell in notebook.cells}


def check_numbers(notebook):
    """What the cells printed is finite, and what such runs must give."""
    cells = by_id(notebook)
    rows = [line.split() for line in text_of(cells["difference"]).splitlines() if " digits " in line]
    accuracy = {merge: float(mean) for _, _, merge, _, diverged, mean, *_ in rows if diverged == "0"}
    assert set(accuracy) == {"add", "mul"} and 0.9 < accuracy["add"] < 1 and 0.8 < accuracy["mul"] < 1
    differences = re.findall(r"(\w+) - add: (\S+) points \[(\S+), (\S+)\], 4 pairs", text_of(cells["own"]))
    assert [name for name, *_ in differences] == ["mul", "mul_half"]
    assert all(-20 < float(low) <= float(mean) <= float(high) < 20 for _, mean, low, high in differences)
    errors = [line.split() for line in text_of(cells["predicted"]).splitlines()[1:]]
    values = {" ".join(words[:-2]): tuple(map(float, words[-2:])) for words in errors if len(words) > 2}
    assert len(values) == 5
    assert all(0 < value < 10 for words, pair in values.items() if words.startswith("kernel") for value in pair)
    assert values["trained net: test error (%)"] == pytest.approx([100 - 100 * accuracy[m] for m in accuracy], abs=0.02)


# --- What stands in it ------------------------------------------------------------------------------------------------
def test_it_is_a_clean_notebook(notebook):
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 600_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert not any(cell.metadata for cell in notebook.cells)
    assert max(len(line) for cell in notebook.cells for line in cell.source.splitlines()) <= 120
    check = [sys.executable, "-m", "ruff"]
    subprocess.run([*check, "check", NOTEBOOK], check=True, cwd=ROOT)
    subprocess.run([*check, "format", "--check", NOTEBOOK], check=True, cwd=ROOT)


def test_its_outputs_are_of_one_whole_run(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {cell.id: {output.output_type for output in cell.outputs} for cell in cells}
    assert {name for name, found in kinds.items() if not found} == {"settings", "install", "train"}
    assert "error" not in set().union(*kinds.values())
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    pictures = [cell.id for cell in cells if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert pictures == ["curves", "kernels", "plane", "own"]
    check_numbers(notebook)


def test_every_output_is_followed_by_a_caveat(notebook):
    cells = notebook.cells
    for position, cell in enumerate(cells):
        if cell.cell_type == "code" and cell.outputs and cell.id != "devices":
            assert re.search(r"few (seeds|digits)|short", cells[position + 1].source), cell.id


def test_it_names_no_place_on_a_machine(notebook):
    texts = [cell.source for cell in notebook.cells] + [text_of(cell) for cell in code_cells(notebook)]
    for text in texts:
        found = {text[m.start() :].split('"')[0] for m in ABSOLUTE.finditer(text)}
        assert found <= DEVICES
    assert ABSOLUTE.search("open('/Users/x')") and ABSOLUTE.search("in /tmp/x") and ABSOLUTE.search("C:\\x")


def test_it_imports_no_more_than_it_may(notebook):
    from IPython.core.inputtransformer2 import TransformerManager

    plain = TransformerManager().transform_cell
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(plain(cell.source))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= MAY_IMPORT


def test_it_installs_what_the_makefile_does(notebook):
    pin = re.search(r"neural-tangents==[\d.]+", (ROOT / "Makefile").read_text()).group()
    install = by_id(notebook)["install"].source
    assert f'--no-deps "{pin}"' in install and "%pip install" in install


def test_its_links_lead_somewhere(notebook):
    links = [link for cell in notebook.cells for link in re.findall(r"\]\((\.\./[^)#]+)", cell.source)]
    assert links and all((NOTEBOOK.parent / link).exists() for link in links)


# --- That it runs -----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(os.environ.get("RESJAX_NOTEBOOK_RUN") != "1", reason="takes minutes: make notebook")
@pytest.mark.timeout(1500)
def test_it_runs(tmp_path):
    out = tmp_path / "out.ipynb"
    subprocess.run([sys.executable, __file__, out], check=True, cwd=tmp_path)
    notebook = nbformat.read(out, as_version=4)
    assert not [o for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "error"]
    check_numbers(notebook)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        nbformat.write(executed(place), Path(sys.argv[1]).absolute())
