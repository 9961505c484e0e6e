"""The frame of a study: it reads flags, trains, measures, and writes tables and figures that name their origin."""

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict
from rich.console import Console

from resjax import records
from resjax.analysis import plots, tables
from resjax.config import ConfigError
from resjax.runtime import interrupt
from resjax.sweep import flags, launchers, measuring, runs
from resjax.sweep.board import duration
from resjax.sweep.jobs import Launcher

Measurements = Mapping[str, Mapping[str, Any]]


@dataclass
class Study:
    """A study at work.

    Attributes:
      module: for `python -m`.
      argv: its command line.
      args: the flags of it.
      trainer: replaces the real one.
      measurement: replaces the study's own.
      launcher: where trainings and measurements run.
      outcomes: of all cells that were trained.
      measurements: of a study that asks probes: name of the measurement, or of the probe where one measurement asks
        several -> its rows, with the columns `cell` (the label) and those of `tables.config_columns`.
      missing: how many measurements failed.
    """

    module: str
    argv: Sequence[str]
    args: argparse.Namespace
    trainer: runs.Train | None = None
    measurement: measuring.Measure | None = None
    console: Console = field(default_factory=Console)
    launcher: Launcher = launchers.in_this_process
    outcomes: list[runs.Outcome] = field(default_factory=list)
    measurements: dict[str, pd.DataFrame] = field(default_factory=dict)
    missing: int = 0
    _measured: list[measuring.Measured] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def start(self, config: ConfigDict, register: Callable[[], None] | None = None) -> None:
        """Starts JAX for runs of `config`, before anything is computed; `register`: of `runs.trainer`."""
        self.trainer = self.trainer or runs.trainer(self.launcher, config, register)

    def train(
        self, configs: Mapping[str, ConfigDict], register: Callable[[], None] | None = None
    ) -> list[runs.Outcome]:
        """Trains what is not trained yet (label -> config); `register`: of `runs.trainer`. Raises ConfigError."""
        self.start(next(iter(configs.values())), register)
        found = runs.run(configs, self.trainer, self.args.workdir, self.console, self.launcher)
        self.outcomes += found
        for outcome in found:
            self._draw_curves(outcome)
        return found

    def _draw_curves(self, outcome: runs.Outcome) -> None:
        if outcome.run_dir and not (outcome.run_dir / records.CURVES).exists():
            try:
                plots.curves(outcome.run_dir)
            except (OSError, ValueError) as error:  # the result is there all the same
                self.console.print(f"warning: {outcome.label}: no curves.png: {error}", markup=False, highlight=False)

    def measure(
        self,
        todo: Mapping[str, tuple[ConfigDict, Mapping[str, Any]]],
        measure: measuring.Measure,
        name: str,
        processes: int | None = None,
    ) -> dict[str, dict[str, list[dict]]]:
        """The tables that `measure` gives of each (label -> config and options), of those that don't fail.

        Args:
          todo: what is measured.
          measure: a function of a module; the study's `measurement` stands in for it.
          name: how the names of the files begin that keep the tables.
          processes: of `measuring.over_cores`.
        """
        launcher = measuring.over_cores(self.launcher, small=self.args.smoke, processes=processes)
        measure = self.measurement or measure
        found = measuring.measure_all(todo, measure, name, self.args.workdir, self.console, launcher)
        self.missing += len(todo) - len(found)
        self._measured += found.values()
        return {label: measured.tables for label, measured in found.items()}

    @property
    def nets(self) -> pd.DataFrame:
        """A row per cell and seed: `runs.table` with the column `cell`."""
        return pd.concat([runs.table([o]).assign(cell=o.label) for o in self.outcomes], ignore_index=True)

    def probed(self, name: str) -> pd.DataFrame:
        """The rows that a probe left during training (config.probes), with the columns that `measurements` have."""
        rows = {o.label: tables.probed(o.run_dir, name) for o in self.outcomes if o.run_dir}
        return together(rows, self.outcomes)

    def header(self) -> dict[str, str]:
        """What the tables say of their origin: that of every run and of every measurement, made now or before."""
        trained, measured = sum(o.trained for o in self.outcomes), sum(m.now for m in self._measured)
        made = [f"{trained} of {len(self.outcomes)} cells were trained"] if self.outcomes else []
        made += [f"{measured} of {len(self._measured)} measurements made"] if self._measured else []
        return {
            "command": shlex.join(["python", "-m", self.module, *self.argv]),
            **tables.provenance((o.run_dir for o in self.outcomes if o.run_dir), [m.env for m in self._measured]),
            "date": datetime.now().astimezone().isoformat(timespec="minutes"),
            "wall time": f"{duration(time.monotonic() - self._began)}, in which {' and '.join(made)}",
        }

    def publish(self, written: Mapping[str, pd.DataFrame], verdicts: Mapping[str, str], key: str = "{}") -> list[Path]:
        """Prints the verdicts, and writes the tables OUT<suffix>.csv with them in their header; returns the paths.

        Args:
          written: suffix -> table.
          verdicts: what it is on -> sentence.
          key: of a verdict in the header; {} stands for what it is on.
        """
        for what, sentence in verdicts.items():
            self.console.print(f"\n{what}: {sentence}", markup=False, highlight=False)
        header = self.header() | {key.format(what): sentence for what, sentence in verdicts.items()}
        return [tables.write_csv(table, f"{self.args.out}{suffix}.csv", header) for suffix, table in written.items()]


Body = Callable[[Study], list[Path]]  # does what a study does; the paths that it has written


def run(
    module: str,
    argv: Sequence[str] | None,
    parser: argparse.ArgumentParser,
    body: Body,
    train: runs.Train | None = None,
    measure: measuring.Measure | None = None,
) -> int:
    """Runs a study; returns the exit code (1: a cell failed, 2: bad input, 128 + n: stopped by signal n).

    Args:
      module: for `python -m`.
      argv: the command line; None takes the process's.
      parser: of `flags.parser`.
      body: does the work; may raise ConfigError.
      train: replaces the trainer.
      measure: replaces the measurement.
    """
    argv = sys.argv[1:] if argv is None else argv
    study = Study(module, argv, flags.parse(parser, argv), train, measure)
    try:
        study.launcher = launchers.chosen(study.args)
        for path in body(study):
            print(path)
    except (ConfigError, KeyboardInterrupt) as error:
        return exit_code(error)
    return int(study.missing > 0 or not all(o.run_dir for o in study.outcomes))


def exit_code(error: ConfigError | KeyboardInterrupt) -> int:
    """Says in one line why a study ended early; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        with contextlib.suppress(OSError):  # who read this may be gone, as `tee` is after Ctrl-C
            print("stopped; the same command continues", file=sys.stderr)
        return interrupt.exit_code(error)
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


def of_probes(
    configurations: Callable[[argparse.Namespace], Mapping[str, ConfigDict]],
    measurements: Callable[[argparse.Namespace], Measurements],
    report: Body,
    register: Callable[[], None] | None = None,
) -> Body:
    """The body of a study that trains its cells, and then asks probes of every finished run.

    Args:
      configurations: args -> the config of each cell, by its label; may raise ConfigError.
      measurements: args -> name -> options of `resjax.sweep.probed.measure`: what is asked of every finished run, or,
        with `cells` among the options, of those with these labels.
      report: of the study, whose `measurements` are known then; prints the verdicts, writes tables and figures.
      register: of `runs.trainer`.
    """
    return partial(_ask_probes, configurations, measurements, report, register)


def _ask_probes(configurations, measurements, report: Body, register, study: Study) -> list[Path]:
    configs = configurations(study.args)
    outcomes = study.train(configs, register)
    from resjax.sweep.probed import measure

    for name, options in measurements(study.args).items():
        options = dict(options)
        chosen = options.pop("cells", configs)
        todo = {o.label: (o.config, options) for o in outcomes if o.run_dir and o.label in chosen}
        study.missing += len(chosen) - len(todo)
        measured = study.measure(todo, measure, name)
        for probe in options["probes"]:
            own = {label: pd.DataFrame(found[probe]) for label, found in measured.items()}
            study.measurements[name if len(options["probes"]) == 1 else probe] = together(own, outcomes)
    if study.measurements and all(table.empty for table in study.measurements.values()):
        raise ConfigError("no run could be looked into; the reasons stand above")
    return report(study)


def together(rows: Mapping[str, pd.DataFrame], outcomes: Sequence[runs.Outcome]) -> pd.DataFrame:
    """The tables of several cells as one, that says of each row where it comes from; no rows if none has any."""
    about = {o.label: {"cell": o.label} | tables.config_columns(o.config) for o in outcomes}
    found = [
        pd.DataFrame([about[label]] * len(t)).join(t.reset_index(drop=True)) for label, t in rows.items() if len(t)
    ]
    if not found:
        return pd.DataFrame(columns=["cell", *tables.config_columns(outcomes[0].config)])
    return tables.with_numbers(pd.concat(found, ignore_index=True))
