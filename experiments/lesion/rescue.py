"""Which nets train under which optimiser: one outcome per net, and counts in words."""

from collections.abc import Iterator

import pandas as pd

from resjax import stats
from resjax.stats import Estimate

TIMES_CHANCE = 2  # a net whose test accuracy is below this many times 1 / classes has failed, as has one that diverged
GROUP = ["optimiser", "norm", "depth"]


def outcomes(nets: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and seed, with its outcome: "trained" or "failed".

    Columns: cell, optimiser, norm, depth, merge, width, learning_rate, seed, status, epoch, OA, train_accuracy,
    train_loss, chance (1 / classes), outcome. Of a diverged net all metrics are nan.

    Args:
      nets: `tables.summary` with the column cell, whose last part after a comma names the optimiser.
    """
    table = nets.assign(optimiser=nets["cell"].str.rpartition(", ")[2], chance=1 / nets["num_classes"])
    failed = ~(table["OA"] >= TIMES_CHANCE * table["chance"])  # of a diverged net it is nan
    about = ["cell", *GROUP, "merge", "width", "learning_rate", "seed", "status", "epoch", "OA", "train_accuracy"]
    table = table[[*about, "train_loss", "chance"]]
    return table.assign(outcome=failed.map({True: "failed", False: "trained"}))


def verdicts(nets: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(where, sentence) for each optimiser, norm and depth: how many nets of each merge trained, and what they reached.

    Args:
      nets: of `outcomes`.
    """
    for (optimiser, norm, depth), rows in nets.groupby(GROUP, sort=False):
        words = [f"{merge} {_words(of_merge)}" for merge, of_merge in rows.groupby("merge", sort=False)]
        rule = f"failed: diverged, or test accuracy below {TIMES_CHANCE} times chance"
        yield f"depth {depth}, {norm}, {optimiser}, trained", f"{'; '.join(words)} ({rule})"


def _words(rows: pd.DataFrame) -> str:
    trained = rows[rows["outcome"] == "trained"]
    text = f"{len(trained)} of {len(rows)}"
    if len(trained):
        text += f", OA {Estimate.of(stats.mean_ci(100 * trained['OA'])):.1f} %"
    failed = rows[rows["outcome"] == "failed"]
    diverged, reached = (failed["status"] == "diverged").sum(), 100 * failed["OA"].dropna()
    text += f", {diverged} diverged" if diverged else ""
    return text + (f", {len(reached)} at {reached.min():.1f} to {reached.max():.1f} %" if len(reached) else "")
