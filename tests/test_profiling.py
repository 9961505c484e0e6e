"""The profile of a run, and the line that estimates one before it is long."""

import csv

import jax
import jax.numpy as jnp
import pytest
from test_training import read, rows, tiny

from resjax.analysis import report
from resjax.runtime import memory, trace
from resjax.runtime.progress import TrainingProgress
from resjax.training import attribution, loop
from resjax.training.attribution import Operation, place


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    return loop.train(tiny(), tmp_path_factory.mktemp("runs"), profile=True)


def table(path):
    with open(path / "profile" / "steps.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_rows_are_the_traced_time(profiled):
    found = table(profiled)
    traced = sum(trace.seconds_by_operation(profiled / "profile", "jit_local").values())
    steps = 1  # of the six of this run: two warm it up, and an epoch ends after the third
    assert sum(float(row["ms_per_step"]) for row in found) == pytest.approx(1000 * traced / steps, rel=1e-4)
    assert sum(float(row["percent"]) for row in found) == pytest.approx(100, abs=0.01)
    assert {("stage1_block1/branch/linear1", kind) for kind in ("linear", "gradient by weights")} <= {
        (row["module"], row["kind"]) for row in found
    }
    assert {"stem_norm/bn", "optimiser", "data", "loss"} <= {row["module"] for row in found}
    assert not [row for row in found if float(row["ms_per_step"]) < 0]


def test_a_profile_changes_no_number(profiled, tmp_path):
    plain = loop.train(tiny(), tmp_path)
    assert rows(plain) == rows(profiled) and read(plain, "summary") == read(profiled, "summary")
    assert {p.name for p in profiled.iterdir()} - {p.name for p in plain.iterdir()} == {"profile"}


def test_a_profile_is_printed_by_block(profiled, capsys):
    report.print_profile(profiled)
    lines = capsys.readouterr().out.splitlines()
    assert {"stage1_block1", "stem", "optimiser", "sum"} <= {line.split()[0] for line in lines if line.strip()}
    report.print_profile(profiled.parent)
    assert capsys.readouterr().out == "no step was left to profile\n"


NET = attribution.Net({"stem": 144, "block/shortcut/linear": 512}, {"block/norm1/bn"})
BODY = "jit(local)/while/body/closed_call/while/body"


@pytest.mark.parametrize("name, size, expected", [
    (f"{BODY}/jvp(ResNet)/stem/conv_general_dilated", 99, ("stem", "linear")),
    (f"{BODY}/transpose(jvp(ResNet))/stem/conv_general_dilated", 99, ("stem", "gradient by input")),
    (f"{BODY}/transpose(jvp(ResNet))/stem/while/body/closed_call/transpose", 99, ("stem", "gradient by weights")),
    (f"{BODY}/transpose(jvp(ResNet))/stem/transpose", 256, ("stem", "gradient by weights")),  # 16 / 9 of 144
    (f"{BODY}/vmap(transpose(jvp(ResNet)))/block/shortcut/linear/dot_general", 1024,
     ("block/shortcut/linear", "gradient by weights")),
    (f"{BODY}/transpose(jvp(ResNet))/block/norm1/bn/reduce_sum", 16, ("block/norm1/bn", "norm")),
    (f"{BODY}/jvp(ResNet)/block/merge/mul", 16, ("block/merge", "elementwise")),
    (f"{BODY}/transpose(jvp(ResNet))/jit(relu)/select_n", 16, ("ResNet", "elementwise")),
    (f"{BODY}/jvp(loss)/jit(log_softmax)/sub", 16, ("loss", "elementwise")),
    (f"{BODY}/vmap(optimiser)/mul", 16, ("optimiser", "optimiser")),
    (f"{BODY}/data/plan/while", 1, ("data", "data")),
    ("jit(local)/while", 1, ("other", "other")),
    ("", 0, ("other", "other")),
])  # fmt: skip
def test_where_an_operation_belongs(name, size, expected):
    assert place(Operation(name, size), NET, replicas=2) == expected


def test_the_estimate_of_a_run(capsys):
    with TrainingProgress("mul on digits", 100) as progress:
        progress.expect("8 replicas on 2 devices: 412 MB of arrays at most", 1024)
        for steps, seconds in ((0, 0.0), (1, 9.0), (4, 2.0), (4, 2.0)):
            progress.advance(steps, seconds)
    assert capsys.readouterr().out == (
        "mul on digits, 8 replicas on 2 devices: 412 MB of arrays at most, 2,048 images/s, about 48 s left\n"
    )


def test_memory_of_a_program(monkeypatch):
    million = jnp.ones(1_000_000)
    compiled = jax.jit(lambda a, b: a + b, donate_argnums=0).lower(million, million).compile()
    assert memory.estimate(compiled, jax.devices()[:1] * 2) == ("16 MB of arrays at most", "")  # 4 MB twice, on two
    monkeypatch.setattr(memory, "of_device", lambda _: 15_000_000)
    said, warning = memory.estimate(compiled, jax.devices()[:1] * 2)
    assert warning.startswith("training takes 16 MB of memory, of 15 MB: fewer config.seeds")
