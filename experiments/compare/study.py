"""Q1: do merges that multiply or gate beat the sum, and on which data? Merges x data sets x seeds.

  python -m experiments.compare --smoke
  python -m experiments.compare --datasets=cifar10,cifar100,cifar100_coarse --merges=core --seeds=10 --tune
  python -m experiments.compare --merges=add,mul,configs/mine.py    # a config file with a merge of one's own
  python -m experiments.compare --board=configs/mine.py             # through the protocol of docs/board.md

Every merge is compared with `add` on the same seeds: mean paired difference in overall accuracy (OA) on the
test set after the final epoch, its 95 % Student's t interval, and a sign-flip p-value with Holm's correction over
the merges of a data set. Diverged replicas are left out, and counted. With k merges and n seeds no corrected p
falls below k * 2 / 2^n: the seven merges of the core need nine seeds to get below .05.

--tune gives every merge the same budget of learning rates. Picked is the highest mean validation accuracy
(ties: the lowest validation loss) among the rates with the fewest diverged replicas. 10 % of the training set
validate, the replicas have other seeds than the final ones, and the test set has no say. The final runs use
the picked rate and the whole training set. A rate that ends its grid is no optimum: the grid goes on in its own
ratio until the best lies inside. If four more rates don't do it, the study fails, unless --allow_edge is given.

Writes OUT.csv (a row per cell and seed), OUT_differences.csv, OUT_tuning.csv, OUT.png and OUT.pdf; with
--board also OUT_costs.csv.
Exit code 1: a cell failed; 2: bad input, in one line; 128 + n: stopped by signal n.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.compare import board
from resjax import command_line
from resjax.analysis import plots, tables
from resjax.config import ConfigError
from resjax.stats import Estimate
from resjax.sweep import flags, launchers, runs, study
from resjax.sweep.jobs import Launcher

MODULE = "experiments.compare"
BASELINE = "add"
SMOKE = {  # an mlp compiles in a third of the time
    "merges": "add,mul_bn1,gate_sig", "set": ["model.name=mlp"], "seeds": 2, "epochs": 3, "depth": 4,
    "width": 8, "tune_epochs": 2, "out": "results/compare_smoke",
}  # fmt: skip
VALIDATION = 0.1  # share of the training set, while tuning
TUNING_SEED = 1000  # offset of the tuning replicas' seeds: who is picked for a lucky seed must not report it
EXTENSIONS = 4  # how often a grid goes on beyond its end, for each data set and merge
TUNING_COLUMNS = ("validation_accuracy", "validation_loss")  # all that a choice may look at

Configs = dict[tuple[str, str], ConfigDict]  # (data set, merge) -> config


def main(argv: Sequence[str] | None = None, train: runs.Train | None = None, registry: Mapping | None = None) -> int:
    """Runs the study; returns the exit code. `train` and `registry` replace the trainer and the merges."""
    if registry is None:
        from resjax.models.merges import MERGES as registry
    return study.run(MODULE, argv, _parser(), partial(compared, registry), train)


def compared(registry: Mapping, running: study.Study) -> list[Path]:
    """Tunes if that is asked for, trains, prints the comparison and writes tables and figure."""
    if running.args.board:
        running.args = board.apply(running.args, _parser())
    args, console, written = running.args, running.console, {}
    args.merges = with_own(args.merges, running.launcher)
    merges = dict.fromkeys([BASELINE, *flags.merges(args.merges, registry)])
    configs = {(d, m): flags.config(args, d, m) for d in flags.datasets(args.datasets) for m in merges}
    if args.tune:
        written["_tuning"] = tuning_table(tune(args, configs, running.train))
        refuse_edges(written["_tuning"], console, allowed=args.allow_edge)
        configs = {(d, m): picked(args, d, m, written["_tuning"], console) for d, m in configs}
    outcomes = running.train({f"{d}, {m}": c for (d, m), c in configs.items()})
    results = runs.table(outcomes)
    differences = tables.differences(results, baseline=BASELINE)
    if args.board:
        from experiments.compare.costs import table

        written["_costs"] = table(configs.values(), outcomes, registry)
    show(differences, outcomes, console)
    return running.publish({"": results, "_differences": differences} | written, {}) + draw(args.out)


def with_own(merges: str, launcher: Launcher) -> str:
    """The comma list with the merge that a config file registers in the place of the file, which is executed.

    Raises ConfigError if a file can't be used, or if other processes, which don't know its merge, would train it.
    """
    words = [word.strip() for word in merges.split(",")]
    files = [word for word in words if word.endswith(".py")]
    if files and launcher is not launchers.in_this_process:
        raise ConfigError(f"--merges={files[0]} is for --launcher=local; else register it in resjax/models/merges.py")
    own = {file: command_line.parse(["", f"--config={file}"])[0].model.merge for file in files}
    return ",".join(own.get(word, word) for word in words)


def rederived(out: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The tables that follow from the rows in OUT.csv, by suffix, and no verdicts."""
    return {"_differences": tables.differences(tables.unrounded(tables.read_csv(f"{out}.csv")), baseline=BASELINE)}, {}


def draw(out: str | Path) -> list[Path]:
    """Draws the figure of OUT_differences.csv."""
    return plots.forest(tables.read_csv(f"{out}_differences.csv"), out, BASELINE)


def _parser() -> argparse.ArgumentParser:
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/compare")
    p.add_argument("--board", metavar="A,B", help="as --merges, by the protocol of docs/board.md")
    group = p.add_argument_group("tuning of the learning rate")
    group.add_argument("--tune", action="store_true", help="else all merges have the config's")
    group.add_argument(
        "--tune_factors", type=flags.numbers, default=(0.1, 0.3, 1.0, 3.0, 10.0), metavar="F,F",
        help="of the config's rate; .1,.3,1,3,10",
    )  # fmt: skip
    group.add_argument("--tune_seeds", type=int, default=2, metavar="N", help="per rate; %(default)s")
    group.add_argument("--tune_epochs", type=int, metavar="N", help="per rate; as the final runs")
    group.add_argument("--allow_edge", action="store_true", help="a picked rate may end its grid; else that fails")
    return p


def tune(
    args: argparse.Namespace, configs: Configs, run: Callable[[Mapping[str, ConfigDict]], list[runs.Outcome]]
) -> list[runs.Outcome]:
    """Runs every (data set, merge) at every rate, on what validation leaves of the training set; then, EXTENSIONS times
    at most, at the next rate those whose best ends the grid.
    """
    if len(set(args.tune_factors)) < 2:
        raise ConfigError("--tune_factors: one rate is no grid")
    found: dict[tuple[str, str], dict[float, runs.Outcome]] = {key: {} for key in configs}
    todo = {
        key: [float(f"{c.optimizer.learning_rate * factor:.6g}") for factor in args.tune_factors]  # .3, not .3000...04
        for key, c in configs.items()
    }
    for _ in range(1 + EXTENSIONS):
        tried = {(*key, rate): _tried(args, configs[key], *key, rate) for key, rates in todo.items() for rate in rates}
        outcomes = run({f"tuning {d}, {m}, rate {rate:g}": c for (d, m, rate), c in tried.items()})
        for (dataset, merge, rate), outcome in zip(tried, outcomes, strict=True):
            found[dataset, merge][rate] = outcome
        best = {key: pick(runs.table(list(own.values()))) for key, own in found.items()}
        more = {key: beyond(found[key], rate) for key, rate in best.items() if rate is not None}
        todo = {key: [rate] for key, rate in more.items() if rate is not None}
        if not todo:
            break
    return [own[rate] for own in found.values() for rate in sorted(own)]


def _tried(args: argparse.Namespace, c: ConfigDict, dataset: str, merge: str, rate: float) -> ConfigDict:
    entries = {
        "optimizer.learning_rate": rate,
        "dataset.validation": VALIDATION,
        "seed": c.seed + TUNING_SEED,
        "seeds": args.tune_seeds,
        "epochs": args.tune_epochs or c.epochs,
    }
    return flags.config(args, dataset, merge, **entries)


def beyond(grid: Iterable[float], rate: float) -> float | None:
    """The next rate of a grid beyond the end that `rate` is, in the ratio of the last two; None if it lies inside."""
    rates = sorted(grid)
    ends = {rates[0]: rates[1], rates[-1]: rates[-2]}  # end -> the one beside it
    return float(f"{rate * rate / ends[rate]:.3g}") if rate in ends else None


def tuning_table(tuned: Sequence[runs.Outcome]) -> pd.DataFrame:
    """All that was tried: a row per (data set, merge, rate, seed); `at_edge`: the pick ends all that was tried."""
    about = ["dataset", "merge", "learning_rate", "epochs", "hash", "seed", "status", "reason"]
    tried = runs.table(tuned)[[*about, *TUNING_COLUMNS]]
    tried["picked"] = tried["at_edge"] = False
    for _, rows in tried.groupby(["dataset", "merge"], sort=False):
        rate = pick(rows)
        tried.loc[rows.index, "picked"] = rows["learning_rate"] == rate
        tried.loc[rows.index, "at_edge"] = rate in (rows["learning_rate"].min(), rows["learning_rate"].max())
    return tried


def pick(rows: pd.DataFrame) -> float | None:
    """The rate for one merge on one data set, as the module's docstring says; None if none gave a result."""
    by_rate = rows.assign(lost=rows["status"] != "done").groupby("learning_rate")
    means = by_rate[["lost", *TUNING_COLUMNS]].mean().dropna(subset=["validation_accuracy"])
    best_first = means.sort_values(["lost", *TUNING_COLUMNS], ascending=[True, False, True])
    return None if best_first.empty else float(best_first.index[0])


def refuse_edges(tuning: pd.DataFrame, console: Console, *, allowed: bool) -> None:
    """Raises ConfigError if a pick ends its grid, however far that went; says so if it is `allowed`."""
    rows = tuning[tuning["picked"] & tuning["at_edge"]].drop_duplicates(["dataset", "merge"])
    if rows.empty:
        return
    where = "; ".join(f"{row.dataset}, {row.merge}: rate {row.learning_rate:g}" for row in rows.itertuples())
    text = f"at the edge of the grid, extended {EXTENSIONS} times: {where}"
    if not allowed:
        raise ConfigError(f"--tune: {text}; choose other --tune_factors, or --allow_edge")
    console.print(f"warning: {text}", style="yellow", highlight=False, markup=False)


def picked(args: argparse.Namespace, dataset: str, merge: str, tuning: pd.DataFrame, console: Console) -> ConfigDict:
    """The final config of a cell; says where no rate gave a result."""
    config = flags.config(args, dataset, merge)
    label = tables.config_columns(config)["dataset"]
    rows = tuning[(tuning["dataset"] == label) & (tuning["merge"] == merge) & tuning["picked"]]
    if rows.empty:
        console.print(f"warning: {dataset}, {merge}: no rate gave a result; the config's is used", style="yellow")
        return config
    rate = float(rows["learning_rate"].iloc[0])
    return flags.config(args, dataset, merge, **{"optimizer.learning_rate": rate})


def show(differences: pd.DataFrame, outcomes: Sequence[runs.Outcome], console: Console) -> None:
    """Prints a table per data set, then who is missing from it and why."""
    for dataset, rows in differences.groupby("dataset", sort=False):
        text = f"\n{dataset}: overall accuracy (%), difference to {BASELINE} (percentage points), [95 % CI]"
        console.print(text, markup=False, highlight=False)
        table = Table(box=box.SIMPLE)
        table.add_column("merge", no_wrap=True)
        for name in ("OA", "difference", "p (Holm)", "n"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows.to_dict("records"):
            mean, difference = (Estimate.of(row, name, 100) for name in ("mean", "difference"))
            table.add_row(
                row["merge"],
                "" if pd.isna(mean.value) else f"{mean.value:.2f}",
                "" if pd.isna(difference.value) else escape(f"{difference:+.2f}"),
                "" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.3f}",
                f"{row['n']}" + (f"/{row['n'] + row['diverged']}" if row["diverged"] else ""),  # 9/12: 3 diverged
            )
        console.print(table)
        comparisons, pairs = int(rows["p"].notna().sum()), int(rows["pairs"].max())
        if (least := comparisons * 2 / 2**pairs) > 0.05:
            text = f"{pairs} seeds, {comparisons} comparisons: no corrected p falls below {min(1, least):.3f}"
            console.print(text, highlight=False)
    for outcome in outcomes:
        if outcome.reason:
            console.print(f"{outcome.label}: {outcome.reason}", markup=False, highlight=False)
