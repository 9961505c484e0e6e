"""Probes during training change no bit of it, and their rows survive whatever a run survives; names of such runs."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from breadth import quick
from test_training import read, rows, tiny

from resjax import config as config_lib
from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.models.build import build
from resjax.probes.registry import PROBES, each
from resjax.runtime import interrupt, progress
from resjax.training import checkpoint, loop, rundir

pytestmark = pytest.mark.usefixtures("one_program_per_config")

ENTRIES = {key.removeprefix("probes.") for key in config_lib.flat(config_lib.base()) if key.startswith("probes.")}
LIVE = sorted(ENTRIES & PROBES.keys())  # the others look at finished runs alone
RUN = {"epochs": 3, "model.merge": "gate_sig", "checkpoint_seconds": 1e9, "probes.images": 16}
LOOKS = [0, 2, 3]  # of a period of 2


def arrays_of(run):
    """The digest of every array of the newest checkpoint."""
    seal = max(run.glob(f"checkpoints/*/{checkpoint.SEAL}"), key=lambda path: int(path.parent.name))
    return json.loads(seal.read_text())["arrays"]


def test_every_entry_has_its_probe():
    assert set(LIVE) == ENTRIES - {"images"}
    assert {f"probes.{name}" for name in ENTRIES} <= config_lib.RANGES.keys()
    assert not any(config_lib.base().probes[name] for name in LIVE)  # off unless asked for


@pytest.mark.slow
def test_probes_change_no_bit_of_the_training(tmp_path):
    plain = loop.train(tiny(**RUN), tmp_path)
    probed = loop.train(tiny(**RUN, **{f"probes.{name}": 2 for name in LIVE}), tmp_path)
    assert arrays_of(probed) == arrays_of(plain)
    assert rows(probed) == rows(plain) and read(probed, "summary") == read(plain, "summary")
    assert not list(plain.glob("probe_*"))
    for name in LIVE:
        table = tables.probed(probed, name)
        if name == "connections":  # the sum has none
            assert table.empty
            continue
        assert list(table["epoch"].unique()) == LOOKS, name
        sizes = table.groupby(["epoch", "seed"]).size()
        assert len(sizes) == len(LOOKS) * 2 and sizes.nunique() == 1, name


# --- Whatever happens to a run, with a probe that compiles nothing ----------------------------------------------
PROBED = RUN | {"probes.signal": 2}


@pytest.fixture(autouse=True)
def a_light_probe(request):
    """The sums of all parameters, bit by bit."""
    if "no_bit" in request.node.name:
        yield
        return

    def look(at):
        return pd.DataFrame({"sum": [float(np.sum(leaf)) for leaf in jax.tree.leaves(at.variables["params"])]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROBES, "signal", each(look))
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return tmp_path_factory.mktemp("unbroken")


def check_same(run, workdir):
    """`run` left what an unbroken run leaves."""
    other = loop.train(tiny(**PROBED), workdir)
    assert (run / "probe_signal.jsonl").read_text() == (other / "probe_signal.jsonl").read_text()
    assert rows(run) == rows(other) and arrays_of(run) == arrays_of(other)
    assert list(tables.probed(run, "signal")["epoch"].unique()) == LOOKS


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_run_leaves_the_same_rows(tmp_path, monkeypatch, unbroken, epoch):
    original = progress.TrainingProgress.show

    def show(self, now, rows):
        original(self, now, rows)
        if now == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(interrupt.Interrupted):
        patch.setattr(progress.TrainingProgress, "show", show)
        loop.train(tiny(**PROBED), tmp_path)
    run = rundir.path_of(tiny(**PROBED), tmp_path)
    assert max(tables.probed(run, "signal")["epoch"]) == [0, 0, 2][epoch]
    check_same(loop.train(tiny(**PROBED), tmp_path), unbroken)


@pytest.mark.parametrize("moment", quick(["after"], ["before", "after"]))
@pytest.mark.parametrize(("owner", "name"), [
    (rundir.RunDir, "append_probed"), (rundir.RunDir, "append_metrics"), (checkpoint.Checkpoints, "save"),
])  # fmt: skip
def test_a_kill_beside_any_write_leaves_the_same_rows(tmp_path, monkeypatch, unbroken, owner, name, moment):
    words, original, calls = PROBED | {"checkpoint_seconds": 0.0, "checkpoint_keep": 99}, getattr(owner, name), []

    def dying(self, *args):
        calls.append(args)
        if len(calls) == 2 and moment == "before":
            raise RuntimeError
        original(self, *args)
        if len(calls) == 2:
            raise RuntimeError

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(owner, name, dying)
        loop.train(tiny(**words), tmp_path)
    assert read(rundir.path_of(tiny(**words), tmp_path), "status")["status"] == "running"
    check_same(loop.train(tiny(**words), tmp_path), unbroken)


def dies(*_):
    raise RuntimeError


def test_a_kill_after_the_last_checkpoint_leaves_the_same_rows(tmp_path, monkeypatch, unbroken):
    words = PROBED | {"checkpoint_seconds": 0.0, "checkpoint_keep": 99}
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(loop._Run, "_summarize", dies)
        loop.train(tiny(**words), tmp_path)
    run = rundir.path_of(tiny(**words), tmp_path)
    for seal in run.glob(f"checkpoints/*/{checkpoint.SEAL}"):
        if json.loads(seal.read_text())["epoch"] > 1:
            seal.unlink()
    with open(run / "probe_signal.jsonl", "a") as file:
        file.write('{"seed": 0, "ep')  # cut short
    check_same(loop.train(tiny(**words), tmp_path), unbroken)


def test_a_kill_before_the_first_checkpoint_leaves_the_same_rows(tmp_path, monkeypatch, unbroken):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(loop._Run, "_train_epoch", dies)
        loop.train(tiny(**PROBED), tmp_path)
    assert set(tables.probed(rundir.path_of(tiny(**PROBED), tmp_path), "signal")["epoch"]) == {0}
    check_same(loop.train(tiny(**PROBED), tmp_path), unbroken)


def test_a_damaged_row_is_one_line(tmp_path):
    (tmp_path / "probe_signal.jsonl").write_text('{"seed": 0, "epoch": 0}\n{\n')
    with pytest.raises(ConfigError, match=r"probe_signal.jsonl, line 2: not JSON"):
        tables.probed(tmp_path, "signal")
    with pytest.raises(ConfigError, match=r"probe_nothing.jsonl: No such file"):
        tables.probed(tmp_path, "nothing")


# --- Names of runs ----------------------------------------------------------------------------------------------
def test_probes_give_a_run_a_name_of_its_own():
    changes = [{}, *({f"probes.{name}": 2} for name in ENTRIES)]
    assert len({config_lib.hash8(tiny(**change)) for change in changes}) == len(changes)


@pytest.mark.parametrize(
    ("preset", "name"), [("digits", "7680364e"), ("cifar10,depth=20", "be3d26e0"), ("cube_degree2", "b6ca00b1")]
)
def test_a_run_without_probes_has_the_name_that_it_had_before_there_were_any(preset, name):
    assert config_lib.hash8(config_lib.with_preset(config_lib.base(), preset)) == name  # results/ names such runs


# --- Merges in some blocks only ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "merged"), [(0, range(1, 10)), (9, range(1, 10)), (1, [9]), (3, [3, 6, 9]), (2, [5, 9])]
)
def test_the_merge_is_in_the_blocks_that_merge_blocks_says(count, merged):
    model = config_lib.base().model
    model.update({"name": "mlp", "merge": "se", "depth": 20, "width": 8, "merge_blocks": count})
    params = jax.eval_shape(build(model, 10).init, jax.random.key(0), jnp.ones((1, 6)))["params"]
    merges = {k: params[f"stage1_block{k}"].get("merge") for k in range(1, 10)}
    assert [k for k, own in merges.items() if own] == list(merged)
    assert all(own.keys() == {"se"} for own in merges.values() if own)


def test_the_merge_in_all_blocks_by_number_is_that_by_default():
    model, x = config_lib.base().model, jnp.ones((2, 6))
    model.update({"name": "mlp", "merge": "mul_bn1", "depth": 6, "width": 8})
    net = build(model, 3)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    model.merge_blocks = 2
    np.testing.assert_array_equal(build(model, 3).apply(variables, x), net.apply(variables, x))
    model.merge_blocks = 3
    with pytest.raises(ConfigError, match=r"config.model.merge_blocks=3: the net has 2 blocks"):
        build(model, 3)


def test_a_replica_that_stops_early_is_looked_at_when_it_does(tmp_path):
    words = {"epochs": 9, "early_stopping": 1, "dataset.validation": 0.1, "optimizer.learning_rate": 0.0}
    words["model.norm"] = "ln"  # without running statistics nothing changes at all
    run = loop.train(tiny(**RUN | words, **{"probes.signal": 4}), tmp_path)
    stopped = {row["seed"]: row["epoch"] for row in read(run, "summary")["per_seed"]}
    assert set(stopped.values()) == {2}
    table = tables.probed(run, "signal")
    for seed, epoch in stopped.items():
        assert list(table.loc[table["seed"] == seed, "epoch"].unique()) == [0, epoch]


@pytest.mark.slow
def test_nets_that_pmap_trains_are_looked_at_without_it(tmp_path, monkeypatch):
    def look(at):
        at.net.apply(at.variables, at.x_BxHxWxC, train=True, mutable=["batch_stats"])  # with pmap's axis: a NameError
        return pd.DataFrame({"x": [1.0]})

    monkeypatch.setitem(PROBES, "signal", each(look))
    run = loop.train(tiny(**PROBED | {"epochs": 1, "parallel": "pmap"}), tmp_path)
    assert list(tables.probed(run, "signal")["epoch"].unique()) == [0, 1]
