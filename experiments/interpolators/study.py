"""Q10: do two nets that both interpolate the training set differ by their prior, and what tells which errs less?

  python -m experiments.interpolators --smoke
  python -m experiments.interpolators

Trains every merge on few images, without augmentation and weight decay, until all of them are right, so that no merge
can differ by how well it fits. A net interpolates if it has every training image right in evaluation mode; the others
are reported, and left out of all that follows. Diverged replicas are counted.

Distance: the share of test images that two nets give another class; beside it the total variation of their
probabilities, in which nets also differ that are not equally sure of the same classes. Within a merge (different
seeds), and between merges at the same seed (equal draws of weights, equal batches) and at different ones. The excess,
the distance to `add` at different seeds less the mean of both distances within, is 0 if the merge does not matter
beyond the seed. Ranking: which reading of the trained nets orders the merges by test error, and does any do so better
than the number of parameters, the training loss, or the time until the fit? Plain sharpness depends on the scale of
weights that a norm removes, and merges differ in it; asam is the fair one.

Writes OUT.csv (a row per net), OUT_pairs.csv (a row per pair of nets), OUT_distances.csv (a row per pair of merges and
kind), OUT_excess.csv and OUT_differences.csv (comparisons with `add`: distance and test error, a row per merge),
OUT_race.csv (a row per reading), and figures of them. Exit code 1: a cell failed; 2: bad input, in one line; 128 + n:
stopped by signal n.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from experiments.interpolators import figures as interpolator_figures
from experiments.interpolators import tables as interpolator_tables
from experiments.interpolators.tables import BASELINE, READINGS
from resjax.analysis import distances, plots, race, tables
from resjax.config import ConfigError
from resjax.sweep import flags, measuring, runs, study

MODULE = "experiments.interpolators"
SMOKE = {
    "merges": "add,mul_bn1,gate_sig", "set": ["model.name=mlp"], "seeds": 2, "epochs": 60, "train_size": 64,
    "batch_size": 32, "depth": 4, "width": 32, "out": "results/interpolators_smoke",
}  # fmt: skip
PLAIN = {"dataset.augment": "none", "optimizer.weight_decay": 0.0}
EVERY = 10**9  # images: all that there are


def main(
    argv: Sequence[str] | None = None, train: runs.Train | None = None, measure: measuring.Measure | None = None
) -> int:
    """Runs the study; returns the exit code. `train` and `measure` replace the trainer and the measurement."""
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/interpolators", merges="all", seeds=6)
    p.set_defaults(width=8, train_size=256, batch_size=32, epochs=60)
    p.add_argument("--images", type=int, default=2000, metavar="N", help="test images of a distance; %(default)s")
    return study.run(MODULE, argv, p, study.of_probes(configurations, measurements, report), train, measure)


def configurations(args: argparse.Namespace) -> dict[str, ConfigDict]:
    """Config of every cell, by its label; `add` is among them. Raises ConfigError."""
    from resjax.models.merges import MERGES

    dataset, *others = flags.datasets(args.datasets)
    if others:
        raise ConfigError(f"--datasets={args.datasets}: one at a time")
    flags.refuse(args, PLAIN)
    merges = dict.fromkeys([BASELINE, *flags.merges(args.merges, MERGES)])
    return {f"{dataset}, {merge}": flags.config(args, dataset, merge, **PLAIN) for merge in merges}


def measurements(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is asked of every finished run."""
    shared = {"images": EVERY, "moments": ("trained",)}
    return {
        "fit": {"probes": ("outputs",), "split": "train"} | shared,
        "outputs": {"probes": ("outputs",), "split": "test"} | shared | {"images": args.images},
        "sharpness": {"probes": ("sharpness",)} | shared,
    }


def report(found: study.Study) -> list[Path]:
    """Prints the verdicts, and writes the tables and figures; what takes two merges is left out without them."""
    fit, outputs, sharpness = (found.measurements[name] for name in measurements(found.args))
    if fit.empty or outputs.empty:
        raise ConfigError("no net's outputs are known; the reasons stand above")
    courses = [tables.load(o.run_dir).assign(cell=o.label) for o in found.outcomes if o.run_dir]
    course = pd.concat(courses, ignore_index=True)
    nets = interpolator_tables.per_net(found.nets, course, fit, sharpness)
    fitted = nets.loc[nets["interpolates"], interpolator_tables.KEYS]
    pairs = distances.pair_distances(outputs.merge(fitted.astype({"seed": int})))
    measured = {"": nets, "_pairs": distances.as_rows(pairs)}
    derived, said = _derived(measured)
    written = {suffix: table for suffix, table in (measured | derived).items() if len(table)}
    return found.publish(written, said) + draw(found.args.out)


def rederived(out: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The tables that follow from the rows of OUT.csv and OUT_pairs.csv, by suffix, and the verdicts."""
    read = tables.written(out, "_pairs")
    read["_pairs"] = read["_pairs"].assign(dataset="")
    derived, said = _derived({suffix: tables.unrounded(table) for suffix, table in read.items()})
    return {suffix: table for suffix, table in derived.items() if len(table)}, said


def _derived(measured: Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Tables by suffix, and verdicts, of what was measured."""
    nets, pairs = measured[""], distances.as_squares(measured["_pairs"])
    apart, beyond = distances.distances(pairs), distances.excess(pairs)
    differences = tables.differences(nets.assign(error=nets["error"].where(nets["interpolates"])), "error")
    counted = interpolator_tables.compared(nets)
    several = len(distances.merges_of(pairs)) > 1
    ranked = race.race(counted, READINGS) if several else pd.DataFrame()
    said = dict(interpolator_tables.verdicts(nets, apart, beyond, differences))
    said["ranking"] = race.verdict(ranked, counted) if several else "fewer than two merges interpolate."
    return {"_distances": apart, "_excess": beyond, "_differences": differences, "_race": ranked}, said


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv, if any net interpolates; two of them take two merges that do."""
    read = tables.written(out, "_distances", "_differences", "_race")
    if not read[""]["interpolates"].any():
        return []
    paths = interpolator_figures.errors(read["_differences"], f"{out}_errors")
    by_size = read["_differences"].sort_values("difference")
    paths += plots.forest(by_size, f"{out}_differences", label="test error")
    if "_race" in read:
        paths += interpolator_figures.distance_map(read["_distances"], f"{out}_distances")
        if read["_race"]["tau"].notna().any():
            counted = interpolator_tables.compared(read[""])
            paths += interpolator_figures.readings(counted, read["_race"], f"{out}_readings")
    return paths
