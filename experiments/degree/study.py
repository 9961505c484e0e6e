"""Q8, Q21: of what degree are the functions that products learn, with how many samples, and how fast?

  python -m experiments.degree --smoke
  python -m experiments.degree

Teachers are parities of degree 1 to 4 on the 10-cube. Learning curves: the error by the number of samples, of the
infinitely wide net's kernel (measured, and by theory) and of the net by the standard recipe with clipped gradients
(R4), whose rate is tuned inside its grid per merge, degree and number of samples; from them the samples that a merge
needs for an error of --needed. Without clipping (R4u) it is a control: the largest stable rate then decides. Speed,
without clipping: the training error over the course, at one rate for all merges and at the same share of each net's
stability limit (measure.py). Degrees, with clipping: Chebyshev energy along lines between training points,
before and after training.
Without activations and norms a sum of affine maps is affine, and a product net of L blocks a polynomial of degree 2^L;
what can they learn, beside the same nets with ReLUs and without norms?

Writes OUT.csv (a row per replica and rung), OUT_tuning.csv, OUT_curves.csv, OUT_needed.csv, OUT_speed.csv,
OUT_energy.csv, OUT_linear.csv (nets without activations) and figures. Exit code 1: a cell failed; 2: bad input, in one
line; 128 + n: stopped by signal n.
"""

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from experiments.degree import figures as degree_figures
from experiments.degree import tables as degree_tables
from resjax.analysis import plots, tables
from resjax.config import ConfigError
from resjax.sweep import flags, measuring, study

MODULE = "experiments.degree"
D, TEST, BLOCKS = 10, 256, 2
POLYNOMIAL = ("add", "mul")  # without activations
SMOKE = {
    "merges": "mul", "degrees": (2,), "sizes": (64, 128), "seeds": 2, "epochs": 25, "width": 16, "rates": (0.01, 0.1),
    "allow_edge": True, "out": "results/degree_smoke",
}  # fmt: skip
Cell = tuple[dict, ConfigDict]  # what it is about, and its config


def main(
    argv: Sequence[str] | None = None,
    climb: measuring.Measure | None = None,
    look: measuring.Measure | None = None,
) -> int:
    """Runs the study; returns the exit code. The two replace the measurements of `regression.ladder` and `measure`."""
    return study.run(MODULE, argv, _parser(), partial(measured, climb, look))


def measured(climb: measuring.Measure | None, look: measuring.Measure | None, running: study.Study) -> list[Path]:
    """Measures learning curves, then speed and degrees of the nets at the rate that was picked, and reports."""
    from experiments.degree.measure import measure as of_degrees
    from resjax.regression import ladder

    args = running.args
    asked = configurations(args)
    options = {"test": TEST, "inits": 1, "rates": args.rates, "allow_edge": args.allow_edge}
    todo = {label: (config, options | {"rungs": _rungs(about)}) for label, (about, config) in asked.items()}
    curves = running.measure(todo, climb or ladder.measure, "curve")
    largest = {label: config for label, (about, config) in asked.items() if about["n"] == args.shown}
    options = {"test": TEST, "lines": args.lines, "share": args.share}
    rates = {label: degree_tables.chosen_rate(curves[label]["rows"]) for label in largest if label in curves}
    todo = {
        label: (largest[label], options | {"rate": rate})
        for label, rate in rates.items()
        if math.isfinite(rate)  # the others have no net to look at
    }
    measured = running.measure(todo, look or of_degrees, "degrees")
    if not curves or not measured:
        raise ConfigError("nothing could be measured; the reasons stand above")
    rows = _together({label: found["rows"] for label, found in curves.items()}, asked)
    speed, energy = (
        _together({label: found[name] for label, found in measured.items()}, asked) for name in ("speed", "energy")
    )
    return report(running, rows, speed, energy)


def _parser() -> argparse.ArgumentParser:
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/degree", seeds=8, width=128, merges="mul,mul_bn,mul_bn1,gate_sig,gate_sig_bn")
    p.add_argument("--degrees", type=flags.whole_numbers, default=(1, 2, 3, 4), metavar="N,N", help="1,2,3,4")
    p.add_argument("--sizes", type=flags.whole_numbers, default=(32, 64, 128, 256, 512), metavar="N,N")
    flags.add_rates(p)
    p.add_argument("--needed", type=float, default=0.5, metavar="E", help="error that needs samples; %(default)s")
    p.add_argument("--share", type=float, default=0.02, metavar="S", help="of the stability limit; %(default)s")
    p.add_argument("--lines", type=int, default=16, metavar="N", help="through the data, per split; %(default)s")
    return p


def configurations(args: argparse.Namespace) -> dict[str, Cell]:
    """The cells by label; sets args.shown, the number of samples that speed and degrees are told for.

    Raises ConfigError.
    """
    from resjax.models.merges import MERGES

    if min(args.sizes) < 32 or max(args.sizes) + TEST > 2**D:
        raise ConfigError(
            f"--sizes: from 32, a batch, to {2**D - TEST}: there are {2**D} points, {TEST} of them to test"
        )
    args.shown = max(size for size in args.sizes if size <= 256 or size == min(args.sizes))
    merges = dict.fromkeys(["add", *flags.merges(args.merges, MERGES)])
    plan = [(merge, "relu", "ln", clip, n) for clip, n, merge in itertools.product((1.0, 0.0), args.sizes, merges)]
    plan += [(merge, activation, "none", 1.0, args.shown) for merge in POLYNOMIAL for activation in ("relu", "none")]
    found = {}
    for degree, (merge, activation, norm, clip, n) in itertools.product(args.degrees, plan):
        about = {"degree": degree, "merge": merge, "activation": activation, "norm": norm, "clip": clip, "n": n}
        entries = {
            "dataset.name": f"cube{D}_degree{degree}", "dataset.train_size": n, "dataset.augment": "none",
            "dataset.crop_padding": 0, "model.name": "mlp", "model.depth": 2 * BLOCKS + 2, "loss.name": "mse",
            "model.activation": activation, "model.norm": norm, "batch_size": 32,
            "optimizer.clip_norm": clip,
            "epochs": max(1, (args.epochs or 100) * 256 // n),  # as many steps for all n
            "optimizer.learning_rate": 0.01,
        }  # fmt: skip
        flags.refuse(args, entries.keys() - {"epochs"})
        found[", ".join(f"{key} {value}" for key, value in about.items())] = (
            about,
            flags.config(args, "digits", merge, **entries),
        )
    return found


def _rungs(about: Mapping) -> tuple[str, ...]:
    return ("R0", "R4") if about["norm"] == "ln" and about["clip"] else ("R4",)


def _together(found: Mapping[str, list[dict]], asked: Mapping[str, Cell]) -> pd.DataFrame:
    return tables.with_numbers(
        pd.concat([pd.DataFrame(rows).assign(**asked[label][0]) for label, rows in found.items()], ignore_index=True)
    )


def report(running: study.Study, rows: pd.DataFrame, speed: pd.DataFrame, energy: pd.DataFrame) -> list[Path]:
    """Prints the verdicts, and writes the tables and figures."""
    from experiments.degree.measure import predicted

    args = running.args
    rows = rows.assign(rung=rows["rung"].mask((rows["rung"] == "R4") & (rows["clip"] == 0), "R4u"))
    relu = rows[rows["norm"] == "ln"]
    if not {"add"} < set(relu["merge"]):
        raise ConfigError("nothing to compare: add or all others failed; the reasons stand above")
    settings = relu[["merge", "degree"]].drop_duplicates()
    theory = pd.concat(
        [
            pd.DataFrame({"merge": merge, "degree": degree, "n": args.sizes, "error": curve})
            for merge, degree in settings.itertuples(index=False)
            for curve in [predicted(merge, BLOCKS, "ln", D, degree, list(args.sizes))]
        ],
        ignore_index=True,
    )
    about, clipped = degree_tables.ABOUT, energy["clip"] > 0
    written = {
        "": rows[rows["rung"] != "tuning"][[*about, "split", "rung", "error", "train_error", "rate", "stable"]],
        "_tuning": rows[rows["rung"] == "tuning"][[*about, "split", "rate", "error", "train_error"]],
        "_curves": degree_tables.curves(relu, theory),
        "_needed": degree_tables.needed(relu, theory, args.needed, args.shown),
        "_speed": degree_tables.compared(speed[speed["clip"] == 0]),
        "_energy": degree_tables.energies(
            energy[((energy["norm"] == "ln") & clipped) | (energy["activation"] == "none")]
        ),
        "_linear": degree_tables.without_activations(rows),
    }
    return running.publish(written, degree_tables.sentences(written, args.needed)) + draw(args.out)


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv."""
    read = tables.written(out, "_curves", "_needed", "_speed", "_energy")
    plan = {
        "_curves": ("_curves", degree_figures.curves),
        "_needed": ("_needed", partial(degree_figures.needed, level=flags.recorded(_parser(), out).needed)),
        "_speed": ("_speed", degree_figures.speed),
        "_energy": ("_energy", degree_figures.energies),
    }
    return plots.of_tables(read, out, plan)
