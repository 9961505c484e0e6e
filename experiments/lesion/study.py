"""Q17: is a net with products an ensemble of paths, as an additive one is, or does every factor matter?

  python -m experiments.lesion --smoke
  python -m experiments.lesion --depths=8,20

Trains the merges at several depths, with BatchNorm and, those of --ln, with LayerNorm, and looks at the finished nets
on test images. Lesions (probes/blocks/lesion.py): blocks are skipped, cut down to their shortcut, held at the mean of
their branch, or exchanged, one at a time and in random sets. Paths (probes/blocks/path_lengths.py): how the gradient
is shared out among path lengths. The effect is how much the error rises by a lesion of one block of equal shape, and
its paired difference to `add` of the same norm and depth; a net whose error is high has less to lose. Which merges
train at which depth is reported beside it, diverged replicas counted.

  python -m experiments.lesion --rescue --depths=20 --ln= --merges=add,mul,mul_bn,mul_bn1 --out=results/lesion_rescue

Q19: does a gentler optimiser train what did not train? With --rescue every cell is trained as it is, with the gradient
clipped, at a tenth of the rate, and with both, and is not looked into.

Writes OUT.csv (a row per net) and figures, and without --rescue OUT_effects.csv (comparisons with `add`, a row per
norm, depth, metric and merge) and OUT_curves.csv. Exit code 1: a cell failed; 2: bad input, in one line; 128 + n:
stopped by signal n.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from experiments.lesion import figures as lesion_figures
from experiments.lesion import rescue as lesion_rescue
from experiments.lesion import tables as lesion_tables
from resjax.analysis import plots, tables
from resjax.analysis.intervals import with_intervals
from resjax.config import ConfigError
from resjax.sweep import flags, measuring, runs, study

MODULE = "experiments.lesion"
MERGES = "add,mul,mul_bn,mul_bn1,mul_res,gate_sig,gate_sig_bn,sig_sig,se"  # core, and an identity init
SMOKE = {
    "merges": "add,mul_bn1,gate_sig", "ln": "", "depths": (8,), "set": ["model.name=mlp"], "seeds": 2, "epochs": 3,
    "out": "results/lesion_smoke",
}  # fmt: skip
METRICS = ["OA", "train_loss", *lesion_tables.REMOVED, "path_length_init", "path_length_trained"]
SHARES = 360 * 7  # costs are k/n: of 360 images, means over at most 7 blocks or 5 pairs of ResNet-20
NUMBERS = {"frozen": ["tau", "accuracy"], "recalibrated": ["tau", "accuracy"], "paths": ["share"]}  # may be nan
CURVES = {  # suffix of a figure -> what it shows; name of a curve -> title, label of the x axis
    "_blocks": ("error", {
        "block delete": ("one block skipped", "position of the block"),
        "block delete_recalibrated": ("skipped, statistics recomputed", "position of the block"),
        "block mean": ("branch held at its mean", "position of the block"),
    }),
    "_numbers": ("error", {
        "number delete": ("blocks skipped", "number of blocks"),
        "number mean": ("branches held at their means", "number of blocks"),
        "order": ("blocks exchanged at random", "Kendall's tau of their order"),
    }),
    "_paths": ("share of the gradient", {
        "paths init": ("before training", "path length (branches)"),
        "paths trained": ("after training", "path length (branches)"),
    }),
}  # fmt: skip
RESCUES = {  # what --rescue changes; clipping bounds the global norm of the gradient
    "standard": {},
    "clipped": {"optimizer.clip_norm": 1.0},
    "slow": {"optimizer.learning_rate": 0.01},
    "clipped and slow": {"optimizer.clip_norm": 1.0, "optimizer.learning_rate": 0.01},
}
FOREST = {"delete": "one block skipped", "mean": "one branch held at its mean"}


def main(
    argv: Sequence[str] | None = None, train: runs.Train | None = None, measure: measuring.Measure | None = None
) -> int:
    """Runs the study; returns the exit code. `train` and `measure` replace the trainer and the measurement."""
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/lesion", merges=MERGES, seeds=6, width=8)
    p.add_argument("--depths", type=flags.whole_numbers, default=(8, 20), metavar="N,N", help="of the nets; 8,20")
    p.add_argument("--ln", default="add,mul,mul_bn1", metavar="A,B", help="merges with LayerNorm too; %(default)s")
    p.add_argument("--images", type=int, default=360, metavar="N", help="test images of a lesion; %(default)s")
    p.add_argument("--rescue", action="store_true", help="train under gentler optimisers, and look at accuracy alone")
    return study.run(MODULE, argv, p, study.of_probes(configurations, measurements, report), train, measure)


def configurations(args: argparse.Namespace) -> dict[str, ConfigDict]:
    """Config of every cell, by its label. Raises ConfigError."""
    from resjax.models.merges import MERGES

    if args.depth is not None or {"model.depth", "model.norm"} & {text.partition("=")[0] for text in args.set}:
        raise ConfigError("--set: use --depths and --ln")
    datasets = flags.datasets(args.datasets)
    if len(datasets) > 1:
        raise ConfigError(f"--datasets={args.datasets}: one at a time")
    if args.rescue:
        flags.refuse(args, RESCUES["clipped and slow"])
    norms = {"bn": flags.merges(args.merges, MERGES), "ln": flags.merges(args.ln, MERGES) if args.ln else []}
    optimisers = {f", {name}": entries for name, entries in RESCUES.items()} if args.rescue else {"": {}}
    return {
        f"{merge}, depth {depth}, {norm}{name}": flags.config(
            args, datasets[0], merge, **{"model.depth": depth, "model.norm": norm}, **entries
        )
        for (name, entries), depth, (norm, merges) in itertools.product(optimisers.items(), args.depths, norms.items())
        for merge in merges
    }


def measurements(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is asked of every finished run."""
    if args.rescue:
        return {}
    of_trained = {"probes": ("lesion",), "images": args.images, "split": "test", "moments": ("trained",)}
    return {
        "frozen": of_trained,
        "recalibrated": of_trained | {"recalibrate": True, "draws": 0},
        "paths": {"probes": ("paths",), "images": min(64, args.images), "split": "test"},
    }


def report(found: study.Study) -> list[Path]:
    """Prints the verdicts, and writes the tables and figures."""
    out = found.args.out
    if found.args.rescue:
        nets = lesion_rescue.outcomes(found.nets)
        return found.publish({"": nets}, dict(lesion_rescue.verdicts(nets))) + draw(out)
    looked = {name: rows.astype(dict.fromkeys(NUMBERS[name], float)) for name, rows in found.measurements.items()}
    lesions = pd.concat([looked[name].assign(statistics=name) for name in ("frozen", "recalibrated")])
    nets = lesion_tables.per_net(found.nets, lesions, looked["paths"])
    effects = lesion_tables.compared(nets, METRICS)
    curves = lesion_tables.curves(lesions, looked["paths"])
    written = {"": nets, "_effects": effects, "_curves": curves}
    return found.publish(written, _verdicts(effects, nets)) + draw(out)


def rederived(out: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The tables that follow from the rows of OUT*.csv, by suffix, and the verdicts."""
    read = tables.written(out, "_curves")
    if "_curves" not in read:
        return {}, dict(lesion_rescue.verdicts(read[""]))
    rows = tables.unrounded(read[""].assign(dataset=read[""]["depth"]), largest=SHARES)
    effects = lesion_tables.compared(rows, METRICS)
    curves = with_intervals(read["_curves"])
    return {"_effects": effects, "_curves": curves}, _verdicts(effects, rows)


def _verdicts(effects: pd.DataFrame, nets: pd.DataFrame) -> dict[str, str]:
    return dict(lesion_tables.verdicts(effects)) | dict(lesion_tables.deeper(nets))


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv."""
    paths, read = [], tables.written(out, "_effects", "_curves")
    if "_effects" not in read:
        return lesion_figures.rescues(read[""], out)
    effects = read["_effects"]
    for suffix, (ylabel, names) in CURVES.items():
        paths += lesion_figures.lines(read["_curves"], f"{out}{suffix}", names, ylabel)
    paths += lesion_figures.trainability(effects, f"{out}_trainability")
    deepest = effects[(effects["depth"] == effects["depth"].max()) & (effects["norm"] == "bn")]
    costs = deepest[deepest["metric"].isin(FOREST)]
    costs = costs.assign(dataset=costs["metric"].map(FOREST) + f", depth {effects['depth'].max()}")
    return paths + plots.forest(costs, f"{out}_effects", label="rise of the error")
