"""The gates of the saturation study alone: what they are at 0, and that a job of another process knows them."""

import pickle

import jax
import pytest

from experiments.saturation.gates import SHAPES, register
from resjax.models.merges import MERGES
from resjax.sweep import launchers, runs


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Registers them until the test ends."""
    for name in SHAPES:
        monkeypatch.setitem(MERGES, name, MERGES.get(name))
        if MERGES[name] is None:
            del MERGES[name]
    register()
    register()  # a second time does nothing


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_value_and_slope_at_zero(name, shape):
    (gate,) = MERGES[name].gates
    assert (float(gate.value(0.0)), float(jax.grad(gate.value)(0.0))) == pytest.approx(shape)
    assert float(MERGES[name].combine(3.0, 0.0)) == pytest.approx(3 * shape[0])
    assert [float(gate.value(f)) for f in (-40.0, 40.0)] == pytest.approx([gate.low, gate.high], abs=1e-6)


def test_a_job_registers_them():
    jobs = runs.trainer(launchers.in_processes, None, register)
    assert pickle.loads(pickle.dumps(jobs)).keywords == {"register": register}
