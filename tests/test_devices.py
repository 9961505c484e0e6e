"""The same losses on one device, on several, and with several processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import add
from resjax.config import ConfigError
from resjax.runtime import hosts, startup
from resjax.training import loop

ROOT = Path(__file__).parents[1]
TINY = {
    "seeds": 2, "batch_size": 32, "dataset.train_size": 96, "model.name": "mlp", "model.depth": 4,
    "optimizer.learning_rate": 0.01, "dataset.noise": 0.1, "epochs": 3,
}  # fmt: skip
FLAGS = ["--config=configs/add.py", *(f"--config.{key}={value}" for key, value in TINY.items())]
ONE_AFTER_THE_OTHER = """
import json, sys
from resjax import main

sys.exit(max(main.main(["main.py", *arguments]) for arguments in json.loads(sys.argv[1])))
"""


def start(devices, *runs):
    """One process for runs of which each has a workdir and more arguments."""
    runs = [[f"--workdir={workdir}", *FLAGS, *arguments] for workdir, *arguments in runs]
    return python(devices, ONE_AFTER_THE_OTHER, json.dumps(runs))


def python(devices, *arguments):
    """One process that sees `devices` CPU devices."""
    command = [sys.executable, "-c", *arguments]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    """Exit codes, and what was said on stderr."""
    said = [process.communicate(timeout=240)[1] for process in processes]
    return [process.returncode for process in processes], said


def specs():
    """What tells each of two processes where the other is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [f"127.0.0.1:{port},2,{index}" for index in (0, 1)]


def together(workdir, *arguments):
    """Two processes with two devices each."""
    return [start(2, [workdir, f"--distributed={spec}", *arguments]) for spec in specs()]


def rows_of(workdir):
    (file,) = Path(workdir).glob("*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def losses(workdir):
    return {(r["epoch"], r["seed"], r["split"]): r["loss"] for r in rows_of(workdir) if r["seed"] < 2}


@pytest.mark.parametrize("cores, entries, count", [
    (2, {"seeds": 8}, 2),
    (2, {"seeds": 1}, 1),
    (6, {"seeds": 4}, 2),
    (2, {"seeds": 1, "batch_devices": 2}, 2),
    (8, {"seeds": 4, "batch_devices": 2}, 8),
    (2, {"seeds": 1, "batch_devices": 2, "parallel": "pmap"}, 2),
    (8, {"seeds": 8, "parallel": "pmap"}, 0),
    (2, {"seeds": 8, "batch_devices": 3}, 0),
], ids=str)  # fmt: skip
def test_devices_of_a_cpu(cores, entries, count):
    """Those that share a batch, times those among which the replicas can be divided; 0 leaves JAX's default."""
    config = add.get_config()
    config.update_from_flattened_dict(entries)
    assert startup.cpu_devices(config, cores) == count


def check_close(workdir, reference):
    found = losses(workdir)
    assert found.keys() == reference.keys()
    np.testing.assert_allclose(list(found.values()), [reference[key] for key in found], rtol=1e-5)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Losses of three epochs."""
    path, config = tmp_path_factory.mktemp("one"), add.get_config()
    config.update_from_flattened_dict(TINY)
    loop.train(config, path)
    return losses(path)


@pytest.mark.parametrize(("flag", "value", "line"), [
    ("jax_enable_x64", True, "JAX_ENABLE_X64=True: runs need False; unset it"),
    ("jax_disable_jit", True, "JAX_DISABLE_JIT=True: runs need False; unset it"),
    ("jax_numpy_dtype_promotion", "strict", "JAX_NUMPY_DTYPE_PROMOTION=strict: runs need standard; unset it"),
])  # fmt: skip
def test_flags_with_which_nothing_runs(flag, value, line):
    before = getattr(jax.config, flag)
    jax.config.update(flag, value)
    try:
        with pytest.raises(ConfigError, match=line):
            startup.start(add.get_config())
    finally:
        jax.config.update(flag, before)


def test_a_platform_that_is_not_here(monkeypatch):
    def devices():
        raise AssertionError  # what JAX does for a platform whose plugin is missing

    monkeypatch.setattr(startup, "jax", SimpleNamespace(config=jax.config, devices=devices))
    before, config = jax.config.jax_platforms, add.get_config()
    config.parallel = "pmap"  # the CPU stays as it is
    jax.config.update("jax_platforms", "cuda")
    try:
        with pytest.raises(ConfigError, match="JAX_PLATFORMS=cuda: no such device is here"):
            startup.start(config)
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.slow
def test_several_devices_give_the_losses_of_one(tmp_path, one_device):
    # BatchNorm over the global batch in all of them: statistics of each device's share would be off by percents.
    runs = [
        [tmp_path / "all", "--config.batch_devices=8"],
        [
            tmp_path / "two",
            "--config.batch_devices=2",
            "--config.replicas=vmap",
            "--config.seeds=4",
            "--profile",
        ],  # and four rows
        [tmp_path / "pmap", "--config.parallel=pmap", "--profile"],
    ]
    codes, said = finish(start(8, *runs))
    assert codes == [0], said
    for workdir, *_ in runs:
        check_close(workdir, one_device)
        assert bool([*workdir.glob("*/profile/steps.csv")]) == (workdir != tmp_path / "all")


@pytest.mark.slow
def test_a_batch_over_two_processes_gives_the_losses_of_one(tmp_path, one_device):
    codes, said = finish(*together(tmp_path, "--config.seeds=1", "--profile"))
    assert codes == [0, 0], said
    check_close(tmp_path, {key: loss for key, loss in one_device.items() if key[1] == 0})
    assert len(rows_of(tmp_path)) == 6  # one process writes
    assert len([*tmp_path.glob("*/profile/steps.csv")]) == 1


@pytest.mark.slow
def test_processes_stop_together_and_one_alone_continues(tmp_path):
    processes = together(tmp_path, "--config.epochs=100")  # a replica in each
    while not list(tmp_path.glob("*/metrics.jsonl")) or not rows_of(tmp_path):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # the one that does not write
    codes, said = finish(*processes)
    assert codes == [143, 143], said
    reached = len(rows_of(tmp_path))
    assert json.loads(next(tmp_path.glob("*/status.json")).read_text())["status"] == "interrupted"
    codes, said = finish(start(1, [tmp_path, "--config.epochs=100"]))
    assert codes == [0] and "device_count 1 (began with 4), processes 1 (began with 2)" in said[0]
    rows = rows_of(tmp_path)
    assert 4 <= reached < len(rows) == 4 * 100 and [r["epoch"] for r in rows] == sorted(r["epoch"] for r in rows)


def test_where_the_others_are_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="--distributed=here: use auto, or HOST:PORT,PROCESSES,INDEX"):
        hosts.connect("here")


@pytest.mark.parametrize(("environment", "ids"), [
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3]),
    ({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "8"}, list(range(8))),
    ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_GPUS_ON_NODE": "8"}, None),  # a GPU for each
    ({"SLURM_STEP_TASKS_PER_NODE": "1,2", "SLURM_GPUS_ON_NODE": "8"}, None),
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, None),  # without GPUs
    ({}, None),
])  # fmt: skip
def test_a_task_alone_on_its_node_takes_all_of_its_gpus(environment, ids, monkeypatch):
    given = {}
    monkeypatch.setattr(hosts.os, "environ", environment)
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda **kwargs: given.update(kwargs))
    hosts.connect("auto")
    assert given["local_device_ids"] == ids


AGREEMENT = """
import sys
import numpy as np
from resjax import main
from resjax.config import ConfigError
from resjax.runtime import hosts, startup

hosts.connect(sys.argv[1])
first = hosts.is_first()

def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def fail(kind):
    raise kind("no good")

mine = np.array([-0.0, 1e-40, np.nan, 3.0] if first else [7.0] * 4, np.float32)
got = hosts.broadcast({"a": mine, "b": np.array(first), "c": np.array(3 if first else 4, np.int32)})
assert got["a"].tobytes() == np.array([-0.0, 1e-40, np.nan, 3.0], np.float32).tobytes()
assert got["b"].dtype == bool and got["b"].shape == () and got["b"] and got["c"] == 3
assert list(hosts.agree((3, 0) if first else (1, 15))) == [3, 15]
assert hosts.run_on_first(lambda: ["only", first]) == ["only", True]
assert error_of(lambda: hosts.run_on_first(lambda: fail(ConfigError))) == "ConfigError: no good"
assert error_of(lambda: hosts.run_on_first(lambda: fail(FileNotFoundError))) == "OSError: no good"
assert error_of(lambda: hosts.run_on_first(lambda: fail(ValueError))) == "RuntimeError: no good"
assert hosts.together(lambda: first) == first
expected = "ConfigError: process 1 can't take part: see what it said" if first else "KeyError: 'no good'"
assert error_of(lambda: hosts.together(lambda: None if first else fail(KeyError))) == expected
sys.exit(main.main(["main.py", *sys.argv[2:]]))
"""


@pytest.mark.slow
def test_processes_agree_bit_by_bit_and_fail_together(tmp_path):
    (tmp_path / "file").write_text("")
    bad = [f"--workdir={tmp_path / 'file'}", *FLAGS]
    codes, said = finish(*(python(2, AGREEMENT, spec, *bad) for spec in specs()))
    assert codes == [2, 2], said
    assert all("error: cannot write" in text and len(text.splitlines()) == 1 for text in said), said


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_peer_that_does_not_come_is_one_line(index):
    program = f"""
from resjax.runtime import hosts

hosts.PATIENCE, hosts.SILENCE = 1, 0.1
hosts.connect("{specs()[index]}")
"""
    codes, (said,) = finish(python(1, program))
    waiting, error = said.splitlines()
    assert codes == [2] and waiting.startswith("waiting for the other processes of --distributed=127.0.0.1:")
    assert error.startswith("error: ") and f",2,{index} did not join: start all of them" in error
