"""Q9, Q11, Q25: what do the learned functions look like: smooth, of what degree, with which symmetries?

  python -m experiments.surface --smoke
  python -m experiments.surface --datasets=digits,mnist

Trains the merges on each data set without any prior on the surface, and with priors (--arms): the preset's crops and
flips, mixup, noise on the inputs, and a spatial transformer in front of the net. Every net is looked into on the same
test images, lines and plane: its Jacobian, what it does on lines, circles and planes through images, its mixup gap,
whether it keeps what it has right under flip, shift, rotation and scale, the dimension of its features; and how far two
seeds and two merges are apart as functions, on data, on mixtures and on noise. Logits are compared in units of their
own spread, and probabilities at one temperature, so that a net that is only surer of itself reads the same. The
learning rate is the config's for all.

The report card of a data set has the merges as columns and the readings as rows, with 95 % CIs over seeds, and the rank
correlation (Kendall) of every reading with the test error over merges, within a prior. Intervals are over trainings,
for these images, lines and planes, and not corrected for the number of readings.

Writes OUT.csv (a row per net), OUT_card.csv, OUT_ranks.csv, OUT_priors.csv, the curves OUT_symmetry.csv,
OUT_spectra.csv and OUT_gaps.csv, OUT_alignment.csv, OUT_equivalence.csv, OUT_planes.csv and OUT_corners.csv; figures;
and a page OUT_DATASET.html for each data set. Exit code 1: a cell failed; 2: bad input, in one line; 128 + n: stopped
by signal n.
"""

import argparse
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from experiments.surface import card as surface_card
from experiments.surface import figures as surface_figures
from experiments.surface import page as surface_page
from experiments.surface import planes as surface_planes
from experiments.surface import tables as surface_tables
from experiments.surface.tables import ARMS, BASELINE
from experiments.surface.verdicts import verdicts
from resjax.analysis import tables
from resjax.analysis.intervals import with_intervals
from resjax.config import ConfigError
from resjax.sweep import flags, measuring, runs, study

MODULE = "experiments.surface"
SMOKE = {
    "merges": "add,mul_bn1", "arms": "plain,augment", "set": ["model.name=mlp"], "seeds": 2, "epochs": 3, "depth": 4,
    "width": 8, "images": 64, "out": "results/surface_smoke",
}  # fmt: skip
PLAIN = {"dataset.augment": "none", "dataset.mixup": 0.0, "dataset.noise": 0.0, "model.front": "none"}
PRIORS = {  # prior -> entries
    "plain": PLAIN,
    "augment": {key: value for key, value in PLAIN.items() if key != "dataset.augment"},  # which the preset knows
    "mixup": PLAIN | {"dataset.mixup": 1.0},
    "noise": PLAIN | {"dataset.noise": 0.3},
    "stn": PLAIN | {"model.front": "stn"},
}
AT_THE_END = {"eval_every": 10**6}  # the last epoch is always evaluated: test sets are larger than what is trained on
READ = ("smoothness", "lines", "degree", "mixing", "symmetry", "dimension")  # probes
INPUTS = {"data": "outputs", "mixes": "outputs_mixes", "noise": "outputs_noise"}  # on what nets are compared -> probe
DRAWN = ("plain", "augment", "mixup")  # priors of the planes


class Cell(NamedTuple):
    """A data set, a prior and a merge."""

    dataset: str
    arm: str
    merge: str

    @property
    def label(self) -> str:
        """For people."""
        return ", ".join(self)

    def config(self, args: argparse.Namespace) -> ConfigDict:
        """Raises ConfigError."""
        return flags.config(args, self.dataset, self.merge, **PRIORS[self.arm], **AT_THE_END)


def main(
    argv: Sequence[str] | None = None, train: runs.Train | None = None, measure: measuring.Measure | None = None
) -> int:
    """Runs the study; returns the exit code. `train` and `measure` replace the trainer and the measurement."""
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/surface", seeds=6, width=8, train_size=1024, epochs=20, batch_size=64)
    p.add_argument("--arms", default=",".join(ARMS), metavar="A,B", help=f"priors, of {', '.join(ARMS)}; all")
    p.add_argument("--images", type=int, default=256, metavar="N", help="test images looked at; %(default)s")
    return study.run(MODULE, argv, p, study.of_probes(configurations, measurements, report), train, measure)


def configurations(args: argparse.Namespace) -> dict[str, ConfigDict]:
    """Config of every cell, by its label; always with "plain" and `add`. Raises ConfigError."""
    return {cell.label: cell.config(args) for cell in cells(args)}


def cells(args: argparse.Namespace) -> list[Cell]:
    """Data sets x priors x merges. Raises ConfigError."""
    from resjax.models.merges import MERGES

    flags.refuse(args, PLAIN | AT_THE_END)
    merges = dict.fromkeys([BASELINE, *flags.merges(args.merges, MERGES)])
    return [Cell(*factors) for factors in itertools.product(flags.datasets(args.datasets), arms(args), merges)]


def arms(args: argparse.Namespace) -> list[str]:
    """The priors, "plain" first. Raises ConfigError."""
    return list(dict.fromkeys(["plain", *flags.chosen("--arms", args.arms, list(ARMS))]))


def measurements(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is asked of every finished run; distances between nets of those without a prior, planes of `DRAWN`."""
    shared = {"images": args.images, "split": "test", "moments": ("trained",)}

    def of(*priors: str) -> dict[str, list[str]]:
        return {"cells": [cell.label for cell in cells(args) if cell.arm in priors]}

    return {
        "readings": {"probes": tuple(READ)} | shared,
        "outputs": {"probes": tuple(INPUTS.values())} | of("plain") | shared,
        "plane": {"probes": ("plane",), "points": 33} | of(*DRAWN) | shared,
        "alignment": {"probes": ("alignment",)} | of("stn") | shared,
    }


def report(found: study.Study) -> list[Path]:
    """Prints the verdicts, and writes the tables, the figures and the pages."""
    if set(READ) - set(found.measurements):
        raise ConfigError("no net could be looked into; the reasons stand above")
    factors = pd.DataFrame({cell.label: {"dataset": cell.dataset, "arm": cell.arm} for cell in cells(found.args)}).T

    def with_factors(table: pd.DataFrame) -> pd.DataFrame:
        return table.drop(columns="dataset").join(factors, on="cell")

    measured = {name: with_factors(table) for name, table in found.measurements.items()}
    nets = surface_tables.per_net(with_factors(found.nets), {name: measured[name] for name in READ})
    written = {
        "": nets,
        "_symmetry": surface_tables.symmetry_curves(measured["symmetry"]),
        "_spectra": surface_tables.spectra(measured["degree"]),
        "_gaps": surface_tables.gaps(measured["mixing"]),
        "_alignment": surface_tables.alignments(measured["alignment"]),
        "_equivalence": surface_tables.equivalence({inputs: measured[probe] for inputs, probe in INPUTS.items()}),
        "_planes": surface_tables.planes(measured["plane"]),
        "_corners": corners(found, measured["plane"]),
    }
    of_nets, said = derived(nets, written["_symmetry"], written["_alignment"])
    written |= of_nets
    written = {suffix: table for suffix, table in written.items() if len(table)}
    return found.publish(written, said) + draw(found.args.out)


def derived(
    nets: pd.DataFrame, symmetry: pd.DataFrame, alignment: pd.DataFrame
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """What the rows of nets say, by suffix, and with two of the curves the verdicts."""
    found = {"_card": surface_tables.card(nets), "_ranks": surface_tables.ranks(nets)}
    found["_priors"] = surface_tables.priors(nets)
    return found, dict(verdicts(nets, *found.values(), symmetry, alignment))


def rederived(out: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """What is `derived` from the nets in OUT.csv, and the intervals of curves from their standard deviations.

    Distances between nets, whose intervals take the pairs of nets, are left without.
    """
    curves = ("_symmetry", "_spectra", "_gaps", "_alignment")
    read = tables.written(out, *curves, "_equivalence")
    found = {suffix: with_intervals(read[suffix]) for suffix in curves if suffix in read}
    if "_equivalence" in read:
        apart = read["_equivalence"]
        found["_equivalence"] = apart.assign(**dict.fromkeys(apart.filter(regex="_(low|high)$"), float("nan")))
    none = surface_tables.alignments(pd.DataFrame())
    nets = tables.unrounded(tables.read_csv(f"{out}.csv"))
    of_nets, said = derived(nets, found["_symmetry"], found.get("_alignment", none))
    return found | of_nets, said


def corners(found: study.Study, plane: pd.DataFrame) -> pd.DataFrame:
    """The three test images that span the plane of each data set, in their true colours, a row per pixel and channel.

    Columns: dataset, corner (0, 1, 2), x, y (`functions.planes`), label, row, column, channel, value (0 to 255).
    """
    from resjax.data import batches, dataset
    from resjax.probes.functions import planes, surface
    from resjax.training.probing import evenly

    rows = []
    for name, of_set in plane.groupby("dataset", sort=False):
        config = next(o.config for o in found.outcomes if o.label == of_set["cell"].iloc[0])
        data = dataset.load(config.dataset)
        seen = data.test.take(evenly(len(data.test.labels_N), found.args.images))
        three = seen.take(surface.corners(seen.labels_N))
        normalised = np.asarray(batches.normalize(three.images_NxHxWxC, data.mean_C, data.std_C))
        xy_3x2 = planes.through(normalised).corners_3x2
        where = (axis.ravel() for axis in np.indices(three.images_NxHxWxC.shape))
        pixels = pd.DataFrame(dict(zip(("corner", "row", "column", "channel"), where, strict=True)))
        own = {"dataset": name, "x": xy_3x2[pixels["corner"], 0], "y": xy_3x2[pixels["corner"], 1]}
        own |= {"label": three.labels_N[pixels["corner"]], "value": three.images_NxHxWxC.ravel()}
        rows.append(pixels.assign(**own))
    return pd.concat(rows, ignore_index=True)


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv, and writes the pages."""
    suffixes = ("_card", "_ranks", "_priors", "_symmetry", "_spectra", "_gaps", "_equivalence", "_planes", "_corners")
    read, header = tables.written(out, *suffixes), tables.read_header(f"{out}.csv")
    said = tables.verdicts(header)
    shared = {}
    if "_priors" in read:
        shared["priors"] = surface_figures.priors(read["_priors"], f"{out}_priors")
    if "_ranks" in read:
        shared["common"] = surface_figures.common(read["_ranks"], f"{out}_common")
    ranks = read.get("_ranks", pd.DataFrame(columns=["dataset", "reading"]))
    of_set = {
        "card": partial(surface_card.card, read["_card"], ranks, read["_planes"], read["_corners"]),
        "planes": partial(surface_planes.planes, read["_planes"], read["_corners"]),
        "symmetry": partial(surface_figures.symmetries, read["_symmetry"]),
        "spectra": partial(surface_figures.spectra, read["_spectra"]),
        "gaps": partial(surface_figures.gaps, read["_gaps"]),
        "equivalence": partial(surface_figures.equivalences, read["_equivalence"]),
    }
    paths = [path for files in shared.values() for path in files]
    datasets = dict.fromkeys(read["_card"]["dataset"])
    for dataset in datasets:
        of_others = [what for what in said if {*what.split(", ")} & {*datasets} - {dataset}]
        own = {name: draw(f"{out}_{dataset}_{name}", dataset) for name, draw in of_set.items()}
        images = {name: files[0] for name, files in (own | shared).items()}
        about = {what: sentence for what, sentence in said.items() if what not in of_others}
        origin = {key: value for key, value in header.items() if key not in said}
        page = surface_page.write(f"{out}_{dataset}.html", dataset, about, read["_card"], ranks, images, origin)
        paths += [*(path for files in own.values() for path in files), page]
    return paths
