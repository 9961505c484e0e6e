"""A learning rate inside its grid, and the largest that is stable: two results, not one.

A rate at the edge of its grid measures the grid: the best may lie beyond, and farther beyond for one architecture than
for another. So the grid grows by its own factor until the best rate has a worse one on either side.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from resjax.config import ConfigError

EXTENSIONS = 6  # rates by which a grid may grow
UNFITTED = 0.5  # training error, over the targets' mean square, of a net that has died or not got far


class Trial(NamedTuple):
    """What became of one replica at one rate; both errors are inf if it diverged.

    Attributes:
      error: by which rates are chosen, smaller is better.
      train_error: over the targets' mean square: 1 is that of the answer 0.
    """

    error: float
    train_error: float

    @property
    def lost(self) -> bool:
        """Whether it diverged or ended without half of its training targets, which is one outcome."""
        return not (math.isfinite(self.error) and self.train_error < UNFITTED)


class NoStableRate(ConfigError):
    """At every rate a replica is lost: a result for who counts losses."""


class Tuned(NamedTuple):
    """A choice of the rate.

    Attributes:
      rate: with the lowest mean error among those at which no replica was lost.
      largest_stable: the largest at which no replica was lost.
      at_edge: whether on one side of `rate` no rate was tried and found worse.
      trials: rate -> what became of its replicas, rates ascending.
    """

    rate: float
    largest_stable: float
    at_edge: bool
    trials: Mapping[float, Sequence[Trial]]


def tune(try_rate: Callable[[float], Sequence[Trial]], rates: Sequence[float], *, allow_edge: bool = False) -> Tuned:
    """Tries rates upwards, and beyond the grid until the best is inside it.

    Once a rate has trained, none is tried above one that loses all replicas; at low rates they are lost because they
    don't get far. Choose on replicas that are not reported: other seeds, and points that no reported replica is tested
    on.

    Args:
      try_rate: rate -> its replicas, the same for all rates and architectures.
      rates: the grid, at least two, ascending.
      allow_edge: whether the result may be at the edge of what was tried.

    Raises:
      NoStableRate: at every rate a replica is lost.
      ConfigError: the best rate is at the edge after `EXTENSIONS` more; a grid that is none.
    """
    if len(rates) < 2 or any(low >= high for low, high in zip((0, *rates), rates, strict=False)):
        raise ConfigError(f"rates {', '.join(f'{rate:g}' for rate in rates)}: give two or more, positive and ascending")
    factor, trials = rates[1] / rates[0], {}
    for rate in rates:
        trials[rate] = try_rate(rate)
        if _best(trials) is not None and all(trial.lost for trial in trials[rate]):
            break
    for _ in range(EXTENSIONS):
        if not _at_edge(trials):
            break
        rate = max(trials) * factor if _best(trials) == max(trials) else min(trials) / factor
        rate = float(f"{rate:.3g}")
        trials[rate] = try_rate(rate)
    trials = dict(sorted(trials.items()))
    best, tried = _best(trials), f"{min(trials):g} to {max(trials):g}"
    if best is None:
        raise NoStableRate(f"at every rate tried, {tried}, a replica diverged or did not fit its training set")
    if _at_edge(trials) and not allow_edge:
        raise ConfigError(f"the best rate, {best:g}, is at the edge of those tried, {tried}")
    stable = max(rate for rate, own in trials.items() if not any(trial.lost for trial in own))
    return Tuned(best, stable, _at_edge(trials), trials)


def _best(trials: Mapping[float, Sequence[Trial]]) -> float | None:
    means = {rate: np.mean([t.error for t in own]) for rate, own in trials.items() if not any(t.lost for t in own)}
    return min(sorted(means), key=means.get, default=None)


def _at_edge(trials: Mapping[float, Sequence[Trial]]) -> bool:
    return _best(trials) in (None, min(trials), max(trials))
