"""Chooses the rates and trains, part after part."""

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from statistics import median

from experiments.images.archive import Archive
from experiments.images.plan import BLOCKS, Cell, Key, Part, Plan
from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.fair.tuning import Trial, Tuned, tune
from resjax.sweep import runs, study
from resjax.sweep.board import duration

STARTING = 60.0  # seconds that a run takes beside its training, while --minutes counts


class _NotTried(Exception):
    """A rate that the choice asks for has no finished run, and --finished forbids one."""


class Work:
    """What is known while the parts go by.

    Attributes:
      rates: what was chosen.
      tried: the cells that tried a rate, and their outcomes.
      reported: the cells of the parts, and their outcomes.
      deadline: until when runs may train, by the monotonic clock; None: for ever.
    """

    def __init__(self, running: study.Study, plan: Plan, archive: Archive):
        self.running, self.plan, self.archive = running, plan, archive
        self.rates: dict[Key, Tuned] = {}
        self.tried: dict[tuple[Key, float], tuple[Cell, runs.Outcome]] = {}
        self.reported: list[tuple[Cell, runs.Outcome]] = []
        minutes = running.args.minutes
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._latest: list[tuple[Cell, runs.Outcome]] = []
        self._keeps = False

    def estimate(self, parts: Sequence[str]) -> None:
        """Says how long all parts would take if nothing were finished."""
        costs = {name: sum(cell.cost for cell in self.plan.all_of(name)) for name in parts}
        speed = self._speed()
        each = ", ".join(f"{name} {duration(cost / speed)}" for name, cost in costs.items())
        self._say(f"at {speed:,.0f} images/s, if nothing were finished: {each}")

    def part(self, name: str) -> None:
        """Chooses the rates of a part, and trains it. Raises ConfigError: a rate is at the edge of its grid."""
        part = self.plan.design.parts[name]
        self._say(f"part {name}: {part.words}")
        keys = self.plan.keys(part)
        if part.chosen_by:
            rates = self._chosen_anew(part.chosen_by)
        else:
            rates = dict.fromkeys(keys, part.rate) if part.rate else self._chosen(part, keys)
        cells = [cell for key, rate in rates.items() for cell in self._cells(name, part, key, rate)]
        # All arms of the first seeds come first: what is finished early can be compared.
        self.reported += self._train(sorted(cells, key=lambda cell: cell.config.seed))

    def _chosen(self, part: Part, keys: Sequence[Key]) -> dict[Key, float]:
        new = [key for key in keys if key not in self.rates]
        self._try([(key, rate) for key in new for rate in part.rates], part)
        for key in new:
            with suppress(_NotTried):
                edge = self.running.args.allow_edge
                self.rates[key] = tune(partial(self._trials, part, key), part.rates, allow_edge=edge)
        return {key: self.rates[key].rate for key in keys if key in self.rates}

    def _chosen_anew(self, name: str) -> dict[Key, float]:
        """The rates with the best validation accuracies in this part, where all that were asked for are finished."""
        found: dict[Key, dict[float, float]] = {}
        for cell, outcome in self.reported:
            about = cell.about
            if about["part"] == name and outcome.run_dir and (outcome.table["status"] == "done").all():
                key = Key(about["dataset"], about["arm"], about["depth"])
                found.setdefault(key, {})[about["rate"]] = outcome.table["validation_accuracy"].mean()
        finished = {cell.label for cell, outcome in self.reported if outcome.run_dir}
        asked = {key: self._cells(name, self.plan.design.parts[name], key, self.rates[key].rate) for key in found}
        complete = [key for key, cells in asked.items() if {cell.label for cell in cells} <= finished]
        return {key: max(found[key], key=found[key].get) for key in complete}

    def _cells(self, name: str, part: Part, key: Key, rate: float) -> list[Cell]:
        if not part.around:
            return self.plan.reported(name, key, rate)
        rates = sorted(self.rates[key].trials)
        at = rates.index(rate)
        return [cell for near in rates[max(0, at - 1) : at + 2] for cell in self.plan.reported(name, key, near)]

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
        """Trains what is not finished; with --finished, that is left out, and with --minutes, what does not fit."""
        for cell in cells:
            self.archive.restore(cell.config)
        left = [cell for cell in cells if not self.archive.has(cell.config)]
        if self.running.args.finished:
            return self._trained([cell for cell in cells if self.archive.has(cell.config)])
        if left:
            self._say(f"{len(left)} of {len(cells)} runs are left, {self._time(left)}")
        if self.deadline is None:
            return self._trained(cells)
        return [pair for cell in cells if self._fits(cell) for pair in self._trained([cell])]

    def _fits(self, cell: Cell) -> bool:
        """Whether the time allows it, or it takes none."""
        end = time.monotonic() + STARTING + cell.cost / self._speed()
        fits = self.archive.has(cell.config) or end < self.deadline
        if not fits:
            self._say(f"{cell.label}: does not fit --minutes")
        return fits

    def _trained(self, cells: Sequence[Cell]) -> list[tuple[Cell, runs.Outcome]]:
        if not cells:
            return []
        self._start(cells[0])
        outcomes = self.running.train({cell.label: cell.config for cell in cells})
        pairs = list(zip(cells, outcomes, strict=True))
        self._latest = [pair for pair in [*self._latest, *pairs] if pair[1].run_dir][-5:]
        return pairs

    def _start(self, cell: Cell) -> None:
        if not self._keeps:
            self.running.start(cell.config)
            self.running.trainer = self.archive.keeping(self.running.trainer)
            self._keeps = True

    def _time(self, left: Sequence[Cell]) -> str:
        speed = self._speed()
        return f"about {duration(sum(cell.cost for cell in left) / speed)} at {speed:,.0f} images/s"

    def _speed(self) -> float:
        """Images of a ResNet-8 per second, by the latest runs."""
        speeds = [
            tables.load(outcome.run_dir)["images_per_s"].median() * (cell.about["depth"] - 2) / (2 * BLOCKS)
            for cell, outcome in self._latest
        ]
        return float(median(speeds)) if speeds else self.plan.design.speed

    def _say(self, text: str) -> None:
        self.running.console.print(text, markup=False, highlight=False, soft_wrap=True)
