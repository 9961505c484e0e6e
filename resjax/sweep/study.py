"""What a study does that looks into nets: train the cells, look at every finished run, write tables and figures."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict
from rich.console import Console

from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.sweep import cells, launchers, measuring


@dataclass(frozen=True)
class Found:
    """What a study has found.

    Attributes:
      args: the command line.
      outcomes: of the cells.
      looks: name of a look, or of a probe where one look asks several -> its rows, with the columns `cell` (the label)
        and those of `tables.config_columns`.
      header: of the tables.
      console: to say the verdict on.
    """

    args: argparse.Namespace
    outcomes: list[cells.Outcome]
    looks: dict[str, pd.DataFrame]
    header: dict[str, str]
    console: Console

    @property
    def nets(self) -> pd.DataFrame:
        """A row per cell and seed: `cells.table` with the column `cell`."""
        return pd.concat([cells.table([o]).assign(cell=o.label) for o in self.outcomes], ignore_index=True)

    def probed(self, name: str) -> pd.DataFrame:
        """The rows that a probe left during training (config.probes), with the columns that `looks` have."""
        rows = {o.label: tables.probed(o.run_dir, name) for o in self.outcomes if o.run_dir}
        return _together(rows, self.outcomes)


def main(
    module: str,
    argv: Sequence[str] | None,
    parser: argparse.ArgumentParser,
    configurations: Callable[[argparse.Namespace], Mapping[str, ConfigDict]],
    looks: Callable[[argparse.Namespace], Mapping[str, Mapping[str, Any]]],
    report: Callable[[Found], list[Path]],
    train: cells.Train | None = None,
    measure: measuring.Measure | None = None,
    register: Callable[[], None] | None = None,
) -> int:
    """Runs a study; returns the exit code (1: a cell failed, 2: bad input, 128 + n: stopped by signal n).

    Args:
      module: for `python -m`.
      argv: the command line; None takes the process's.
      parser: of `cells.parser`.
      configurations: args -> the config of each cell, by its label; may raise ConfigError.
      looks: args -> name -> options of `resjax.sweep.probed.measure`: what is asked of every finished run, or, with
        `cells` among the options, of those with these labels.
      report: prints the verdicts, writes tables and figures, and returns their paths.
      train: replaces the trainer.
      measure: replaces `resjax.sweep.probed.measure`.
      register: of `cells.trainer`.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = cells.parse(parser, argv)
    console, began = Console(), time.monotonic()
    try:
        launcher = launchers.chosen(args)
        configs = configurations(args)
        train = train or cells.trainer(launcher, next(iter(configs.values())), register)
        if measure is None:
            from resjax.sweep.probed import measure
        outcomes = cells.run(configs, train, args.workdir, console, launcher)
        launcher = measuring.over_cores(launcher, small=args.smoke)
        rows, missing = {}, 0
        for name, options in looks(args).items():
            options = dict(options)
            chosen = options.pop("cells", configs)
            todo = {o.label: (o.config, options) for o in outcomes if o.run_dir and o.label in chosen}
            measured = measuring.measure_all(todo, measure, name, args.workdir, console, launcher)
            for table in next(iter(measured.values()), {"rows": []}):
                own = {label: pd.DataFrame(found[table]) for label, found in measured.items()}
                rows[name if table == "rows" else table] = _together(own, outcomes)
            missing += len(chosen) - len(measured)
        if rows and all(table.empty for table in rows.values()):
            raise ConfigError("no run could be looked into; the reasons stand above")
        header = cells.header(module, argv, outcomes, time.monotonic() - began)
        for path in report(Found(args, outcomes, rows, header, console)):
            print(path)
    except (ConfigError, KeyboardInterrupt) as error:
        return cells.exit_code(error)
    return int(missing > 0 or not all(o.run_dir for o in outcomes))


def _together(rows: Mapping[str, pd.DataFrame], outcomes: Sequence[cells.Outcome]) -> pd.DataFrame:
    """The tables of several cells as one, that says of each row where it comes from; no rows if none has any."""
    about = {o.label: {"cell": o.label} | tables.config_columns(o.config) for o in outcomes}
    found = [
        pd.DataFrame([about[label]] * len(t)).join(t.reset_index(drop=True)) for label, t in rows.items() if len(t)
    ]
    if not found:
        return pd.DataFrame(columns=["cell", *tables.config_columns(outcomes[0].config)])
    return tables.with_numbers(pd.concat(found, ignore_index=True))
