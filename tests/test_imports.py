"""The direction of imports: config < data, models < training, ntk, probes < analysis < main, explore, experiments."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"resjax.config", "resjax.stats", "resjax.theory"},
    {"resjax.data", "resjax.models", "resjax.fair"},
    {"resjax.training", "resjax.ntk", "resjax.probes"},
    {"resjax.analysis"},
    {"resjax.main", "resjax.command_line", "resjax.explore", "experiments", "configs"},
]
FILES = [path for top in ("resjax", "experiments", "configs") for path in sorted((ROOT / top).rglob("*.py"))]


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_points_upwards(path):
    assert not upward(module_name(path), path.read_text())
    assert not [name for name in imported(path.read_text()) if name.startswith("tests")]


def test_analysis_reads_run_directories_alone():
    for path in sorted((ROOT / "resjax" / "analysis").glob("*.py")):
        assert not [name for name in imported(path.read_text()) if name.startswith(("resjax.training", "jax"))]


def test_the_rule_can_fail():
    assert upward("resjax.models.merges", "from resjax.training import loop") == ["resjax.training.loop"]
    assert not upward("resjax.training.loop", "from resjax.models import build")


def test_every_module_has_a_layer():
    assert [p for p in FILES if layer(module_name(p)) is None] == [ROOT / "resjax" / "__init__.py"]


def test_config_imports_no_jax_and_nothing_imports_tensorflow():
    code = "import sys, resjax.config; assert 'jax' not in sys.modules; "
    code += "import resjax.training.loop, resjax.analysis.plots; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
