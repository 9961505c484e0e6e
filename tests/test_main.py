"""The command line: what it prints, its exit codes, and that a refused run leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = ["--config.epochs=1", "--config.seeds=2", "--config.model.name=mlp", "--config.dataset.train_size=128"]


def run(workdir, *arguments, cwd=ROOT):
    command = [sys.executable, "-m", "resjax.main", f"--workdir={workdir}", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_run_then_nothing(tmp_path):
    first = run(tmp_path, "--config=configs/mul.py", *TINY)
    assert first.returncode == 0, first.stderr
    path = Path(first.stdout.splitlines()[-1])
    assert path.parent == tmp_path and (path / "curves.png").stat().st_size > 10_000
    assert "overall accuracy" in first.stdout and "2 of 2 replicas" in " ".join(first.stdout.split())
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    again = run(tmp_path, "--config=configs/mul.py", *TINY)
    assert again.returncode == 0 and "nothing was done" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()} == before


def test_divergence_is_named_and_exits_with_one(tmp_path):
    diverging = ["--config.optimizer.learning_rate=1e6", "--config.model.norm=none", "--config.loss.name=mse"]
    done = run(tmp_path, "--config=configs/add.py", *TINY, *diverging, "--config.batch_size=16")
    assert done.returncode == 1
    assert "seed 0 diverged: loss or gradient not finite in epoch 1" in done.stderr


@pytest.mark.parametrize("arguments, words", [
    ([], "no --config"),
    (["--config=configs/mull.py"], "configs/mull.py"),
    (["--config=configs/mul.py:cifar11"], "unknown preset"),
    (["--config=configs/mul.py", "--config.model.merge=plus"], "no such merge"),
    (["--config=configs/mul.py", "--config.dataset.name=nosuch"], "nosuch"),
    (["--config=configs/mul.py", "--config.model.dpeth=8"], "dpeth"),
    (["--config=configs/mul.py", "--config.optimizer.learning_rate=nan"], "learning_rate"),
    (["--config=configs/mul.py", "--config.optimizer.learning_rate=fast"], "learning_rate"),
    (["--config=configs/mul.py", "--config.model.depth=-3"], "depth"),
    (["--config=configs/mul.py", "--config.model.depth=21"], "6n+2"),
    (["--config=configs/mul.py", "--config.epochs=2.5"], "epochs"),
    (["--config=configs/mul.py", "--config.batch_size=5000"], "only 1437 training images"),
    (["--config=configs/mul.py:cifar10", "--config.dataset.data_dir=/nowhere"], "TFDS_DATA_DIR"),
    (["--config=configs/mul.py", "--workdri=x"], "workdri"),
    (["--config=configs/mul.py", "mul"], "unexpected argument"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_two(tmp_path, arguments, words):
    done = run(tmp_path / "runs", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stdout and not (tmp_path / "runs").exists()


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    done = run(tmp_path / "file" / "runs", "--config=configs/mul.py", *TINY)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "cannot write" in done.stderr


def test_configs_are_found_from_their_folder_alone(tmp_path):
    done = run(tmp_path / "runs", f"--config={ROOT}/configs/mul.py", *TINY, cwd=tmp_path)
    assert done.returncode == 2 and "run from the folder that holds configs/" in done.stderr


def test_help_is_short(tmp_path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0 and "--config=FILE" in done.stdout and len(done.stdout.splitlines()) < 15


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
