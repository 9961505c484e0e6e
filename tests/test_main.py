"""The command line: what it prints, its exit codes, and that a refused run leaves nothing behind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from resjax import command_line, main
from resjax.config import ConfigError
from resjax.runtime import startup

ROOT = Path(__file__).parents[1]
TINY = [
    "--config.epochs=1", "--config.seeds=2", "--config.model.name=mlp", "--config.model.depth=4",
    "--config.dataset.train_size=128",
]  # fmt: skip


MUL = f"--config={ROOT}/configs/mul.py"
in_process = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # config_flags calls it


def run(workdir, *arguments, cwd=ROOT):
    command = [sys.executable, "-m", "resjax.main", f"--workdir={workdir}", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def here(monkeypatch, capsys):
    """The program in this process: exit code, stdout and stderr."""
    monkeypatch.setattr(startup, "start", lambda *_: None)  # JAX has started: its devices can't be chosen any more

    def run(workdir, *arguments):
        return main.main(["main.py", f"--workdir={workdir}", *arguments]), *capsys.readouterr()

    return run


@in_process
def test_a_run_then_nothing(tmp_path, here):
    first = run(tmp_path, "--config=configs/mul.py", *TINY)
    assert first.returncode == 0, first.stderr
    path = Path(first.stdout.splitlines()[-1])
    assert path.parent == tmp_path and (path / "curves.png").stat().st_size > 10_000
    assert "overall accuracy" in first.stdout and "2 of 2 replicas" in " ".join(first.stdout.split())
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    code, out, _ = here(tmp_path, MUL, *TINY, "--profile")
    assert code == 0 and "nothing was done; no step is left to profile\n" in out
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()} == before


@in_process
def test_divergence_is_named_and_exits_with_one(tmp_path, here):
    diverging = ["--config.optimizer.learning_rate=1e6", "--config.model.norm=none", "--config.loss.name=mse"]
    code, _, err = here(tmp_path, MUL, "--config.model.merge=add", *TINY, *diverging, "--config.batch_size=16")
    assert code == 1
    assert "seed 0 diverged: loss or gradient not finite in epoch 1" in err


def test_bad_input_is_one_line_and_exit_code_two(tmp_path):
    done = run(tmp_path / "runs", "--config=configs/mul.py", "--config.batch_size=5000")
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and "only 1437 training images" in done.stderr, done.stderr
    assert "Traceback" not in done.stdout and not (tmp_path / "runs").exists()


@in_process
@pytest.mark.parametrize("arguments, words", [
    ([], "no --config"),
    (["--config=configs/mull.py"], "configs/mull.py"),
    ([MUL + ":cifar10", "--config.dataset.data_dir=/nowhere"], "TFDS_DATA_DIR"),
    ([MUL + ":cifar11"], "unknown preset"),
    ([MUL, "--config.model.merge=plus"], "no such merge"),
    ([MUL, "--config.dataset.name=nosuch"], "nosuch"),
    ([MUL, "--config.model.dpeth=8"], "dpeth"),
    ([MUL, "--config.optimizer.learning_rate=nan"], "learning_rate"),
    ([MUL, "--config.optimizer.learning_rate=fast"], "learning_rate"),
    ([MUL, "--config.model.depth=-3"], "depth"),
    ([MUL, "--config.model.depth=21"], "6n+2"),
    ([MUL, "--config.epochs=2.5"], "epochs"),
    ([MUL, "--workdri=x"], "workdri"),
    ([MUL, "mul"], "unexpected argument"),
], ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "")  # fmt: skip
def test_what_a_process_need_not_be_started_for(tmp_path, here, arguments, words):
    code, out, err = here(tmp_path / "runs", *arguments)
    assert code == 2 and len(err.splitlines()) == 1 and err.startswith("error: ") and words in err
    assert not out and not (tmp_path / "runs").exists()


@in_process
@pytest.mark.parametrize("arguments, line", [
    ([MUL + ":cifar11"], "unknown preset 'cifar11': choose from .*"),  # the file's own words and no more
    ([MUL, "--config.seeds=0x" + 9000 * "f"], "config.seeds=a huge number: must lie in .*"),
    ([MUL, "--config.schedule.milestones=1if 2else 3"], "config.schedule.milestones=.*: must be a tuple of numbers"),
    ([MUL, "--config.schedule.milestones=" + 20_000 * "-"], ".* nested too deeply|config.schedule.milestones.*"),
    ([MUL, "--config.depth=3"], "config.depth: no such entry; did you mean config.model.depth.*"),
    ([MUL, "--config.model=3"], "config.model: no such entry; did you mean config.model.*"),
    ([MUL, "--config.__class__.__doc__=x"], "config.__class__.__doc__: no such entry.*"),
    ([MUL, MUL], "--config is given twice"),
    (["--config.seeds=3"], "no --config: try .*"),
    (["--config", "no/such.py"], "--config: .*No such file.*'no/such.py'"),
    ([f"--config={ROOT}"], "--config: .*Is a directory.*"),
    (["--config=" + 300 * "a"], "--config: .*name too long.*"),
    ([MUL, "--v=3"], "Unknown command line flag 'v'.*"),  # absl's own
    ([MUL, f"--flagfile={sys.executable}"], "--config: UnicodeDecodeError: .*"),
    ([MUL, "--workdir=" + 256 * "a"], "--workdir='a*': not a path.*"),
], ids=lambda value: str(value)[:60])  # fmt: skip
def test_what_is_wrong_with_the_flags(arguments, line):
    with pytest.raises(ConfigError) as error:
        command_line.parse(["main.py", *arguments])
    assert re.fullmatch(line, str(error.value))


@in_process
@pytest.mark.parametrize("code, line", [
    ("def get_config(preset=''): return len(3)", "--config: TypeError: object of type 'int' has no len()"),
    ("def get_config(preset=''): return int(preset or 'x')", "--config: ValueError: invalid literal for int() .*"),
    ("def get_config(preset=''): return float(10**400)", "--config: OverflowError: .*"),
    ("def get_config(preset=''): return b'\\xff'.decode()", "--config: UnicodeDecodeError: .*"),
    ("def get_config(preset=''): raise KeyError", "--config: KeyError:"),
    ("def get_config(preset=''): open('/no/such')", "--config: .*No such file.*'/no/such'"),
    ("def get_config(preset=''): pass", "--config: get_config() returned None.*"),
    ("def get_config(preset=''): return 3", "--config: get_config() returned 3.*"),
    ("from ml_collections import *\ndef get_config(): return ConfigDict({1: 2, 'a': 3})", "--config: TypeError: .*"),
    ("def get_config(:", "--config: SyntaxError: .*"),
    ("seeds = 3", "--config: AttributeError: .*get_config.*"),
])  # fmt: skip
def test_what_is_wrong_with_a_config_file(tmp_path, monkeypatch, code, line):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # what config_flags makes of a file; it adds to it
    file = tmp_path / "own.py"
    file.write_text(code + "\n")
    with pytest.raises(ConfigError) as error:
        command_line.parse(["main.py", f"--config={file}"])
    assert re.fullmatch(line.replace("()", r"\(\)"), str(error.value))


@in_process
def test_each_command_line_is_parsed_on_its_own():
    config, workdir, _, profile = command_line.parse(["main.py", MUL, "--config.seeds=3", "--workdir=w", "--profile"])
    assert (config.seeds, workdir, profile) == (3, "w", True)
    config, workdir, _, profile = command_line.parse(["main.py", MUL])
    assert (config.seeds, workdir, profile) == (8, "runs", False)


@in_process
def test_a_workdir_that_cannot_be_written(tmp_path, here):
    (tmp_path / "file").touch()
    code, _, err = here(tmp_path / "file" / "runs", MUL, *TINY)
    assert code == 2 and len(err.splitlines()) == 1 and "cannot write" in err


def test_configs_are_found_from_their_folder_alone(tmp_path):
    done = run(tmp_path / "runs", f"--config={ROOT}/configs/mul.py", *TINY, cwd=tmp_path)
    assert done.returncode == 2 and "run from the folder that holds configs/" in done.stderr


def test_help_is_short(tmp_path, here):
    code, out, _ = here(tmp_path, "--help")
    assert code == 0 and "--config=FILE" in out and len(out.splitlines()) < 15


@pytest.mark.slow
def test_a_merge_of_ones_own_in_a_config_file(tmp_path):
    file = tmp_path / "half.py"
    file.write_text(
        "from configs import default\n"
        "from resjax.models.merges import register\n\n"
        'register("mul_half", lambda s, f: s * (0.5 + f), "s*(1/2 + f)", identity="affine")\n\n'
        'def get_config(preset=""):\n'
        '    return default.get_config(preset, merge="mul_half")\n'
    )
    done = run(tmp_path / "runs", f"--config={file}", *TINY)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).name.startswith("mul_half-")
    again = run(tmp_path / "runs", f"--config={file}", *TINY)
    assert "nothing was done; a merge whose formula has changed needs a new name" in again.stdout
