"""Training the cells of a study: what became of each, in this process or wherever a launcher sends it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict
from rich.console import Console

from resjax import config as config_lib
from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.sweep import launchers
from resjax.sweep.board import Board
from resjax.sweep.jobs import Event, Launcher, reason
from resjax.training import rundir

Train = Callable[[ConfigDict, str | os.PathLike], Path]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
      label: the cell in words.
      config: of the cell.
      run_dir: None if it failed.
      table: `tables.summary` of it, with `reason`; one row without a seed if it failed.
      trained: whether it was trained now; False if it had been finished before, or failed.
    """

    label: str
    config: ConfigDict
    run_dir: Path | None
    table: pd.DataFrame
    trained: bool

    @property
    def reason(self) -> str:
        """Why the cell is incomplete; "" if it is not."""
        return "; ".join(dict.fromkeys(filter(None, self.table["reason"])))


def trainer(launcher: Launcher, config: ConfigDict, register: Callable[[], None] | None = None) -> Train:
    """The real one. JAX starts here, for runs of `config`, or in each job if these are other processes.

    `register` registers the study's own merges, where nets are trained; module-level, for jobs find it by its name.
    """
    if launcher is not launchers.in_this_process:
        import jax

        jax.config.update("jax_platforms", "cpu")  # of this process: the accelerators are the jobs'
        return partial(_start_and_train, register=register)
    from resjax.runtime import startup
    from resjax.training import loop

    startup.start(config)
    if register:
        register()
    return loop.train


def _start_and_train(config: ConfigDict, workdir: str | os.PathLike, register: Callable[[], None] | None) -> Path:
    from resjax.runtime import startup
    from resjax.training import loop

    startup.start(config)
    if register:
        register()
    return loop.train(config, workdir)


def run(
    cells: Mapping[str, ConfigDict],
    train: Train,
    workdir: str,
    console: Console,
    launcher: Launcher = launchers.in_this_process,
) -> list[Outcome]:
    """Trains, continues or reuses the cells (label -> config); a failing cell does not stop the others.

    What another process trains in this workdir comes last, when that process has ended.

    Raises:
      ConfigError: two cells are the same run, or a cell that trains in this process can't work as it is configured.
      KeyboardInterrupt: the study was told to stop; what its runs had done is saved.
    """
    labels: dict[str, str] = {}
    for label, c in cells.items():
        if (same := labels.setdefault(config_lib.hash8(c), label)) != label:
            raise ConfigError(f"{same!r} and {label!r} are the same run: they have equal configs")
    paths = {label: rundir.path_of(c, workdir) for label, c in cells.items()}
    finished = [label for label in cells if rundir.read_status(paths[label]).get("status") in rundir.FINISHED]
    jobs = {label: partial(train, c, workdir) for label, c in cells.items() if label not in finished}
    outcomes = {}
    # A training in this process draws its own progress.
    with Board(cells, console, live=console.is_terminal and launcher is not launchers.in_this_process) as board:

        def ended(label: str, outcome: Outcome, past: str = "") -> None:
            outcomes[label] = outcome
            state, words = ("done", [past, _accuracy(outcome.table)]) if outcome.run_dir else ("failed", [])
            board.show(Event(label, state, outcome.reason), ", ".join(filter(None, words)))

        for label in finished:
            rundir.check_finished(paths[label], cells[label])
            ended(label, _finished(label, cells[label], paths[label], trained=False), "finished before")
        while jobs:
            busy = []
            for event in launcher(jobs):
                label = event.label
                if isinstance(event.error, rundir.BusyError):
                    busy.append(label)
                    board.show(Event(label, "waiting"), f"put off: {event.reason}")
                elif isinstance(event.error, ConfigError):  # what the user asked for can't work: say so, write nothing
                    raise event.error
                elif event.state == "running":
                    board.show(event)
                elif event.state == "done":
                    ended(label, _finished(label, cells[label], paths[label], trained=True))
                else:
                    ended(label, _failed(label, cells[label], event.reason))
            jobs = {label: jobs[label] for label in busy}
            if busy:
                rundir.wait_until_free(paths[busy[0]])
    return [outcomes[label] for label in cells]


def _finished(label: str, c: ConfigDict, run_dir: Path, trained: bool) -> Outcome:
    try:
        table = tables.summary([run_dir])
        words = table["seed"].map("seed {} diverged in epoch ".format) + table["epoch"].astype(str)
        table["reason"] = words.where(table["status"] == "diverged", "")
        return Outcome(label, c, run_dir, table, trained)
    except Exception as error:  # its files can't be read
        return _failed(label, c, reason(label, error))


def _failed(label: str, c: ConfigDict, reason: str) -> Outcome:
    row = tables.config_columns(c) | {"status": "failed", "reason": reason}
    table = pd.DataFrame([row], columns=[*tables.summary([]).columns, "reason"])
    return Outcome(label, c, None, table, trained=False)


def _accuracy(table: pd.DataFrame) -> str:
    """Validation accuracy where the cell has one: it serves a choice, in which the test set has no say."""
    for name in ("validation_accuracy", "OA"):
        present = table[name].dropna()
        if len(present):
            return f"{name} {100 * present.mean():.2f} % (n = {len(present)})"
    return "no accuracy"


def table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row per (cell, seed), as `tables.summary` has them, with `reason`; a failed cell has one row."""
    filled = [o.table.dropna(axis="columns", how="all") for o in outcomes]  # pandas warns of empty columns
    return pd.concat(filled, ignore_index=True).reindex(columns=[*tables.summary([]).columns, "reason"])
