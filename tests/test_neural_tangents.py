"""The door to neural-tangents: what it leaves behind, and that the library is right behind it."""

import ast
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resjax.ntk.neural_tangents import nt, stax

ROOT = Path(__file__).parents[1]
DOOR = ROOT / "resjax" / "ntk" / "neural_tangents.py"


def python(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_the_door_is_quiet_and_leaves_jax_as_it_was():
    code = """
import sys, jax, jax.core, jax.extend.core, jax.numpy
from jax.interpreters import ad

def state():
    return {m.__name__: dict(vars(m)) for m in (jax.core, ad, jax.extend.core, jax.numpy)}

before, options, util = state(), dict(jax.config.values), "jax.util" in sys.modules
from resjax.ntk.neural_tangents import nt, stax
assert state() == before
assert dict(jax.config.values) == options
assert ("jax.util" in sys.modules) == util
assert not {"tensorflow", "tf2jax"} & set(sys.modules)
assert nt.experimental.__doc__.startswith("Left out")
"""
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "obstacle, message",
    [
        ("importlib.util.find_spec = lambda name, package=None: None", "neural_tangents is missing: `make setup`"),
        ("sys.modules['neural_tangents'] = sys", "something imported it before"),
    ],
)
def test_what_keeps_the_door_shut_is_one_line(obstacle, message):
    done = python(f"import importlib.util, sys, jax, jax.extend.core; {obstacle}; import resjax.ntk.neural_tangents")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert message in last


def importers(path):
    """Lines of a file that import neural_tangents or a part of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        if any(name.split(".")[0] == "neural_tangents" for name in names):
            yield node.lineno


def test_nothing_else_imports_the_library():
    files = [
        path for top in ("resjax", "experiments", "bench", "tests", "configs") for path in (ROOT / top).rglob("*.py")
    ]
    assert len(files) > 30
    assert {path for path in files if any(importers(path))} == {DOOR}


@pytest.fixture(scope="module")
def net():
    """A convolution, a dense layer, slices and a product; inputs; the kernel [3, 3, 2, 2] by Jacobians."""
    init, layers, _ = stax.serial(stax.Conv(4, (2, 2)), stax.Relu(), stax.Flatten(), stax.Dense(4))

    def apply(params, x):
        y = layers(params, x)
        return y[:, :2] * jnp.tanh(y[:, 2:])

    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    params = init(jax.random.key(0), x.shape)[1]
    jacobian = jax.tree.leaves(jax.jit(jax.jacobian(apply))(params, x))
    rows = np.concatenate([np.asarray(leaf, np.float64).reshape(3, 2, -1) for leaf in jacobian], axis=2)
    return apply, params, x, np.einsum("iap,jbp->ijab", rows, rows)


@pytest.mark.parametrize("implementation", nt.NtkImplementation, ids=lambda i: i.name)
def test_empirical_kernels_equal_plain_jacobians(net, implementation, capsys):
    apply, params, x, expected = net
    kernel = jax.jit(nt.empirical_ntk_fn(apply, trace_axes=(), vmap_axes=0, implementation=implementation))
    assert abs(np.asarray(kernel(x[:2], x, params)) - expected[:2]).max() < 1e-5 * abs(expected).max()
    assert capsys.readouterr().out == ""
