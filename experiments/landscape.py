"""Critical points, saddles and flat minima: what the loss looks like around nets with each merge (Q13, Q14, Q15).

  python -m experiments.landscape --smoke
  python -m experiments.landscape

Q13: is the gradient near 0 where training stalls? Its norm beside the loss, over training. Q14: does the share of
negative eigenvalues of the Hessian follow the height of the loss, and does a step along negative curvature lower it?
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
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from experiments import cells, measuring, study
from resjax.analysis import figures, landscape_figures, tables
from resjax.analysis.landscape_tables import (
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
from resjax.config import ConfigError

MODULE = "experiments.landscape"
COURSE = ["dataset", "cell", "merge", "seed", "epoch", "loss", "grad_norm"]
READINGS = ["asam", "sam", "box", "lambda_max", "trace"]
SMOKE = {
    "datasets": "cube_degree2", "merges": "mul_bn1", "swept": "mul_bn1", "planes": "mul_bn1", "batch_sizes": (32, 64),
    "seeds": 2, "epochs": 8, "depth": 4, "width": 16, "images": 128, "every": 4, "points": 5,
    "out": "results/landscape_smoke",
}  # fmt: skip


def main(
    argv: Sequence[str] | None = None, train: cells.Train | None = None, measure: measuring.Measure | None = None
) -> int:
    """Runs the study; returns the exit code. `train` and `measure` replace the trainer and the measurement."""
    return study.main(MODULE, argv, _parser(), configurations, looks, report, train, measure)


def _parser() -> argparse.ArgumentParser:
    p = cells.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/landscape", seeds=5, width=8)
    p.add_argument("--every", type=int, default=10, metavar="N", help="epochs between two looks; %(default)s")
    p.add_argument("--images", type=int, default=4096, metavar="N", help="of the Hessian, at most; %(default)s")
    p.add_argument("--points", type=int, default=15, metavar="N", help="of an axis of a plane; %(default)s")
    p.add_argument("--planes", default="add,mul,mul_bn1,gate_sig", metavar="A,B", help="merges; %(default)s")
    p.add_argument("--swept", default="add,mul,mul_bn1,gate_sig", metavar="A,B", help="merges; %(default)s")
    p.add_argument("--batch_sizes", type=cells.whole_numbers, default=(16, 32, 64, 128, 512), metavar="N,N")
    p.add_argument("--rates", default="fixed", metavar="A,B", help="fixed, linear (in the batch); %(default)s")
    return p


def configurations(args: argparse.Namespace) -> dict[str, ConfigDict]:
    """The config of every cell: each merge with the curvature probe, and the sweep. Raises ConfigError."""
    from resjax.models.merges import MERGES

    (dataset, *others) = cells.datasets(args.datasets)
    if others:
        raise ConfigError("--datasets: one at a time")
    if args.every < 1:
        raise ConfigError(f"--every={args.every}: at least 1")
    chosen = {}
    for merge in cells.merges(args.merges, MERGES):
        probes = {"probes.curvature": args.every, "probes.images": args.images}
        chosen[f"{dataset}, {merge}"] = cells.config(args, dataset, merge, **probes)
    for merge in _among(args.swept, args, "--swept"):
        base = chosen[f"{dataset}, {merge}"]
        for rule in args.rates.split(","):
            if rule not in ("fixed", "linear"):
                raise ConfigError(f"--rates: unknown {rule!r}; choose from fixed, linear")
            for size in args.batch_sizes:
                if size == base.batch_size:
                    continue
                rate = base.optimizer.learning_rate * (size / base.batch_size if rule == "linear" else 1)
                entries = {"batch_size": size, "optimizer.learning_rate": rate, "eval_every": base.epochs}
                label = f"{dataset}, {merge}, batch {size}, {rule} rate"
                chosen[label] = cells.config(args, dataset, merge, **entries)
    _among(args.planes, args, "--planes")
    return chosen


def _among(text: str, args: argparse.Namespace, flag: str) -> list[str]:
    """The merges of `text`, all of which must be studied."""
    from resjax.models.merges import MERGES

    names = cells.merges(text, MERGES)
    if lacking := [name for name in names if name not in cells.merges(args.merges, MERGES)]:
        raise ConfigError(f"{flag}: {lacking[0]!r} is not among --merges")
    return names


def looks(args: argparse.Namespace) -> dict[str, dict]:
    """What is asked of the trained nets."""
    configs = configurations(args)
    core = [label for label, config in configs.items() if config.probes.curvature]
    planes, swept = _among(args.planes, args, "--planes"), _among(args.swept, args, "--swept")
    planes = [label for label in core if configs[label].model.merge in planes]
    swept = [label for label in configs if configs[label].model.merge in swept]
    shared = {"images": args.images, "moments": "trained"}
    return {
        "density": {"probe": "density", "cells": core} | shared,
        "sharpness": {"probe": "sharpness", "cells": swept} | shared,
        "surface": {"probe": "loss_surface", "cells": planes, "points": args.points} | shared,
        "interpolation": {"probe": "interpolation", "cells": core} | shared,
    }


def report(found: study.Found) -> list[Path]:
    """Prints the verdicts, and writes the tables and figures; of what no net has said anything there is none."""
    core = replace(found, outcomes=[o for o in found.outcomes if o.run_dir and o.config.probes.curvature])
    nets = found.nets.assign(error=lambda t: 1 - t["OA"])
    courses = [tables.load(o.run_dir).assign(cell=o.label) for o in core.outcomes]
    course = not_diverged(pd.concat(courses, ignore_index=True), nets) if courses else pd.DataFrame()
    curvature = not_diverged(core.probed("curvature"), nets) if courses else pd.DataFrame()
    density, lines, surface = (found.looks[name] for name in ("density", "interpolation", "surface"))
    sharp = _with_results(found, nets)
    stalled = pairs = q14 = q15 = pd.DataFrame()
    verdicts = {"left out": _left_out(nets)}
    if len(curvature):
        curvature, stalled = drops(curvature), stalls(course)
        q14 = _negative_correlations(curvature)
        verdicts |= {"verdict on Q13": _q13(stalled, curvature), "verdict on Q14": _q14(curvature, q14)}
    if len(sharp):
        q15 = _sharpness_correlations(sharp)
        verdicts["verdict on Q15"] = _q15(q15)
    if len(lines):
        pairs = barriers(lines)
        verdicts["barriers"] = _on_barriers(pairs)
    for text in verdicts.values():
        found.console.print(f"\n{text}", markup=False, highlight=False)
    header, out = found.header | verdicts, found.args.out
    correlated = [table for table in (q14, q15) if len(table)]
    written = {
        "": nets, "_curvature": curvature, "_stalls": stalled, "_density": density, "_sharpness": sharp,
        "_correlations": pd.concat(correlated, ignore_index=True) if correlated else pd.DataFrame(),
        "_planes": surface, "_lines": lines, "_barriers": pairs,
        "_course": course.loc[course["split"] == "train", COURSE] if len(course) else course,
    }  # fmt: skip
    paths = [tables.write_csv(table, f"{out}{suffix}.csv", header) for suffix, table in written.items() if len(table)]
    return paths + draw(out)


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv; of what no net has said anything there is none."""
    read = tables.written(out, "_curvature", "_course", "_density", "_sharpness", "_planes", "_lines", "_barriers")
    plan = {
        "_curvature": ("_curvature", landscape_figures.training),
        "_negative": ("_curvature", landscape_figures.negative_against_loss),
        "_escape": ("_curvature", lambda table, path: _escapes(table.dropna(subset=["escape_drop"]), path)),
        "_gradients": ("_course", landscape_figures.gradients),
        "_density": ("_density", lambda table, path: landscape_figures.densities(smoothed(table), path)),
        "_sharpness": ("_sharpness", landscape_figures.sweep),
        "_planes": ("_planes", landscape_figures.planes),
        "_lines": ("_lines", lambda table, path: landscape_figures.lines(table, read["_barriers"], path)),
    }
    return figures.of_tables(read, out, plan)


def _escapes(drops: pd.DataFrame, path: str) -> list[Path]:
    """None where no net has negative curvature."""
    return landscape_figures.escapes(drops, path) if len(drops) else []


def _left_out(nets: pd.DataFrame) -> str:
    """How many replicas diverged, of which merges."""
    lost = nets[nets["status"] == "diverged"]
    which = ", ".join(f"{merge} {count}" for merge, count in lost.groupby("merge", sort=False).size().items())
    return f"{len(lost)} of {len(nets)} nets diverged and are left out everywhere{': ' if which else ''}{which}."


def _with_results(found: study.Found, nets: pd.DataFrame) -> pd.DataFrame:
    """Sharpness of the trained nets beside what they reached, their batch size and how its rate was chosen."""
    if found.looks["sharpness"].empty:
        return found.looks["sharpness"]
    sizes = {o.label: o.config.batch_size for o in found.outcomes}
    reached = nets[["cell", "seed", "error", "test_loss", "generalization_gap", "train_accuracy"]]
    sharp = found.looks["sharpness"].merge(reached, on=["cell", "seed"])
    sharp["batch_size"] = sharp["cell"].map(sizes)
    sharp["rate"] = sharp["cell"].str.extract(r", (\w+) rate$")[0]
    both = sharp["rate"].isna()  # the sweep's middle belongs to every rule
    rules = found.args.rates.split(",")
    return pd.concat([sharp[~both], *(sharp[both].assign(rate=rule) for rule in rules)], ignore_index=True)


def _negative_correlations(curvature: pd.DataFrame) -> pd.DataFrame:
    """Of the negative share and mass with the loss: along training, per merge, and at equal epochs, over merges."""
    xs = ["negative", "negative_mass"]
    along = correlations(curvature, xs, ["loss"], ["seed"])
    at_equal = [
        {"merge": "at equal epochs", "x": x, "y": "loss"}
        | rank_correlation(curvature, x, "loss", ["seed", "merge"], ["epoch"])
        for x in xs
    ]
    return pd.concat([along, pd.DataFrame(at_equal)], ignore_index=True).assign(question="Q14", rate="")


def _sharpness_correlations(sharp: pd.DataFrame) -> pd.DataFrame:
    """Of batch size, sharpness and generalisation, per merge and within merges, for each rule of the rate."""
    out, over = [], ["seed", "batch_size"]
    for rule, rows in sharp.groupby("rate", sort=False):
        found = [
            correlations(rows, ["batch_size"], [*READINGS, "error"], over),
            correlations(rows, [*READINGS, "loss"], ["error", "test_loss", "generalization_gap"], over),
        ]
        out += [table.assign(question="Q15", rate=rule) for table in found]
    return pd.concat(out, ignore_index=True)


def _q13(stalled: pd.DataFrame, curvature: pd.DataFrame) -> str:
    """The gradient where the loss stalls, and at the end."""
    ratios = by_seed(stalled, "stall_ratio")
    worst = stalled.groupby("merge")["stall_ratio"].mean().dropna().sort_values()
    parts = ""
    if len(worst):
        parts = f" ({worst.iloc[0]:.2f} for {worst.index[0]} to {worst.iloc[-1]:.2f} for {worst.index[-1]})"
    last = curvature[curvature["epoch"] == curvature["epoch"].max()]
    return (
        f"Q13: in {stalled['stalled'].gt(0).sum()} of {len(stalled)} nets the training loss stalls at some time; there "
        f"the gradient norm is {mean_in_words(ratios)} of its peak{parts}, at a "
        f"loss of {mean_in_words(by_seed(stalled, 'stall_loss'), digits=3)}; at the end it is "
        f"{mean_in_words(by_seed(stalled, 'final_ratio'))} of its peak, at a loss of "
        f"{mean_in_words(by_seed(stalled, 'final_loss'), digits=3)} nats; over all images the norm is "
        f"{mean_in_words(by_seed(last, 'grad_norm'), digits=3)} (95 % CI over {stalled['seed'].nunique()} "
        f"seeds, in {len(ratios)} of which a net stalls; means over merges). "
        "A stall near a ratio of 0 at a high loss is a critical point; one at a loss near 0 is a minimum."
    )


def _q14(curvature: pd.DataFrame, table: pd.DataFrame) -> str:
    """Share against loss, and the escape step."""
    tau = {key: in_words(row) for key, row in table.set_index(["x", "merge"]).iterrows()}
    steps = []
    for epoch, at in curvature.groupby("epoch"):
        names = ("escape_drop", "even_drop", "random_drop", "over_random", "gradient_drop", "descent_drop")
        by = {name: mean_in_words(by_seed(at, name), 100, 1) for name in names}
        steps.append(
            f"epoch {epoch} ({at['escape_drop'].notna().sum()} of {len(at)} nets have a negative one): "
            f"{by['escape_drop']} %, its even part {by['even_drop']} %; random directions {by['random_drop']} %, the "
            f"eigenvector's less theirs {by['over_random']} %; the gradient at the same length {by['gradient_drop']} "
            f"%, at its own best {by['descent_drop']} %"
        )
    return (
        f"Q14: the share of negative eigenvalues and the loss have {tau['negative', 'all merges']} along training, "
        f"within merges, and {tau['negative', 'at equal epochs']} at equal epochs, over merges and seeds; their share "
        f"of the moduli, which hangs less on the threshold, {tau['negative_mass', 'all merges']} and "
        f"{tau['negative_mass', 'at equal epochs']}. "
        "The loss that a step along the eigenvector of the smallest eigenvalue takes away, by the same search as along "
        "random directions (means over merges, 95 % CI over seeds; the difference is paired; -100 % stands for any "
        f"larger rise): {'; '.join(steps)}. Only an even part and a difference above 0 speak of negative curvature."
    )


def _q15(table: pd.DataFrame) -> str:
    """Batch size, sharpness and error, within merges."""
    texts = []
    for rule, of_rule in table.groupby("rate", sort=False):
        rows = of_rule[of_rule["merge"] == "all merges"].set_index(["x", "y"])
        texts.append(
            f"Q15, {rule} rate: within merges, larger batches have more adaptive sharpness by "
            f"{in_words(rows.loc[('batch_size', 'asam')])} and a higher test error by "
            f"{in_words(rows.loc[('batch_size', 'error')])}; sharper nets err more by "
            f"{in_words(rows.loc[('asam', 'error')])} (asam), {in_words(rows.loc[('lambda_max', 'error')])} "
            f"(lambda_max), {in_words(rows.loc[('loss', 'error')])} (the training loss, for comparison)."
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


if __name__ == "__main__":
    sys.exit(main())
