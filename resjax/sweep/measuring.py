"""Measurements of runs, each kept as JSON with its origin in the run directory.

A run that was measured before by the same code is read, not measured again: the same command continues a study.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.console import Console

from resjax import records
from resjax.sweep import code, launchers
from resjax.sweep.board import Board
from resjax.sweep.jobs import Launcher
from resjax.training import rundir

# (config, workdir, **options) -> table name -> rows; module-level, for other processes find it by its name.
Measure = Callable[..., dict[str, list[dict]]]


class Measured(NamedTuple):
    """What was measured of a run.

    Attributes:
      tables: name -> rows.
      env: commit, versions, command line and device that measured it.
      now: whether it was measured now, and not by an earlier study.
    """

    tables: dict[str, list[dict]]
    env: dict
    now: bool


def over_cores(launcher: Launcher, *, small: bool, processes: int | None = None) -> Launcher:
    """The launcher of measurements, which unlike trainings don't use all cores: several processes on this machine.

    Args:
      launcher: of the study; one that submits jobs stays.
      small: whether starting a process would take longer than measuring; then they stay in this one.
      processes: their number; else `workers`.
    """
    if launcher is not launchers.in_this_process or (small and processes is None):
        return launcher
    return partial(launchers.in_processes, processes=processes or workers())


def workers() -> int:
    """One process per core, but one alone on an accelerator."""
    import jax

    from resjax.runtime.startup import cores

    return cores() if jax.default_backend() == "cpu" else 1


def measure_all(
    todo: Mapping[str, tuple[ConfigDict, dict[str, Any]]],
    measure: Measure,
    name: str,
    workdir: str,
    console: Console,
    launcher: Launcher,
) -> dict[str, Measured]:
    """What `measure` says of every run, by label; a run that fails is named and left out, and the others go on.

    Args:
      todo: label -> config of a finished run, and options of the measurement.
      measure: what to do.
      name: how the file's name begins; a digest of the options follows.
      workdir: of the run directories.
      console: for the states of the measurements.
      launcher: where they run.
    """
    version = code.digest(measure.__module__)
    files = {label: _file(config, workdir, name, options, version) for label, (config, options) in todo.items()}
    jobs = {
        label: partial(_measure, measure, *todo[label], workdir, files[label])
        for label in todo
        if not files[label].exists()
    }
    failed = set()
    with Board(jobs, console, live=console.is_terminal) as board:
        for event in launcher(jobs):
            if event.state == "failed":
                failed.add(event.label)
            board.show(event, "measured" if event.state == "done" else "")
    read = {label: records.read_json(path) for label, path in files.items() if label not in failed}
    return {label: Measured(found["tables"], found["env"], label in jobs) for label, found in read.items()}


def _file(config: ConfigDict, workdir: str, name: str, options: Mapping[str, Any], version: str) -> Path:
    asked = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:8]
    return rundir.path_of(config, workdir) / f"{name}-{asked}-{version}.json"


def _measure(measure: Measure, config: ConfigDict, options: dict[str, Any], workdir: str, path: Path) -> None:
    found = {
        name: [{key: _jsonable(value) for key, value in row.items()} for row in rows]
        for name, rows in measure(config, workdir, **options).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)  # of a net that is not trained
    import jax

    device = {"device": jax.devices()[0].device_kind, "device_count": jax.device_count()}
    records.write_json(path, {"env": rundir.environment() | device, "tables": found})


def _jsonable(value):
    """JSON has neither NumPy's numbers nor nan and the infinities; the latter become words that float() reads."""
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
