"""Critical points, saddles and flat minima: what the loss looks like around nets with each merge (Q13, Q14, Q15).

  python -m experiments.landscape --smoke
  python -m experiments.landscape

Q13: is the gradient near 0 where training stalls? The norm of a batch's gradient beside the loss, over training, and,
at every look, that of the gradient over all images, which alone vanishes at a critical point. Q14: does negative
curvature follow the height of the loss, and does a step along it lower the loss? Its measure is the negative mass, the
share of the negative eigenvalues in the sum of all moduli; the share in their number depends on where the many
eigenvalues around 0 are cut, which Lanczos of so few steps can't tell (resjax/probes/loss/curvature.py).
The Hessian of the mean loss over --images training images, every --every epochs: extremes, trace and density by
Lanczos, and a line search along the eigenvector of the smallest eigenvalue against gradient steps of the same
lengths, and against the same search along random directions: away from a critical point any direction lowers the
loss, to first order, so that only what the eigenvector takes away beyond those, and its even part, speak of curvature.
Q15: do small batches find flatter minima, and do these generalise better? Batch sizes are swept at the same number of
epochs and the same learning rate, and, with --rates=fixed,linear, also at a rate proportional to the batch; sharpness
of the trained nets against their test error. Besides: the loss on a random plane around one net (the lowest seed) of
each of --planes, and on the line between neighbouring seeds, with statistics of BatchNorm interpolated and recomputed.
Replicas that diverge are left out, and counted; what is said of the Hessian of a net without one (swap_*) is nan.

Plain sharpness (box, SAM, eigenvalues) depends on the scale of weights that a norm removes, and merges differ in it:
the adaptive one (ASAM) is the fair comparison between them. Points along a path of training are no critical points, of
which Q14's claim speaks; at equal epochs the correlation is over merges and seeds, and time plays no part.

Writes OUT.csv (a row per net), OUT_curvature.csv (a row per net and epoch), OUT_stalls.csv, OUT_density.csv,
OUT_sharpness.csv, OUT_correlations.csv, OUT_planes.csv, OUT_lines.csv, OUT_barriers.csv, and figures.
Exit code 1: a cell failed; 2: bad input, in one line; 128 + n: stopped by signal n.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from experiments.landscape import figures as landscape_figures
from experiments.landscape.tables import (
    MASS_ERROR,
    barriers,
    by_seed,
    correlations,
    drops,
    in_words,
    mean_in_words,
    not_diverged,
    rank_correlation,
    smoothed,
    stalls,
)
from resjax.analysis import plots, tables
from resjax.config import ConfigError
from resjax.sweep import flags, measuring, runs, study

MODULE = "experiments.landscape"
COURSE = ["dataset", "cell", "merge", "seed", "epoch", "loss", "grad_norm"]
UNRESOLVED = ["negative", "negative_se", "eps"]  # columns of the probe that so few steps of Lanczos don't resolve
READINGS = ["asam", "sam", "box", "lambda_max", "trace"]
SMOKE = {
    "datasets": "cube_degree2", "merges": "mul_bn1", "swept": "mul_bn1", "planes": "mul_bn1", "batch_sizes": (32, 64),
    "seeds": 2, "epochs": 8, "depth": 4, "width": 16, "images": 128, "every": 4, "points": 5,
    "out": "results/landscape_smoke",
}  # fmt: skip


def main(
    argv: Sequence[str] | None = None, train: runs.Train | None = None, measure: measuring.Measure | None = None
) -> int:
    """Runs the study; returns the exit code. `train` and `measure` replace the trainer and the measurement."""
    return study.run(MODULE, argv, _parser(), study.of_probes(configurations, measurements, report), train, measure)


def _parser() -> argparse.ArgumentParser:
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/landscape", seeds=5, width=8)
    p.add_argument("--every", type=int, default=10, metavar="N", help="epochs between two measurements; %(default)s")
    p.add_argument("--images", type=int, default=4096, metavar="N", help="of the Hessian, at most; %(default)s")
    p.add_argument("--points", type=int, default=15, metavar="N", help="of an axis of a plane; %(default)s")
    p.add_argument("--planes", default="add,mul,mul_bn1,gate_sig", metavar="A,B", help="merges; %(default)s")
    p.add_argument("--swept", default="add,mul,mul_bn1,gate_sig", metavar="A,B", help="merges; %(default)s")
    p.add_argument("--batch_sizes", type=flags.whole_numbers, default=(16, 32, 64, 128, 512), metavar="N,N")
    p.add_argument("--rates", default="fixed", metavar="A,B", help="fixed, linear (in the batch); %(default)s")
    return p


def configurations(args: argparse.Namespace) -> dict[str, ConfigDict]:
    """The config of every cell: each merge with the curvature probe, and the sweep. Raises ConfigError."""
    return {label: config for label, (config, _) in _cells(args).items()}


def _cells(args: argparse.Namespace) -> dict[str, tuple[ConfigDict, str]]:
    """Label -> config, and how the rate follows the batch size; "" for the sweep's middle, which every rule has."""
    from resjax.models.merges import MERGES

    (dataset, *others) = flags.datasets(args.datasets)
    if others:
        raise ConfigError("--datasets: one at a time")
    if args.every < 1:
        raise ConfigError(f"--every={args.every}: at least 1")
    chosen = {}
    for merge in flags.merges(args.merges, MERGES):
        probes = {"probes.curvature": args.every, "probes.images": args.images}
        chosen[f"{dataset}, {merge}"] = flags.config(args, dataset, merge, **probes), ""
    for merge in _among(args.swept, args, "--swept"):
        base, _ = chosen[f"{dataset}, {merge}"]
        for rule in args.rates.split(","):
            if rule not in ("fixed", "linear"):
                raise ConfigError(f"--rates: unknown {rule!r}; choose from fixed, linear")
            for size in args.batch_sizes:
                if size == base.batch_size:
                    continue
                rate = base.optimizer.learning_rate * (size / base.batch_size if rule == "linear" else 1)
                entries = {"batch_size": size, "optimizer.learning_rate": rate, "eval_every": base.epochs}
                label = f"{dataset}, {merge}, batch {size}, {rule} rate"
                chosen[label] = flags.config(args, dataset, merge, **entries), rule
    _among(args.planes, args, "--planes")
    return chosen


def _among(text: str, args: argparse.Namespace, flag: str) -> list[str]:
    """The merges of `text`, all of which must be studied."""
    from resjax.models.merges import MERGES

    names = flags.merges(text, MERGES)
    if lacking := [name for name in names if name not in flags.merges(args.merges, MERGES)]:
        raise ConfigError(f"{flag}: {lacking[0]!r} is not among --merges")
    return names


def measurements(args: argparse.Namespace) -> dict[str, dict]:
    """What is asked of the trained nets."""
    configs = configurations(args)
    core = [label for label, config in configs.items() if config.probes.curvature]
    planes, swept = _among(args.planes, args, "--planes"), _among(args.swept, args, "--swept")
    planes = [label for label in core if configs[label].model.merge in planes]
    swept = [label for label in configs if configs[label].model.merge in swept]
    shared = {"images": args.images, "moments": ("trained",)}
    return {
        "density": {"probes": ("density",), "cells": core} | shared,
        "sharpness": {"probes": ("sharpness",), "cells": swept} | shared,
        "surface": {"probes": ("loss_surface",), "cells": planes, "points": args.points} | shared,
        "interpolation": {"probes": ("interpolation",), "cells": core} | shared,
    }


def report(found: study.Study) -> list[Path]:
    """Prints the verdicts, and writes the tables and figures; of what no net has said anything there is none."""
    core = replace(found, outcomes=[o for o in found.outcomes if o.run_dir and o.config.probes.curvature])
    nets = found.nets.assign(error=lambda t: 1 - t["OA"])
    courses = [tables.load(o.run_dir).assign(cell=o.label) for o in core.outcomes]
    course = not_diverged(pd.concat(courses, ignore_index=True), nets) if courses else pd.DataFrame()
    curvature = not_diverged(core.probed("curvature"), nets) if courses else pd.DataFrame()
    lines = found.measurements["interpolation"]
    measured = {
        "": nets,
        "_curvature": drops(curvature).drop(columns=UNRESOLVED, errors="ignore") if len(curvature) else curvature,
        "_course": course.loc[course["split"] == "train", COURSE] if len(course) else course,
        "_density": found.measurements["density"],
        "_sharpness": _with_results(found, nets),
        "_planes": found.measurements["surface"],
        "_lines": lines,
        "_barriers": barriers(lines) if len(lines) else lines,
    }
    measured = {suffix: table for suffix, table in measured.items() if len(table)}
    derived, verdicts = _derived(measured)
    for text in verdicts.values():
        found.console.print(f"\n{text}", markup=False, highlight=False)
    return found.publish(measured | derived, verdicts) + draw(found.args.out)


def rederived(out: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The tables that follow from the rows of OUT*.csv, by suffix, and the verdicts."""
    read = tables.written(out, "_curvature", "_course", "_sharpness", "_barriers")
    derived, verdicts = _derived(read)
    if "_curvature" in read:
        derived["_curvature"] = read["_curvature"].drop(columns=UNRESOLVED, errors="ignore")
    return derived, verdicts


def _derived(measured: Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Tables by suffix, and verdicts, of what was measured."""
    verdicts, derived, correlated = {"left out": _left_out(measured[""])}, {}, []
    if "_curvature" in measured:
        curvature = measured["_curvature"]
        derived["_stalls"] = stalls(measured["_course"], curvature)
        correlated.append(_negative_correlations(curvature))
        verdicts["verdict on Q13"] = _q13(derived["_stalls"], curvature)
        verdicts["verdict on Q14"] = _q14(curvature, correlated[-1])
    if "_sharpness" in measured:
        correlated.append(_sharpness_correlations(measured["_sharpness"]))
        verdicts["verdict on Q15"] = _q15(correlated[-1])
    if "_barriers" in measured:
        verdicts["barriers"] = _on_barriers(measured["_barriers"])
    if correlated:
        derived["_correlations"] = pd.concat(correlated, ignore_index=True)
    return derived, verdicts


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv; of what no net has said anything there is none."""
    read = tables.written(out, "_curvature", "_course", "_density", "_sharpness", "_planes", "_lines", "_barriers")
    plan = {
        "_curvature": ("_curvature", landscape_figures.training),
        "_negative": ("_curvature", landscape_figures.negative_against_loss),
        "_escape": ("_curvature", lambda table, path: _escapes(table.dropna(subset=["escape_drop"]), path)),
        "_gradients": ("_course", lambda table, path: landscape_figures.gradients(table, read["_curvature"], path)),
        "_density": ("_density", lambda table, path: landscape_figures.densities(smoothed(table), path)),
        "_sharpness": ("_sharpness", landscape_figures.sweep),
        "_planes": ("_planes", landscape_figures.planes),
        "_lines": ("_lines", lambda table, path: landscape_figures.lines(table, read["_barriers"], path)),
    }
    return plots.of_tables(read, out, plan)


def _escapes(drops: pd.DataFrame, path: str) -> list[Path]:
    """None where no net has negative curvature."""
    return landscape_figures.escapes(drops, path) if len(drops) else []


def _left_out(nets: pd.DataFrame) -> str:
    """How many replicas diverged, of which merges."""
    lost = nets[nets["status"] == "diverged"]
    which = ", ".join(f"{merge} {count}" for merge, count in lost.groupby("merge", sort=False).size().items())
    return f"{len(lost)} of {len(nets)} nets diverged and are left out everywhere{': ' if which else ''}{which}."


def _with_results(found: study.Study, nets: pd.DataFrame) -> pd.DataFrame:
    """Sharpness of the trained nets beside what they reached, their batch size and how its rate was chosen."""
    if found.measurements["sharpness"].empty:
        return found.measurements["sharpness"]
    sizes = {o.label: o.config.batch_size for o in found.outcomes}
    reached = nets[["cell", "seed", "error", "test_loss", "generalization_gap", "train_accuracy"]]
    sharp = found.measurements["sharpness"].merge(reached, on=["cell", "seed"])
    sharp["batch_size"] = sharp["cell"].map(sizes)
    sharp["rate"] = sharp["cell"].map({label: rule for label, (_, rule) in _cells(found.args).items()})
    both = sharp["rate"] == ""
    rules = found.args.rates.split(",")
    return pd.concat([sharp[~both], *(sharp[both].assign(rate=rule) for rule in rules)], ignore_index=True)


def _negative_correlations(curvature: pd.DataFrame) -> pd.DataFrame:
    """Of the negative mass with the loss, after the net before training.

    Along training, per merge; and at equal epochs, over seeds within merges, and over merges and seeds.
    """
    later, xs, ys = curvature[curvature["epoch"] > 0], ["negative_mass"], ["loss"]
    over_seeds = (
        correlations(later, xs, ys, "seed", ["epoch"]).iloc[[-1]].assign(merge="at equal epochs, within merges")
    )
    about = {"merge": "at equal epochs", "x": xs[0], "y": ys[0]}
    over_merges = pd.DataFrame([about | rank_correlation(later, xs[0], ys[0], "merge", ["epoch"])])
    parts = [correlations(later, xs, ys, "seed"), over_seeds, over_merges]
    return pd.concat(parts, ignore_index=True).assign(question="Q14", rate="")


def _sharpness_correlations(sharp: pd.DataFrame) -> pd.DataFrame:
    """Of batch size, sharpness and generalisation, per merge and within merges, for each rule of the rate."""
    out = []
    for rule, rows in sharp.groupby("rate", sort=False):
        found = [
            correlations(rows, ["batch_size"], [*READINGS, "error"], "seed"),
            correlations(rows, [*READINGS, "loss"], ["error", "test_loss", "generalization_gap"], "seed"),
            correlations(rows, [*READINGS, "loss"], ["error"], "seed", ["batch_size"])
            .query("merge == 'all merges'")
            .assign(merge="at equal batch size"),
        ]
        out += [table.assign(question="Q15", rate=rule) for table in found]
    return pd.concat(out, ignore_index=True)


def _q13(stalled: pd.DataFrame, curvature: pd.DataFrame) -> str:
    """The gradient where the loss stalls, and at the end."""
    epochs = sorted(curvature["epoch"].unique())
    last = curvature[curvature["epoch"] == epochs[-1]]
    by = {name: mean_in_words(by_seed(stalled, name)) for name in ("full_ratio", "stall_ratio", "final_ratio")}
    first = mean_in_words(by_seed(stalled, "stall_epoch"), digits=1)
    full = stalled.groupby("merge")["full_ratio"].mean().sort_values()
    return (
        f"Q13: undecided. In {stalled['stalled'].gt(0).sum()} of {len(stalled)} nets the training loss stalls at some "
        f"time, first in epoch {first}, at a loss of {mean_in_words(by_seed(stalled, 'stall_loss'), digits=3)}; of "
        f"looks at epochs {', '.join(map(str, epochs))} the gradient over all images has at the last "
        f"{by['full_ratio']} of its largest norm ({full.iloc[0]:.3f} for {full.index[0]} to {full.iloc[-1]:.3f} for "
        f"{full.index[-1]}), which is {mean_in_words(by_seed(last, 'grad_norm'), digits=3)}, at a loss of "
        f"{mean_in_words(by_seed(last, 'loss'), digits=4)}; a batch's gradient, which has the noise of its images also "
        f"at a critical point, has {by['stall_ratio']} of its peak where the loss stalls and {by['final_ratio']} at "
        f"the end (95 % CI over {stalled['seed'].nunique()} seeds; means over merges). A gradient that is small and "
        "not 0 neither shows a critical point nor excludes one near by."
    )


def _q14(curvature: pd.DataFrame, table: pd.DataFrame) -> str:
    """Negative mass against loss, and the escape step."""
    tau = {key: in_words(row) for key, row in table.set_index("merge").iterrows()}
    masses, steps = [], []
    for epoch, at in curvature.groupby("epoch"):
        masses.append(f"{mean_in_words(by_seed(at, 'negative_mass'))} at epoch {epoch}")
        names = ("escape_drop", "even_drop", "random_drop", "over_random", "gradient_drop", "descent_drop")
        by = {name: mean_in_words(by_seed(at, name), 100, 1) for name in names}
        steps.append(
            f"epoch {epoch} ({at['escape_drop'].notna().sum()} of {len(at)} nets have a negative one): "
            f"{by['escape_drop']} %, its even part {by['even_drop']} %; random directions {by['random_drop']} %, the "
            f"eigenvector's less theirs {by['over_random']} %; the gradient at the same length {by['gradient_drop']} "
            f"%, at its own best {by['descent_drop']} %"
        )
    return (
        f"Q14: negative eigenvalues have of the sum of all moduli {', '.join(masses)}, each by up to {MASS_ERROR} too "
        "large for the few steps of Lanczos, which intervals don't show; with the loss this has, without "
        f"epoch 0, {tau['all merges']} along training, within merges, {tau['at equal epochs, within merges']} at equal "
        f"epochs, over seeds within merges, and {tau['at equal epochs']} at equal epochs, over merges (95 % CI over "
        "merges, of the others over seeds). "
        "The loss that a step along the eigenvector of the smallest eigenvalue takes away, by the same search as along "
        "random directions (means over merges, 95 % CI over seeds; the difference is paired; -100 % stands for any "
        f"larger rise): {'; '.join(steps)}. Only an even part and a difference above 0 speak of negative curvature."
    )


def _q15(table: pd.DataFrame) -> str:
    """Batch size, sharpness and error, within merges."""
    texts = []
    for rule, of_rule in table.groupby("rate", sort=False):
        said = {key: in_words(row) for key, row in of_rule.set_index(["merge", "x", "y"]).iterrows()}
        names = {"asam": "asam", "lambda_max": "lambda_max", "loss": "the training loss, for comparison"}

        def of_error(merge: str, said: Mapping = said, names: Mapping = names) -> str:
            return ", ".join(f"{said[merge, x, 'error']} ({words})" for x, words in names.items())

        by_batch = {y: said["all merges", "batch_size", y] for y in ("asam", "lambda_max", "error")}
        texts.append(
            f"Q15, {rule} rate: within merges, larger batches have more adaptive sharpness by {by_batch['asam']}, a "
            f"larger eigenvalue by {by_batch['lambda_max']} and a higher test error by {by_batch['error']}; sharper "
            f"nets err more by {of_error('all merges')}; at equal batch size by {of_error('at equal batch size')}. "
            "95 % CI over seeds, at these batch sizes."
        )
    return " ".join(texts)


def _on_barriers(pairs: pd.DataFrame) -> str:
    """Barrier of each merge, with recomputed statistics and without, over pairs that share no seed."""
    pairs, words = pairs[pairs["disjoint"]], []
    for merge, rows in pairs.groupby("merge", sort=False):
        by = {name: mean_in_words(of["barrier"]) for name, of in rows.groupby("statistics")}
        n = rows.groupby("statistics")["barrier"].agg(lambda barrier: np.isfinite(barrier).sum())
        words.append(f"{merge} {by['recomputed']}, n = {n['recomputed']} ({by['interpolated']}, {n['interpolated']})")
    return (
        "Between two seeds the loss rises (nats, recomputed statistics, in brackets interpolated; 95 % CI over n "
        f"disjoint pairs with a finite loss): {'; '.join(words)}."
    )
