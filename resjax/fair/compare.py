"""Two or more architectures at matched stability: every one at a rate inside its grid, losses counted, pairs by seed.

Nothing here knows what is trained: `train` may run any framework, or a cluster.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from resjax import stats
from resjax.config import ConfigError
from resjax.fair.tuning import NoStableRate, Trial, Tuned, tune

RATES = (0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
RETREATS = 4  # lower rates that are taken in turn where a reported replica is lost


def compare(
    train: Callable[[str, float, int], Trial],
    names: Sequence[str],
    *,
    seeds: Sequence[int],
    tuning_seeds: Sequence[int],
    rates: Sequence[float] = RATES,
    allow_edge: bool = False,
) -> pd.DataFrame:
    """Trains every architecture at its own best stable rate and compares it with the first, paired by seed.

    Args:
      train: (name, rate, seed) -> what became of that replica. Equal seeds share data, batches and, where shapes agree,
        initial weights; budgets are equal. Clip the gradients of all, or the largest stable rate decides.
      names: the architectures; the first is what the others are compared with.
      seeds: of the replicas that are reported.
      tuning_seeds: others, on which rates are chosen; their test points must be no reported replica's.
      rates: the grid, ascending; it grows until the best rate is inside.
      allow_edge: whether a best rate at an edge is accepted.

    Returns:
      A row per name: rate, largest_stable, lost; mean, ci_low, ci_high of the error; difference, difference_low,
      difference_high to the first, p of the sign-flip test and p_holm. Where a replica is lost there is no number: the
      mean of those that survived is that of another experiment.

    Raises:
      ConfigError: a best rate at the edge of what was tried; a seed that is in both lists.
    """
    if shared := set(seeds) & set(tuning_seeds):
        raise ConfigError(f"seeds {sorted(shared)} are in seeds and in tuning_seeds: rates are chosen on others")
    rows, errors = [], {}
    for name in names:

        def replicas(rate: float, seeds: Sequence[int], name: str = name) -> list[Trial]:
            return [train(name, rate, seed) for seed in seeds]

        try:
            tuned = tune(lambda rate, run=replicas: run(rate, tuning_seeds), rates, allow_edge=allow_edge)
        except NoStableRate:
            rate, stable, trials = np.nan, np.nan, [Trial(np.inf, np.inf)] * len(seeds)
        else:
            stable = tuned.largest_stable
            rate, trials = settle(tuned, lambda rate, run=replicas: run(rate, seeds), lambda trial: trial.lost)
        lost = sum(trial.lost for trial in trials)
        errors[name] = {} if lost else {seed: trial.error for seed, trial in zip(seeds, trials, strict=True)}
        level = stats.mean_ci(errors[name].values())
        row = {"name": name, "rate": rate, "largest_stable": stable, "lost": lost}
        rows.append(row | {key: level[key] for key in ("mean", "ci_low", "ci_high")})
    for row in rows:
        found = stats.paired_difference(errors[row["name"]] if row["name"] != names[0] else {}, errors[names[0]])
        row |= {"difference": found["mean"], "difference_low": found["ci_low"], "difference_high": found["ci_high"]}
        row["p"] = found["p"]
    for row, p in zip(rows, stats.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    table = pd.DataFrame(rows).set_index("name")
    return table.astype(float).astype({"lost": int})


def settle(
    tuned: Tuned, replicas: Callable[[float], Sequence[Any]], lost: Callable[[Any], bool]
) -> tuple[float, Sequence[Any]]:
    """The highest rate up to the chosen one at which no reported replica is lost, and its replicas.

    At most `RETREATS` lower rates of those tried are taken; the last one counts whatever it loses. Only losses decide,
    no test error does.

    Args:
      tuned: the choice on other replicas.
      replicas: rate -> the reported replicas.
      lost: of a replica.
    """
    lower = sorted((rate for rate in tuned.trials if rate <= tuned.rate), reverse=True)[: RETREATS + 1]
    for rate in lower:
        found = replicas(rate)
        if not any(lost(replica) for replica in found):
            break
    return rate, found
