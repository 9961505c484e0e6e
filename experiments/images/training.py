"""Chooses the rates and trains, part after part."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import pandas as pd

from experiments.images.archive import Archive
from experiments.images.plan import Cell, Key, Part, Plan
from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.fair.tuning import Trial, Tuned, tune
from resjax.sweep import runs, study
from resjax.sweep.board import duration

SPEED = 1_000.0  # images per second, before a run has told its own


class _NotTried(Exception):
    """A rate that the choice asks for has no finished run, and --finished forbids one."""


class Work:
    """What is known while the parts go by.

    Attributes:
      rates: what was chosen.
      tried: the cells that tried a rate, and their outcomes.
      reported: the cells of the parts, and their outcomes.
    """

    def __init__(self, running: study.Study, plan: Plan, archive: Archive):
        self.running, self.plan, self.archive = running, plan, archive
        self.rates: dict[Key, Tuned] = {}
        self.tried: dict[tuple[Key, float], tuple[Cell, runs.Outcome]] = {}
        self.reported: list[tuple[Cell, runs.Outcome]] = []
        self._keeps = False

    def part(self, name: str) -> None:
        """Chooses the rates of a part, and trains it. Raises ConfigError: a rate is at the edge of its grid."""
        part, args = self.plan.design.parts[name], self.running.args
        self._say(f"part {name}: {part.words}")
        keys = [key for key in self.plan.keys(part) if key not in self.rates]
        self._try([(key, rate) for key in keys for rate in part.rates], part)
        for key in keys:
            with suppress(_NotTried):
                self.rates[key] = tune(partial(self._trials, part, key), part.rates, allow_edge=args.allow_edge)
        chosen = [key for key in self.plan.keys(part) if key in self.rates]
        self.reported += self._train([cell for key in chosen for cell in self._cells(name, part, key)])

    def _cells(self, name: str, part: Part, key: Key) -> list[Cell]:
        tuned = self.rates[key]
        if not part.around:
            return self.plan.reported(name, key, tuned.rate)
        rates = sorted(tuned.trials)
        at = rates.index(tuned.rate)
        return [cell for rate in rates[max(0, at - 1) : at + 2] for cell in self.plan.reported(name, key, rate)]

    def _try(self, wanted: Sequence[tuple[Key, float]], part: Part) -> None:
        cells = {self.plan.tuning(part, *pair).label: pair for pair in wanted if pair not in self.tried}
        for cell, outcome in self._train([self.plan.tuning(part, *pair) for pair in cells.values()]):
            self.tried[cells[cell.label]] = cell, outcome

    def _trials(self, part: Part, key: Key, rate: float) -> list[Trial]:
        """What became of the replicas at a rate: the errors on the validation split."""
        self._try([(key, rate)], part)
        if (key, rate) not in self.tried:
            raise _NotTried
        _, outcome = self.tried[key, rate]
        if outcome.run_dir is None:
            raise ConfigError(f"{outcome.label}: {outcome.reason}; its rate can't be chosen")
        lost, infinity = outcome.table["status"] == "diverged", float("inf")
        errors = (1 - outcome.table["validation_accuracy"]).mask(lost, infinity)
        return [Trial(error, infinity if gone else 0.0) for error, gone in zip(errors, lost, strict=True)]

    def _train(self, cells: Sequence[Cell]) -> list[tuple[Cell, runs.Outcome]]:
        """Trains what is not finished; with --finished, that is left out."""
        for cell in cells:
            self.archive.restore(cell.config)
        left = [cell for cell in cells if not self.archive.has(cell.config)]
        if self.running.args.finished:
            cells = [cell for cell in cells if self.archive.has(cell.config)]
        elif left:
            self._say(f"{len(left)} of {len(cells)} runs are left, {self._time(left)}")
        if not cells:
            return []
        self._start(cells[0])
        outcomes = self.running.train({cell.label: cell.config for cell in cells})
        return list(zip(cells, outcomes, strict=True))

    def _start(self, cell: Cell) -> None:
        if not self._keeps:
            self.running.start(cell.config)
            self.running.trainer = self.archive.keeping(self.running.trainer)
            self._keeps = True

    def _time(self, left: Sequence[Cell]) -> str:
        dirs = [outcome.run_dir for _, outcome in [*self.tried.values(), *self.reported] if outcome.run_dir]
        speeds = pd.concat([tables.load(path)["images_per_s"] for path in dirs[-5:]]) if dirs else pd.Series(SPEED)
        speed = float(speeds.median())
        return f"about {duration(sum(cell.cost for cell in left) / speed)} at {speed:,.0f} images/s"

    def _say(self, text: str) -> None:
        self.running.console.print(text, markup=False, highlight=False)
