"""The direction of imports: one layer per folder, none upwards, and no study imports a study."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [  # from below; a module imports those of its own folder and of layers below
    {"resjax.config"},
    {"resjax.stats"},
    {"resjax.records"},
    {"resjax.runtime"},
    {"resjax.theory"},
    {"resjax.data"},
    {"resjax.models"},
    {"resjax.fair"},
    {"resjax.ntk"},
    {"resjax.probes"},
    {"resjax.predictors"},
    {"resjax.training"},
    {"resjax.regression"},
    {"resjax.analysis"},
    {"resjax.sweep"},
    {"resjax.command_line"},
    {"resjax.explore"},
    {"resjax.main"},
    {"experiments", "configs"},
]
FILES = [path for top in ("resjax", "experiments", "configs") for path in sorted((ROOT / top).rglob("*.py"))]
STUDIES = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/study.py"))
SHARED = "paper"  # the one package of experiments/ that studies import


def layer(module):
    for height, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return height
    return None


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "import by the full name: a relative one escapes this test"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(module, source):
    """The imports of `module` that point to a higher layer."""
    own = layer(module)
    return [name for name in imported(source) if own is not None and (layer(name) or 0) > own]


def of_others(module, source):
    """The imports of `module`, of one study or the paper, that are of another study."""
    own = module.split(".")[1] if module.startswith("experiments.") else None
    names = [name.split(".") for name in imported(source) if name.startswith("experiments.")]
    return [".".join(name) for name in names if name[1] not in (own, SHARED)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_points_upwards_or_to_another_study(path):
    source = path.read_text()
    assert not upward(module_name(path), source)
    assert not of_others(module_name(path), source)
    assert not [name for name in imported(source) if name.startswith("tests")]


def test_analysis_reads_tables_and_no_nets():
    below = ("resjax.analysis", "resjax.config", "resjax.stats", "resjax.records")
    for path in sorted((ROOT / "resjax" / "analysis").glob("*.py")):
        above = [name for name in imported(path.read_text()) if name.startswith(("resjax", "jax"))]
        assert not [n for n in above if n != "resjax.records" and not n.startswith(below)], path


def circle(edges, start):
    """A way from `start` back to it along the edges, or None."""
    todo, seen = [[start]], set()
    while todo:
        way = todo.pop()
        for name in edges.get(way[-1], ()):
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                todo.append([*way, name])
    return None


def test_there_is_no_circle():
    sources = {module_name(path): path.read_text() for path in FILES}
    edges = {
        module: {n for name in imported(source) for n in (name, name.rpartition(".")[0])} & {*sources} - {module}
        for module, source in sources.items()
    }
    assert circle({"a": ["b"], "b": ["c"], "c": ["a"]}, "a") == ["a", "b", "c", "a"]
    assert not [way for module in sources if (way := circle(edges, module))]


def test_the_library_knows_no_study():
    for path in sorted((ROOT / "resjax").rglob("*.py")):
        assert not re.findall(rf"\b(?:experiments|results)[./](?:{'|'.join(STUDIES)})\b", path.read_text()), path


def test_the_rules_can_fail():
    assert upward("resjax.models.merges", "from resjax.training import loop") == ["resjax.training.loop"]
    assert upward("resjax.ntk.spectrum", "from resjax.probes import registry") == ["resjax.probes.registry"]
    assert not upward("resjax.training.loop", "from resjax.models import build")
    line = "from experiments.degree import tables"
    assert of_others("experiments.cause.study", line) == of_others("experiments.paper.run", line) != []
    assert not of_others("experiments.cause.study", "from experiments.cause import tables")


def test_every_module_has_a_layer():
    assert [p for p in FILES if layer(module_name(p)) is None] == [ROOT / "resjax" / "__init__.py"]


def test_folders_are_small():
    for folder in {path.parent for path in FILES}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 12, folder


def test_config_imports_no_jax_and_nothing_imports_tensorflow():
    code = "import sys, resjax.config; assert 'jax' not in sys.modules; "
    code += "import resjax.training.loop, resjax.analysis.plots; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
