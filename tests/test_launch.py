"""Many jobs: launchers with made-up jobs, a made-up SLURM, and one real sweep in which a cell is killed."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
import submitit  # here, for it keeps the stderr that it finds: that of a test is closed
from fake_runs import a_config, write_run
from rich.console import Console

from experiments.compare import study as compare
from resjax.config import ConfigError
from resjax.runtime.interrupt import Interrupted
from resjax.sweep import board, cluster, flags, launchers, runs, submitted
from resjax.sweep.jobs import Event
from resjax.training import rundir

ROOT = Path(__file__).parents[1]


def failing(error):
    """Defined in here, for what is local to a function is pickled whole: a job can't import this module."""

    def job():
        raise error

    return job


def training(path):
    """A training that saves when it is told to stop: it records every signal that it gets."""

    def job(path=path):
        import time
        from pathlib import Path

        from resjax.runtime.interrupt import Interrupted, StopSignals

        with StopSignals() as signals:
            Path(path).touch()
            for _ in range(1000):
                time.sleep(0.02)
                if signals.received:
                    time.sleep(0.2)  # a second signal would end the process here
                    Path(path).write_text(signal.Signals(signals.received).name)
                    raise Interrupted(signals.received)

    return job


def states(events):
    return [(event.label, event.state) for event in events]


@pytest.mark.parametrize("launcher", [launchers.in_this_process, partial(launchers.in_processes, processes=2)])
def test_every_job_runs_and_then_is_done_or_failed(launcher, tmp_path, caplog):
    jobs = {
        "a": partial(Path.touch, tmp_path / "a"),
        "b": partial(int, "many"),
        "c": partial(Path.touch, tmp_path / "c"),
    }
    events = list(launcher(jobs))
    for label, end in {"a": "done", "b": "failed", "c": "done"}.items():
        assert [state for name, state in states(events) if name == label] == ["running", end]
        assert (tmp_path / label).exists() == (end == "done")
    error = next(event for event in events if event.state == "failed")
    assert error.reason == "ValueError: invalid literal for int() with base 10: 'many'"
    assert isinstance(error.error, ValueError) and "b failed" in caplog.text


def test_a_killed_process_is_named_and_none_is_waited_for():
    jobs = {name: partial(os._exit, 9) for name in "abc"}
    events = list(launchers.in_processes(jobs, 2))
    failed = {event.label: event.reason for event in events if event.state == "failed"}
    assert set(failed) == set("abc") and "BrokenProcessPool" in failed["a"]


def touch_and_sleep(path):
    Path(path).touch()
    time.sleep(200)


def begun(folder):
    """Events of jobs that would take minutes, when one runs, one is next, and one waits."""
    paths = [Path(folder) / name for name in "abc"]
    events = launchers.in_processes({path.name: partial(touch_and_sleep, path) for path in paths}, 2)
    assert [next(events).state, next(events).state] == ["running"] * 2
    until(paths[0].exists)  # the second is submitted when a third event is asked for
    return events


def until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_processes_end_with_a_study_that_is_told_to_stop(tmp_path):
    events = begun(tmp_path)
    assert active_children()
    start = time.monotonic()
    events.close()
    assert not active_children() and time.monotonic() - start < 100


@pytest.mark.slow
def test_processes_end_with_a_study_that_is_killed(tmp_path):
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_launch; test_launch.study(sys.argv[2])"
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        children = [int(word) for word in process.stdout.readline().split()]
        assert children
        process.kill()
    until(lambda: not any(map(running, children)))


def study(folder):
    """A study whose processes are named on stdout."""
    events = begun(folder)
    print(*(child.pid for child in active_children()), flush=True)
    list(events)


def running(pid):
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip() not in (
        "", "Z", "Zl",
    )  # fmt: skip


def test_being_told_to_stop_passes_through():
    seen = []
    with pytest.raises(Interrupted):
        for event in launchers.in_this_process({"a": failing(Interrupted(signal.SIGTERM)), "b": seen.append}):
            seen.append(event.state)
    assert seen == ["running"]


@pytest.fixture
def without_slurm(monkeypatch):
    folders = os.environ["PATH"].split(os.pathsep)
    monkeypatch.setenv("PATH", os.pathsep.join(f for f in folders if not (Path(f) / "srun").exists()))


def args(*argv):
    return flags.parse(flags.parser("m", "d", {}), argv)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--launcher=slurm"], "choose from local, submitit"),
        (["--jobs=2"], "--jobs is for --launcher=submitit"),
        (["--time_limit=60"], "--time_limit is for --launcher=submitit"),
        (["--partition=gpu"], "--partition is for --launcher=submitit"),
        (["--gpus=0"], "--gpus is for --launcher=submitit"),
        (["--launcher=submitit", "--jobs=0"], "--jobs=0: must be at least 1"),
        (["--launcher=submitit", "--time_limit=0"], "--time_limit=0: must be at least 1"),
        (["--launcher=submitit", "--partition=gpu"], "there is no srun here"),
        (["--launcher=submitit", "--gpus=1"], "there is no srun here"),
    ],
)
def test_flags_that_do_not_fit_get_one_line(argv, said, capsys, tmp_path, without_slurm):
    assert compare.main([*argv, f"--workdir={tmp_path / 'runs'}"], train=pytest.fail) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_without_submitit_the_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install --editable '\.\[cluster\]'"):
        launchers.chosen(args("--launcher=submitit"))


def test_a_job_has_its_own_process_and_the_devices_and_command_of_this_one(tmp_path, monkeypatch, without_slurm):
    def show(path):
        Path(path).write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {sys.argv[1]}")

    monkeypatch.setattr(sys, "argv", ["compare.py", "--seeds=2"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    launcher = cluster.Cluster(tmp_path)
    assert states(launcher({"a": partial(show, tmp_path / "a")})) == [("a", "running"), ("a", "done")]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert states(launcher({"b": partial(show, tmp_path / "b")})) == [("b", "running"), ("b", "done")]
    (pid, devices, flag), (_, unset, _) = ((tmp_path / name).read_text().split() for name in "ab")
    assert int(pid) != os.getpid() and (devices, unset, flag) == ("3", "None", "--seeds=2")
    assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700
    assert len(list((tmp_path / "jobs").iterdir())) == 2 and not list(tmp_path.rglob("*.pkl"))


def test_why_a_job_failed_comes_back_in_one_line(tmp_path, without_slurm):
    jobs = {
        "bad": failing(ConfigError("add-1234 is being written by\nprocess 7")),
        "broken": failing(RuntimeError("out of memory\nsecond line")),
        "killed": partial(os._exit, 137),
        "stopped": partial(signal.raise_signal, signal.SIGUSR2),
        "strange": partial(pd.read_csv, _Unpicklable()),
        "good": partial(Path.touch, tmp_path / "good"),
    }
    reasons = {e.label: e.reason for e in cluster.Cluster(tmp_path, jobs=3)(jobs) if e.state != "running"}
    assert reasons["bad"] == "add-1234 is being written by process 7"
    assert reasons["broken"] == "RuntimeError: out of memory second line"
    assert reasons["killed"].startswith("ended without a result (killed or preempted); its log: ")
    assert Path(reasons["killed"].rpartition(" ")[2]).exists()
    assert reasons["stopped"] == "interrupted; the same command continues it"
    assert reasons["strange"] == "ZeroDivisionError: integer division or modulo by zero"
    assert reasons["good"] == "" and (tmp_path / "good").exists()


class _Unpicklable:
    def __reduce__(self):
        return divmod, (1, 0)


def test_jobs_that_others_could_change_are_not_run(tmp_path, without_slurm):
    (tmp_path / "jobs").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        list(cluster.Cluster(tmp_path)({"a": pytest.fail}))


def test_its_jobs_are_told_when_this_process_is_told_to_stop(tmp_path, without_slurm):
    jobs = {name: training(tmp_path / name) for name in "abc"}
    tell_this_process(signal.SIGTERM, [tmp_path / name for name in "ab"])
    with pytest.raises(Interrupted) as stopped:
        list(cluster.Cluster(tmp_path, jobs=2)(jobs))
    assert stopped.value.signum == signal.SIGTERM
    assert [(tmp_path / name).read_text() for name in "ab"] == ["SIGTERM"] * 2
    assert not (tmp_path / "c").exists()


def test_ctrl_c_at_the_terminal_reaches_a_job_once(tmp_path, without_slurm):
    code = "import sys, test_launch as t; list(t.cluster.Cluster(sys.argv[1])({'a': t.training(sys.argv[1] + '/a')}))"
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    head = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=env, cwd=ROOT, start_new_session=True)
    wait_for(lambda: (tmp_path / "a").exists())
    os.killpg(head.pid, signal.SIGINT)
    assert head.wait(30) != 0
    assert (tmp_path / "a").read_text() == "SIGTERM"


def tell_this_process(signum, after):
    def tell():
        wait_for(lambda: all(map(Path.exists, after)))
        os.kill(os.getpid(), signum)

    Thread(target=tell).start()


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


# A SLURM of one host: sbatch starts a copy of the script (submitit moves it), of which there may be two, in a session
# of its own.
COMMANDS = {
    "sbatch": """
cd "$SLURM"
[ $(ls | grep -c pid) -ge 2 ] && { echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }
id=$((100 + $(ls | grep -c sh)))
cp "$1" $id.sh
cd - >/dev/null
SLURM_JOB_ID=$id SLURM_PROCID=0 SLURM_LOCALID=0 setsid sh "$SLURM/$id.sh" >/dev/null 2>&1 &
echo $! >"$SLURM/$id.pid"
echo "Submitted batch job $id"
""",
    "srun": 'trap : TERM\nshift 5\n"$@"\ncode=$?\nmv "$SLURM/$SLURM_JOB_ID.pid" "$SLURM/$SLURM_JOB_ID.$code"',
    "sacct": """
cd "$SLURM"
echo "JobID|State|NodeList"
for file in *.pid; do [ -e $file ] && echo "${file%.*}|RUNNING|here"; done
for file in *.0; do [ -e $file ] && echo "${file%.*}|COMPLETED|here"; done
for file in *.137; do [ -e $file ] && echo "${file%.*}|OUT_OF_MEMORY|here"; done
exit 0
""",
    "scancel": 'kill -TERM -$(cat "$SLURM/$1.pid")',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "slurm").mkdir()
    for name, text in COMMANDS.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\n{text.strip()}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM", str(tmp_path / "slurm"))
    submitit.SlurmJob.watcher.clear()  # it knows jobs of these numbers
    monkeypatch.setattr(submitted, "REFRESH_SECONDS", 0.5)
    monkeypatch.setattr(submitted, "RESULT_SECONDS", 0.5)
    return tmp_path / "slurm"


@pytest.mark.slow
def test_slurm_gets_what_the_flags_say_and_as_many_jobs_as_it_takes(slurm, tmp_path):
    jobs = {name: partial(Path.touch, tmp_path / name) for name in "abc"} | {"killed": partial(os._exit, 137)}
    launcher = launchers.chosen(
        args("--launcher=submitit", f"--workdir={tmp_path}", "--partition=long", "--time_limit=90")
    )
    events = list(launcher(jobs))
    assert {e.label for e in events if e.state == "done"} == set("abc")
    (killed,) = [e.reason for e in events if e.state == "failed"]
    assert "SLURM says OUT_OF_MEMORY" in killed
    lines = (slurm / "100.sh").read_text().splitlines()
    for option in ("partition=long", "time=90", "gpus-per-node=1", "no-requeue", "signal=USR2@90"):
        assert f"#SBATCH --{option}" in lines


def test_jobs_on_slurm_are_cancelled_with_this_process(slurm, tmp_path):
    launcher = launchers.chosen(args("--launcher=submitit", f"--workdir={tmp_path}", "--gpus=0", "--jobs=1"))
    tell_this_process(signal.SIGINT, [tmp_path / "a"])
    with pytest.raises(Interrupted):
        list(launcher({name: training(tmp_path / name) for name in "ab"}))
    assert (tmp_path / "a").read_text() == "SIGTERM" and not (tmp_path / "b").exists()
    assert "gpus" not in (slurm / "100.sh").read_text()


def test_what_slurm_refuses_is_said_in_one_line(slurm, tmp_path):
    for number in (1, 2):
        (slurm / f"{number}.pid").touch()
    with pytest.raises(ConfigError, match="can't be submitted: sbatch: error: QOSMax"):
        list(cluster.Cluster(tmp_path)({"a": pytest.fail}))


def test_cells_take_their_states_from_the_launcher(tmp_path, capsys):
    configs = {merge: a_config(merge, epochs=2, seeds=1) for merge in ("add", "mul", "se", "pi")}
    write_run(configs["add"], tmp_path, {0: 0.9})
    write_run(configs["pi"], tmp_path, {0: 0.9})

    def launcher(jobs):
        assert list(jobs) == ["mul", "se"]
        yield Event("mul", "running")
        yield Event("se", "running")
        yield Event("mul", "failed", "killed")
        jobs["se"]()
        yield Event("se", "done")

    def train(config, workdir):
        return write_run(config, workdir, {0: 0.8}, {0: 1})

    (rundir.path_of(configs["pi"], tmp_path) / "summary.json").write_text("{")
    outcomes = {o.label: o for o in runs.run(configs, train, tmp_path, Console(width=200), launcher)}
    assert list(outcomes) == list(configs)
    assert [outcomes[label].trained for label in configs] == [False, False, True, False]
    assert [outcomes[label].run_dir is None for label in configs] == [False, True, False, True]
    assert outcomes["mul"].reason == "killed" and "summary.json" in outcomes["pi"].reason
    lines = re.sub(r"\b\d s", "T", capsys.readouterr().out).splitlines()
    assert lines[:2] == ["[1/4] add", "    finished before, OA 90.00 % (n = 1)"]
    running = lines.index("[2/4] mul")
    assert lines[running + 1 : running + 3] == ["[3/4] se", "[2/4] mul"]
    assert lines[running + 3 :] == [
        "    failed, T, about T left",
        "    killed",
        "[3/4] se",
        "    T, no accuracy",
        "    seed 0 diverged in epoch 1",
    ]


def test_a_cell_that_can_not_work_stops_a_study_in_this_process(tmp_path):
    def train(config, workdir):
        raise ConfigError("no such data set")

    with pytest.raises(ConfigError, match="no such data set"):
        runs.run({m: a_config(m) for m in ("add", "mul")}, train, tmp_path, Console(quiet=True))


def test_what_another_process_trains_comes_last(tmp_path):
    configs, trained = {m: a_config(m) for m in ("add", "mul")}, []
    other = rundir.RunDir(configs["add"], tmp_path).__enter__()

    def train(config, workdir):
        with rundir.RunDir(config, workdir):
            trained.append(config.name)
        other.__exit__()  # the other process ends while the second cell is trained
        return write_run(config, workdir, {0: 0.9})

    console = Console(file=io.StringIO(), width=300)
    outcomes = runs.run(configs, train, tmp_path, console)
    assert trained == ["mul", "add"] and [outcome.label for outcome in outcomes] == ["add", "mul"]
    assert f"put off: {rundir.path_of(configs['add'], tmp_path)} is being written by process" in console.file.getvalue()


def test_the_table_of_hundreds_of_cells_fits_a_terminal(monkeypatch):
    labels = [f"cell {i}" for i in range(300)]
    clock = [1000.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=24)
    shown = board.Board(labels, console, live=True)
    with shown:
        for label in labels[:10]:
            shown.show(Event(label, "done"), "finished before, OA 90.00 % (n = 8)")
        for label in labels[10:200]:
            shown.show(Event(label, "running"))
        clock[0] += 60
        for label in labels[10:110]:
            shown.show(Event(label, "done"), f"OA of {label}")
        for label in labels[110:130]:
            shown.show(Event(label, "failed", f"why {label} failed " + 80 * "and so on "))
    plain = Console(file=io.StringIO(), width=100)
    plain.print(shown)
    lines = plain.file.getvalue().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    # 120 ended in a minute, 170 remain
    assert lines[0].strip() == "110 done, 70 running, 100 waiting, 20 failed, about 1 min left"
    text = "\n".join(lines)
    assert "and 63 more running" in text and "and 13 more failed" in text
    assert "why cell 129 failed" in text and "OA of cell 109" in text and "finished before" not in text
    assert "why cell 110 failed" not in text and "cell 110: why cell 110 failed" in console.file.getvalue()


@pytest.mark.parametrize(("launcher", "live"), [(launchers.in_this_process, False), (lambda jobs: iter(()), True)])
def test_a_training_in_this_process_has_the_terminal_to_itself(launcher, live, tmp_path):
    config = a_config(epochs=2, seeds=1)
    write_run(config, tmp_path, {0: 0.9})
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    runs.run({"add": config}, pytest.fail, tmp_path, console, launcher)
    assert ("1 done, 0 running" in console.file.getvalue()) == live
    assert ("[1/1] add" in console.file.getvalue()) != live


@pytest.mark.slow
def test_a_cell_that_was_killed_is_trained_by_the_same_command(tmp_path, without_slurm):
    """The whole program: two cells at a time; the process of one is killed while it trains."""
    merges = ["add", "mul"]
    flags = "--launcher=submitit --jobs=2 --width=8 --train_size=96 --batch_size=32 --seeds=1 --epochs=3 "
    flags += "--set=model.name=mlp --set=model.depth=4 --set=model.norm=none --set=dataset.augment=none "
    flags += "--set=compilation_cache=none"
    paths = [f"--merges={','.join(merges)}", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "experiments.compare", *flags.split(), *paths]
    study = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    (killed,) = wait_for(lambda: [file.parent for file in tmp_path.glob("runs/mul-*/status.json")])
    os.kill(int((killed / "LOCK").read_text().split()[0]), signal.SIGKILL)
    assert rundir.read_status(killed)["status"] == "running"
    out, _ = study.communicate(timeout=240)
    assert study.returncode == 1
    assert "digits, mul: ended without a result (killed or preempted)" in " ".join(out.split())
    table = pd.read_csv(tmp_path / "out.csv", comment="#").set_index("merge")
    assert dict(table["status"]) == {merge: "failed" if merge == "mul" else "done" for merge in merges}

    others = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*-*/*") if p.parent != killed}
    assert len({p.parent for p in others if p.name == "summary.json"}) == 1
    again = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240, check=False)
    assert again.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in others} == others
    assert set(pd.read_csv(tmp_path / "out.csv", comment="#")["status"]) == {"done"}
    assert "1 of 2 cells were trained" in (tmp_path / "out.csv").read_text()
