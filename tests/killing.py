"""Trains a tiny run again and again, ending each try with a signal, until it is done.

  python tests/killing.py WORKDIR KILLS SEED

Prints the exit codes. Tries are forked from a process that has imported everything and started nothing: a new
interpreter for each would take most of the time.
"""

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import orbax.checkpoint  # noqa: F401
import sklearn.metrics  # noqa: F401

from resjax import main
from resjax.analysis import plots, report  # noqa: F401
from resjax.runtime import progress, startup  # noqa: F401
from resjax.training import loop  # noqa: F401

EPOCHS = 60
KILLED = 45  # the last kill comes before this epoch is over
PAUSE = 0.02  # seconds after each epoch: time to kill in
ARGUMENTS = [
    "--config=configs/mul_bn1.py", f"--config.epochs={EPOCHS}", "--config.seeds=2", "--config.model.name=mlp",
    "--config.model.depth=4", "--config.dataset.train_size=96", "--config.batch_size=32",
    "--config.optimizer.learning_rate=0.01", "--config.dataset.validation=0.1", "--config.checkpoint_seconds=0.05",
]  # fmt: skip


def start(workdir: str) -> int:
    """Begins or continues the run in a process of its own, and returns its id."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        output = os.open(Path(workdir) / "output", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _pause_after_epochs()
        code = main.main(["resjax.main", f"--workdir={workdir}", *ARGUMENTS])
    finally:
        sys.stdout.flush()
        os._exit(code)


def _pause_after_epochs() -> None:
    show = progress.TrainingProgress.show

    def slowly(self, epoch, rows):
        show(self, epoch, rows)
        time.sleep(PAUSE)

    progress.TrainingProgress.show = slowly


def epochs_of(workdir: str) -> int:
    """Epochs in metrics.jsonl."""
    files = list(Path(workdir).glob("*/metrics.jsonl"))
    return files[0].read_text().count('"train"') // 2 if files else 0


def kill(workdir: str, signum: int, epoch: int, delay: float) -> int:
    """Starts the run, ends it `delay` seconds after it has reached `epoch`; returns the exit code (-n: signal n)."""
    pid = start(workdir)
    _wait(pid, lambda: epochs_of(workdir) >= epoch)
    time.sleep(delay)
    return _end(pid, signum)


def kill_early(workdir: str, signum: int, delay: float) -> int:
    """Starts the run, ends it after `delay` seconds or its first epoch; returns the exit code (-n: signal n)."""
    before, until = epochs_of(workdir), time.monotonic() + delay
    pid = start(workdir)
    _wait(pid, lambda: time.monotonic() > until or epochs_of(workdir) > before)
    return _end(pid, signum)


def _wait(pid: int, condition: Callable[[], bool]) -> None:
    while not condition() and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.002)


def _end(pid: int, signum: int) -> int:
    os.kill(pid, signum)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "os.fork")
    workdir, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    Path(workdir).mkdir(parents=True, exist_ok=True)
    draw, codes = random.Random(seed), []
    for i in range(kills):
        # One in four dies while it starts, the others at any moment of an epoch, further on each time.
        signum = (signal.SIGKILL, signal.SIGTERM)[draw.random() < 0.5]
        if i % 4 == 3:
            codes.append(kill_early(workdir, signum, draw.uniform(0, 2)))
        else:
            epoch = draw.randrange(i * KILLED // kills, (i + 1) * KILLED // kills)
            codes.append(kill(workdir, signum, epoch, draw.uniform(0, 2.5 * PAUSE)))
    codes.append(os.waitstatus_to_exitcode(os.waitpid(start(workdir), 0)[1]))
    print(*codes)
