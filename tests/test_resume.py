"""Nothing is lost: a run that ended anyhow and is continued gives the bits of an unbroken one."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_training import read, rows, tiny

from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.data.dataset import load
from resjax.runtime import interrupt, progress, startup
from resjax.training import checkpoint, loop, rundir, step

pytestmark = pytest.mark.usefixtures("one_program_per_config")

CONFIG = {"epochs": 6, "checkpoint_seconds": 0.0, "checkpoint_keep": 3}


def newest(run):
    return max((p for p in (run / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def states_of(run):
    """What the run has reached: the step, the epoch, and the digest of every array."""
    seal = json.loads((newest(run) / checkpoint.SEAL).read_text())
    return seal["step"], seal["epoch"], seal["arrays"]


def check_same(run, other):
    assert rows(run) == rows(other) and read(run, "summary") == read(other, "summary")
    assert states_of(run) == states_of(other)


def tell_at(monkeypatch, epoch, signum):
    """Sends this process a signal when the epoch's rows are written."""
    original = progress.TrainingProgress.show

    def show(self, now, rows):
        original(self, now, rows)
        if now == epoch:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(progress.TrainingProgress, "show", show)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return loop.train(tiny(**CONFIG), tmp_path_factory.mktemp("unbroken"))


@pytest.fixture(scope="module")
def told_to_stop(tmp_path_factory):
    """A run that was told to stop in its fifth epoch."""
    workdir = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(interrupt.Interrupted):
        tell_at(patch, 4, signal.SIGTERM)
        loop.train(tiny(**CONFIG), workdir)
    return rundir.path_of(tiny(**CONFIG), workdir)


@pytest.fixture
def interrupted(tmp_path, told_to_stop):
    """A copy of that run, to continue or to damage."""
    return shutil.copytree(told_to_stop, tmp_path / told_to_stop.name)


@pytest.mark.slow
def test_four_deaths_change_no_bit(tmp_path):
    def run(kills):
        command = [sys.executable, Path(__file__).with_name("killing.py"), tmp_path / str(kills), str(kills), "4"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        return next((tmp_path / str(kills)).glob("mul*")), [int(code) for code in done.stdout.split()]

    unbroken, codes = run(0)
    assert codes == [0]
    killed, codes = run(4)
    assert codes.pop() == 0 and set(codes) <= {-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}
    assert -signal.SIGKILL in codes and 128 + signal.SIGTERM in codes
    check_same(killed, unbroken)


@pytest.mark.parametrize(
    "signum",
    [
        pytest.param(s, marks=[] if s in (signal.SIGINT, signal.SIGTERM) else pytest.mark.slow)
        for s in interrupt.SIGNALS
    ],
)
def test_a_signal_saves_and_ends(tmp_path, monkeypatch, unbroken, signum):
    with monkeypatch.context() as patch, pytest.raises(interrupt.Interrupted) as told:
        tell_at(patch, 2, signum)
        loop.train(tiny(**CONFIG | {"checkpoint_seconds": 1e9}), tmp_path)
    assert interrupt.exit_code(told.value) == 128 + signum
    assert read(rundir.path_of(tiny(**CONFIG), tmp_path), "status")["status"] == "interrupted"
    run = loop.train(tiny(**CONFIG), tmp_path)
    assert read(run, "status")["status"] == "done"
    check_same(run, unbroken)


def test_a_signal_is_seen_during_evaluation(tmp_path, monkeypatch, unbroken):
    with monkeypatch.context() as patch, pytest.raises(interrupt.Interrupted):
        original = loop._Run._scores

        def scores(self, split):
            if self.epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, split)

        patch.setattr(loop._Run, "_scores", scores)
        loop.train(tiny(**CONFIG), tmp_path)
    path = rundir.path_of(tiny(**CONFIG), tmp_path)
    assert {row["epoch"] for row in rows(path)} == {1, 2} and states_of(path)[0] == 9  # three epochs of three steps
    check_same(loop.train(tiny(**CONFIG), tmp_path), unbroken)


def test_a_second_signal_ends_at_once():
    code = """
import os, signal, sys
from resjax.runtime.interrupt import StopSignals
with StopSignals() as signals:
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signals.received == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGINT)
sys.exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT and "SIGTERM: stops after this step" in done.stderr


def test_handlers_are_given_back():
    before = [signal.getsignal(signum) for signum in interrupt.SIGNALS]
    with interrupt.StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(signum) for signum in interrupt.SIGNALS] == before


def test_rows_after_the_checkpoint_are_dropped_and_a_row_cut_short(interrupted, unbroken):
    with open(interrupted / "metrics.jsonl", "a") as file:
        file.write(json.dumps(rows(interrupted)[0] | {"epoch": 5}) + '\n{"epoch": 5, "seed":')
    check_same(loop.train(tiny(**CONFIG), interrupted.parent), unbroken)


def test_a_damaged_checkpoint_costs_only_time(interrupted, unbroken, capsys):
    damaged = newest(interrupted)
    file = max(damaged.rglob("*"), key=lambda p: p.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    run = loop.train(tiny(**CONFIG), interrupted.parent)
    said = capsys.readouterr().err
    assert f"{damaged} is damaged" in said and f"using {int(damaged.name) - 1}" in said
    check_same(run, unbroken)


def test_without_a_good_checkpoint_nothing_starts_over(interrupted):
    before = rows(interrupted)
    for seal in interrupted.glob(f"checkpoints/*/{checkpoint.SEAL}"):
        seal.unlink()
    with pytest.raises(ConfigError, match="no checkpoint in .* is good"):
        loop.train(tiny(**CONFIG), interrupted.parent)
    assert rows(interrupted) == before


def test_starting_over_is_said(tmp_path, unbroken, monkeypatch, capsys):
    def fails(self):
        original(self)
        raise RuntimeError

    original = loop._Run._train_epoch
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(loop._Run, "_train_epoch", fails)
        loop.train(tiny(**CONFIG | {"checkpoint_seconds": 1e9}), tmp_path)
    run = loop.train(tiny(**CONFIG), tmp_path)
    assert "no checkpoint: 4 rows of metrics are dropped, training starts over" in capsys.readouterr().err
    check_same(run, unbroken)


@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache")  # as startup has it
def test_a_full_disk_is_one_error_and_loses_nothing(interrupted, unbroken):
    before = states_of(interrupted)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # rows of metrics fit
    try:
        with pytest.raises(OSError, match=r"checkpoint of step \d+ can't be written to .*File too large"):
            loop.train(tiny(**CONFIG), interrupted.parent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert states_of(interrupted) == before and read(interrupted, "status")["status"] == "running"
    check_same(loop.train(tiny(**CONFIG), interrupted.parent), unbroken)


def test_after_an_infinite_gradient_the_checkpoint_is_finite(tmp_path, monkeypatch):
    original = step.train_step

    def poisoned(task, state, x, targets, **more):  # replica 1 sees an infinite input in its fifth step
        return original(task, state, x + np.inf * ((state.seed == 1) & (state.step == 4)), targets, **more)

    monkeypatch.setattr(step, "train_step", poisoned)
    run = loop.train(tiny(**CONFIG), tmp_path)
    assert read(run, "status")["status"] == "diverged" and read(run, "status")["diverged"].keys() == {"1"}
    task = loop.make_task(tiny(**CONFIG), loop.load(tiny(**CONFIG).dataset))
    like = jax.vmap(lambda seed: step.init(task, np.zeros((1, 8, 8, 1), np.float32), seed))(
        np.arange(2, dtype=np.int32)
    )
    sums = step.Sums(*[np.zeros(2, np.float32)] * 4)
    saved = checkpoint.read(run / "checkpoints", {"states": like, "sums": sums})
    states = saved.tree["states"]
    assert saved.step == 18 and list(states.active) == [True, False] and list(states.step) == [18, 4]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((states.params, states.stats, states.opt_state)))


def test_a_second_writer_is_refused(tmp_path):
    with (
        rundir.RunDir(tiny(), tmp_path),
        pytest.raises(ConfigError, match=f"being written by process {os.getpid()} on"),
    ):
        loop.train(tiny(), tmp_path)


def test_a_workdir_that_is_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="link is a link to nothing; choose another --workdir"):
        loop.train(tiny(), tmp_path / "link")
    assert not (tmp_path / "gone").exists()


def test_another_config_in_the_directory_is_refused(interrupted):
    file = interrupted / "config.json"
    content = json.loads(file.read_text())
    content["model"]["depth"] = 6
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"another config \(config.model.depth is 6 there and 4 here\)"):
        loop.train(tiny(**CONFIG), interrupted.parent)


def test_what_does_not_change_numbers_may_change(interrupted, unbroken):
    check_same(loop.train(tiny(**CONFIG | {"checkpoint_keep": 9}), interrupted.parent), unbroken)


def test_other_versions_are_said_and_recorded(interrupted, capsys):
    file = interrupted / "env.json"
    began = json.loads(file.read_text())
    began["versions"]["jax"], began["cores"] = "0.9.0", 77
    file.write_text(json.dumps(began))
    loop.train(tiny(**CONFIG), interrupted.parent)
    now = json.loads(file.read_text())
    said = capsys.readouterr().err
    assert f"now jax {jax.__version__} (began with 0.9.0), cores {startup.cores()} (began with 77)" in said
    assert now["versions"]["jax"] == "0.9.0" and now["continued"][0]["versions"]["jax"] == jax.__version__


@pytest.fixture
def other_data(monkeypatch):
    """The first training image is another, the set's name the same."""

    def other(config):
        found = load(config)
        found.train.images_NxHxWxC[0] ^= 1
        return found

    for module in (loop, rundir.dataset):
        monkeypatch.setattr(module, "load", other)
    rundir._digest_of.cache_clear()
    yield
    rundir._digest_of.cache_clear()


@pytest.mark.usefixtures("other_data")
def test_other_data_of_the_same_name_are_refused(interrupted):
    before = {file: file.read_bytes() for file in interrupted.glob("*.json*")}
    with pytest.raises(ConfigError, match="holds a run on other data of the same name"):
        loop.train(tiny(**CONFIG), interrupted.parent)
    assert {file: file.read_bytes() for file in interrupted.glob("*.json*")} == before


@pytest.mark.usefixtures("other_data")
def test_a_finished_run_on_other_data_is_not_reused(unbroken):
    with pytest.raises(ConfigError, match="holds a run on other data of the same name"):
        loop.train(tiny(**CONFIG), unbroken.parent)


def test_a_finished_run_needs_no_data(unbroken, monkeypatch):
    def absent(_):
        raise ConfigError("not prepared")

    monkeypatch.setattr(rundir.dataset, "load", absent)
    rundir._digest_of.cache_clear()
    assert loop.train(tiny(**CONFIG), unbroken.parent) == unbroken


def test_other_settings_of_jax_are_said(interrupted, capsys):
    file = interrupted / "env.json"
    began = json.loads(file.read_text())
    began["jax"]["jax_default_prng_impl"] = "rbg"
    file.write_text(json.dumps(began))
    loop.train(tiny(**CONFIG), interrupted.parent)
    assert "jax_default_prng_impl threefry2x32 (began with rbg)" in capsys.readouterr().err


def test_a_kill_before_the_first_seal_costs_only_time(tmp_path, unbroken, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "_seal", killed)
        loop.train(tiny(**CONFIG), tmp_path)
    path = rundir.path_of(tiny(**CONFIG), tmp_path)
    assert (path / "checkpoints" / "1").exists()  # whole, as far as orbax knows
    check_same(loop.train(tiny(**CONFIG), tmp_path), unbroken)


@pytest.mark.parametrize("harm, words", [
    (lambda lines: [], "lacks epoch 1 of seed 0"),
    (lambda lines: lines[:4] + lines[5:], "lacks epoch 2 of seed 0"),
    (lambda lines: [lines[0], "{", *lines[2:]], "damaged in line 2"),
    (lambda lines: [lines[0].replace("train", "tr\udcffin"), *lines[1:]], "lacks epoch 1 of seed 0"),
], ids=["gone", "a line gone", "a line damaged", "a byte damaged"])  # fmt: skip
def test_metrics_that_were_lost_are_noticed(interrupted, harm, words):
    file = interrupted / "metrics.jsonl"
    lines = harm(file.read_text().splitlines())
    file.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
    with pytest.raises(ConfigError, match=words):
        loop.train(tiny(**CONFIG), interrupted.parent)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(rundir.fcntl, "flock", no_locks)
    with pytest.raises(ConfigError, match="cannot lock .*: Function not implemented"):
        loop.train(tiny(), tmp_path)


@pytest.mark.parametrize("name", ["status.json", "config.json", "env.json"])
def test_a_damaged_record_is_one_error(interrupted, name):
    (interrupted / name).write_text('{"sta')
    with pytest.raises(ConfigError, match=f"{name} is damaged: delete that file"):
        loop.train(tiny(**CONFIG), interrupted.parent)


def homeless():
    raise RuntimeError("Could not determine home directory.")


def test_compiled_programs_are_kept_where_no_one_else_can_write(tmp_path, monkeypatch, capsys):
    config = config_lib.base()
    config.compilation_cache = str(tmp_path / "compiled")
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        startup.keep_compiled_programs("none")
        assert jax.config.jax_compilation_cache_dir is None
        startup.keep_compiled_programs(config.compilation_cache)
        assert jax.config.jax_compilation_cache_dir == config.compilation_cache
        assert (tmp_path / "compiled").stat().st_mode & 0o777 == 0o700
        jax.config.update("jax_compilation_cache_dir", None)
        (tmp_path / "compiled").chmod(0o777)
        startup.keep_compiled_programs(config.compilation_cache)
        assert jax.config.jax_compilation_cache_dir is None and "others can write to it" in capsys.readouterr().err
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", homeless)
        startup.keep_compiled_programs("")
        assert jax.config.jax_compilation_cache_dir is None and "no home directory" in capsys.readouterr().err
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
