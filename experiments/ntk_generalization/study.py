"""Q7: do the eigenvalues of the tangent kernel predict which merge generalises?

  python -m experiments.ntk_generalization --smoke
  python -m experiments.ntk_generalization --datasets=digits,cube_degree2,cube_degree3 --merges=core

A configuration is a (data set, merge, depth, width); seeds are paired over configurations. For every trained net the
full empirical NTK of a pool of labelled images (its training set and a validation split) is computed at
initialisation and after training. From kernel, net and pool, never from the test set, every predictor of
resjax/predictors/evaluate.py gives a number. Then the predictors race: which one orders the configurations of a data
set by the test error of the trained nets (Kendall's tau-b within cells of equal data and size, granulated tau per
axis, conditional mutual information, gain over the plain baselines; see resjax/analysis/race.py)?

Writes OUT.csv (a row per net), OUT_race.csv and OUT_race_gap.csv (a row per predictor, against test error and
against generalization gap), OUT_regression.csv (predicted and measured errors of kernel regression), OUT_spectra.csv,
and figures of each. Exit code 1: a cell failed; 2: bad input, in one line; 128 + n: stopped by signal n.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from experiments.ntk_generalization import figures as ntk_figures
from resjax import config as config_lib
from resjax.analysis import plots, race, tables
from resjax.analysis.spectra import spectra as draw_spectra
from resjax.config import ConfigError
from resjax.sweep import flags, launchers, measuring, runs, study

MODULE = "experiments.ntk_generalization"
SMOKE = {
    "merges": "add,mul_bn1", "datasets": "digits,cube_degree2", "set": ["model.name=mlp"], "seeds": 2, "epochs": 20,
    "train_size": 32, "pool": 96, "depths": (4,), "widths": (8,), "out": "results/ntk_generalization_smoke",
}  # fmt: skip


@dataclass(frozen=True)
class Design:
    """What is varied on a data set, and how large it is.

    Attributes:
      pool: M labelled images, of which dataset.train_size train and the others validate.
      depths, widths: of the nets.
      entries: of the config.
    """

    pool: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    entries: Mapping


def _design(pool: int, depths: tuple, widths: tuple, train_size: int, validation: float, epochs: int) -> Design:
    entries = {"dataset.train_size": train_size, "dataset.validation": validation, "epochs": epochs, "batch_size": 32}
    entries["dataset.augment"] = "none"  # the kernel is of the images as they are
    return Design(pool, depths, widths, entries)


DESIGNS = {
    "digits": _design(192, (8, 14), (4, 8), 64, 0.2, 100),
    "cube_degree2": _design(384, (4, 6), (32, 64), 64, 0.6, 100),
    "cube_degree3": _design(384, (4, 6), (32, 64), 64, 0.6, 100),
    "cifar10": _design(1024, (8, 14), (8, 16), 256, 0.02, 100),  # this one and the next for a GPU
    "cifar100_10classes": _design(1024, (8, 14), (8, 16), 256, 0.2, 100),  # a full kernel of 100 classes takes 80 GB
}


def main(
    argv: Sequence[str] | None = None, train: runs.Train | None = None, measure: measuring.Measure | None = None
) -> int:
    """Runs the study; returns the exit code. `train` and `measure` replace the trainer and the measurement."""
    return study.run(MODULE, argv, _parser(), raced, train, measure)


def raced(running: study.Study) -> list[Path]:
    """Trains the nets, measures their kernels and predictors, and reports."""
    from experiments.ntk_generalization.measure import measure, pool_of
    from resjax.data.dataset import load

    args = running.args
    if args.workers and running.launcher is not launchers.in_this_process:
        raise ConfigError("--workers is for --launcher=local; else --jobs")
    pools = configurations(args)
    running.start(next(iter(pools.values()))[0])
    for config, pool in {config.dataset.name: (config, pool) for config, pool in pools.values()}.values():
        pool_of(load(config.dataset), pool)  # complains before anything is trained
    outcomes = running.train({label: config for label, (config, _) in pools.items()})
    todo = {o.label: (o.config, {"pool": pools[o.label][1]}) for o in outcomes if o.run_dir}
    measured = running.measure(todo, measure, "ntk", args.workers)
    if not measured:
        raise ConfigError("no run could be measured; the reasons stand above")
    nets, regression, spectra = collect(outcomes, measured)
    races, said = derived(nets)
    written = {"": nets, "_regression": regression, "_spectra": spectra} | races
    return running.publish(written, said) + draw(args.out)


def _parser() -> argparse.ArgumentParser:
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/ntk_generalization", datasets="digits,cube_degree2,cube_degree3", seeds=6)
    p.add_argument("--depths", type=flags.whole_numbers, metavar="N,N", help="of the nets; else each data set's own")
    p.add_argument("--widths", type=flags.whole_numbers, metavar="N,N", help="of the nets; else each data set's own")
    p.add_argument("--pool", type=int, metavar="M", help="labelled images of a kernel; else each data set's own")
    p.add_argument("--workers", type=int, metavar="N", help="processes that measure; else one per core, on a GPU one")
    return p


def configurations(args: argparse.Namespace) -> dict[str, tuple[ConfigDict, int]]:
    """Config and pool of every cell, by its label. Raises ConfigError."""
    from resjax.models.merges import MERGES

    chosen = {}
    given = {key for name, key in config_lib.ALIASES.items() if getattr(args, name, None) is not None}
    given |= {text.partition("=")[0] for text in args.set}
    if given & {"model.depth", "model.width"} and not (args.depth or args.width):
        raise ConfigError("--set: use --depths and --widths")
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers={args.workers}: at least one process must measure")
    for dataset in flags.datasets(args.datasets):
        if dataset not in DESIGNS:
            raise ConfigError(f"--datasets: no design for {dataset!r}; choose from {', '.join(DESIGNS)}")
        design = DESIGNS[dataset]
        depths = args.depths or ((args.depth,) if args.depth else design.depths)
        widths = args.widths or ((args.width,) if args.width else design.widths)
        entries = {key: value for key, value in design.entries.items() if key not in given}
        for merge, depth, width in itertools.product(flags.merges(args.merges, MERGES), depths, widths):
            size = {"model.depth": depth, "model.width": width}
            config = flags.config(args, dataset, merge, **entries, **size)
            with config.unlocked():
                config.eval_every = config.epochs  # the last epoch is all that counts here
            label = f"{dataset}, {merge}, depth {depth}, width {width}"
            chosen[label] = config, args.pool or design.pool
    return chosen


def collect(
    outcomes: Sequence[runs.Outcome], measured: Mapping[str, Mapping[str, list[dict]]]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """One row per net with what it reached and what was predicted; the rows of regression; those of spectra.

    Spectra are of the shallowest and narrowest nets of a data set.
    """
    nets = runs.table(outcomes)
    nets["error"], nets["validation_error"] = 1 - nets["OA"], 1 - nets["validation_accuracy"]
    about = {o.label: tables.config_columns(o.config) for o in outcomes}
    found = {name: [] for name in ("predictors", "regression", "spectra")}
    for label, rows in measured.items():
        for name in found:
            frame = pd.DataFrame(rows[name])
            for position, key in enumerate(IDENTITY):
                frame.insert(position, key, about[label][key])
            found[name].append(frame)
    predictors, regression, spectra = (pd.concat(frames, ignore_index=True) for frames in found.values())
    predictors = predictors.astype(dict.fromkeys(predictors.columns.difference([*IDENTITY, "seed"]), float))
    nets = nets[[*IDENTITY, "seed", "hash", "status", *RESULTS]].merge(predictors, how="left", on=[*IDENTITY, "seed"])
    smallest = spectra.groupby("dataset")[["depth", "width"]].transform("min")
    return nets, regression, spectra[(spectra[["depth", "width"]] == smallest).all(axis="columns")]


IDENTITY = ["dataset", "train_size", "merge", "depth", "width"]
RESULTS = ["error", "generalization_gap", "train_accuracy", "train_loss", "test_loss", "validation_error"]


def racers(nets: pd.DataFrame) -> dict[str, tuple[int, bool]]:
    """Column -> (sign, whether it is a plain baseline); beside the predictors, the trained net's validation error."""
    from experiments.ntk_generalization.measure import AFTER
    from resjax.predictors.evaluate import PREDICTORS

    known = {name: PREDICTORS.get(name.removeprefix(AFTER)) for name in nets.columns}
    return {"validation_error": (1, False)} | {name: (p.sign, p.baseline) for name, p in known.items() if p}


def is_of_kernel(name: str) -> bool:
    """Whether a racer is made of the kernel's eigenvalues or solves, at either moment."""
    from experiments.ntk_generalization.measure import AFTER
    from resjax.predictors import kernel as kernel_predictors
    from resjax.predictors.evaluate import PREDICTORS

    predictor = PREDICTORS.get(name.removeprefix(AFTER))
    return predictor is not None and predictor.function.__module__ == kernel_predictors.__name__


def derived(nets: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The races, by suffix, and their verdicts."""
    columns = racers(nets)
    races, said = {}, {}
    for target, suffix in (("error", "_race"), ("generalization_gap", "_race_gap")):
        result = race.race(nets, columns, target)
        races[suffix] = result.assign(of_kernel=result["predictor"].map(is_of_kernel))
        kernel_rows = list(filter(is_of_kernel, columns))
        said[f"verdict on the {target.replace('_', ' ')}"] = race.verdict(result, nets, kernel_rows, target)
    return races, said


def rederived(out: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """What is `derived` from the nets in OUT.csv."""
    return derived(tables.unrounded(tables.read_csv(f"{out}.csv")))


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv."""
    read = tables.written(out, "_spectra", "_regression", "_race")
    kernels = read["_race"][read["_race"]["of_kernel"]]
    best = kernels.loc[kernels["tau"].fillna(-2).idxmax()]
    of_best = partial(ntk_figures.trained_against_predicted, predictor=best["predictor"], sign=best["sign"])
    plan = {
        "_spectra": ("_spectra", draw_spectra),
        "_regression": ("_regression", lambda t, path: ntk_figures.predicted_against_measured(by_method(t), path)),
        "_race": ("_race", ntk_figures.race_forest),
        "_best": ("", of_best),
    }
    return plots.of_tables(read, out, plan)


def by_method(regression: pd.DataFrame) -> pd.DataFrame:
    """Medians over the nets at initialisation, a row per data set, merge, n and method; errors have heavy tails."""
    rows = regression[regression["moment"] == "init"]
    methods = {  # method -> measured, predicted
        "eigenlearning, pairs drawn": ("measured_pairs", "eigenlearning"),
        "eigenlearning, samples drawn": ("measured", "eigenlearning"),
        "leave one out, samples drawn": ("measured", "leave_one_out"),
    }
    found = [
        rows[["dataset", "merge", "n"]].assign(method=method, measured=rows[measured], predicted=rows[predicted])
        for method, (measured, predicted) in methods.items()
    ]
    return pd.concat(found).groupby(["dataset", "merge", "method", "n"], sort=False, as_index=False).median()
