"""Q26: does a product help on full CIFAR, with many classes, few images, more epochs, more depth?

  python -m experiments.images --smoke
  python -m experiments.images --parts=A                 # hours; continues after a stop, on another machine too
  python -m experiments.images --finished                # tables and figures of what is finished; trains nothing
  python -m experiments.images --design=products --gains --out=results/images/products   # Q27: depth
  python -m experiments.images --design=gpu --minutes=12 --out=results/images/gpu    # what fits

The plan is experiments/images/prereg.md, the parts are experiments/images/plan.py. Every arm is compared with its
baseline on the same seeds, in the logit of the final test accuracy (and in points, test loss and calibration error),
each at a learning rate that was chosen inside a grid, on a validation split, with other seeds.

What a finished run leaves in --archive (its config, origin, metrics and scores; no weights) is what counts as finished:
commit it, and another machine goes on from there.

Writes OUT.csv (a row per replica), OUT_tuning.csv, OUT_differences.csv, OUT_contrasts.csv, OUT_curves.csv,
OUT_reached.csv (epochs to the baseline's loss), OUT_around.csv (rates beside the picked ones, at full length),
OUT_depths.csv (what depth costs), OUT_gains.csv (gain of gradient power per block at initialisation, and by theory),
OUT_foretold.csv (do the gains order what depth costs?), OUT_kernels.csv, OUT_knew.csv (do the kernels order the arms?)
and figures.
Exit code 1: a cell failed; 2: bad input, in one line; 128 + n: stopped by signal n.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments.images import figures
from experiments.images import tables as images
from experiments.images.archive import Archive
from experiments.images.plan import DESIGNS, RECIPE, Design, Plan
from experiments.images.training import Work
from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.sweep import flags, measuring, runs, study

MODULE = "experiments.images"
SMOKE = {
    "design": "smoke", "width": 8, "archive": "", "allow_edge": True, "kernels": True, "gains": True,
    "out": "results/images_smoke",
}  # fmt: skip
DECIDED = ("seed", "seeds", "epochs", "model.depth", "dataset.train_size", "optimizer.learning_rate")
SUFFIXES = ("_tuning", "_differences", "_contrasts", "_curves", "_reached", "_depths", "_gains", "_around")
GAIN_SEEDS, GAIN_IMAGES = 6, 128


def main(
    argv: Sequence[str] | None = None, train: runs.Train | None = None, measure: measuring.Measure | None = None
) -> int:
    """Runs the study; returns the exit code. `train` and `measure` replace the trainer and the measurement."""
    return study.run(MODULE, argv, _parser(), body, train, measure)


def _parser() -> argparse.ArgumentParser:
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/images/images")
    p.add_argument("--design", default="cpu", metavar="NAME", help=f"of {', '.join(DESIGNS)}; %(default)s")
    p.add_argument("--parts", default="all", metavar="A,B", help="of the design, in its order; %(default)s")
    p.add_argument("--archive", default="results/images/runs", metavar="DIR", help="of finished runs; %(default)s")
    p.add_argument("--kernels", action="store_true", help="also the tangent kernels at initialisation")
    p.add_argument("--gains", action="store_true", help="also the gain per block at initialisation, by depth")
    p.add_argument("--finished", action="store_true", help="train nothing: tables of what is finished")
    p.add_argument("--minutes", type=float, metavar="N", help="start no run that would end later; else no limit")
    p.add_argument("--allow_edge", action="store_true", help="a rate at the edge of those tried may be chosen")
    return p


def body(running: study.Study) -> list[Path]:
    """Chooses the rates and trains, part after part; writes tables and figures after each."""
    args = running.args
    plan, parts = planned(args)
    work = Work(running, plan, Archive(Path(args.archive or args.workdir), Path(args.workdir)))
    paths: list[Path] = []
    if not args.finished:
        work.estimate(parts)
    for name in parts:
        work.part(name)
        if work.reported:
            paths = report(work)
    if not paths:
        raise ConfigError(f"{', '.join(parts)}: no run is finished")
    if args.gains:
        paths = report(work, started(work, parts))
    return paths + (known(work) if args.kernels else [])


def planned(args: argparse.Namespace) -> tuple[Plan, list[str]]:
    """The plan and the names of the parts. Raises ConfigError."""
    if args.design not in DESIGNS:
        raise ConfigError(f"--design: unknown {args.design!r}; choose from {', '.join(DESIGNS)}")
    flags.refuse(args, DECIDED)
    design = DESIGNS[args.design]
    names = list(design.parts)
    parts = names if args.parts == "all" else sorted(flags.chosen("--parts", args.parts, names), key=names.index)
    for name in parts:
        if (needed := design.parts[name].chosen_by) and needed not in parts:
            raise ConfigError(f"--parts: {name} takes its rates from {needed}; name both")
    if args.gains and not any(design.parts[name].untrained for name in parts):
        raise ConfigError(f"--gains: {', '.join(parts)}: no part measures it")
    recipe = {key: value for key, value in RECIPE.items() if key not in flags.given(args)}

    def make(preset: str, merge: str, **entries):
        return flags.config(args, preset, merge, **recipe | entries)

    return Plan(design, make), parts


def report(work: Work, more: Mapping[str, pd.DataFrame] | None = None) -> list[Path]:
    """Writes the tables and figures of what is finished, and `more`; prints the verdicts; returns the paths."""
    design, running = work.plan.design, work.running
    written, said = derived(images.rows(_reported(work, around=False)), design)
    course = images.courses(_reported(work, around=False))
    written |= {
        **(more or {}),
        "_tuning": images.tuning(work.tried, work.rates),
        "_curves": images.curves(course),
        "_reached": images.reached(course),
    }
    if "_depths" in written and "_gains" in written:
        written["_foretold"] = images.foretold(written["_depths"], written["_gains"])
    if around := _reported(work, around=True):
        written["_around"] = images.around(around, work.rates)
    paths = running.publish(written, said)
    return paths + draw(running.args.out)


def started(work: Work, parts: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The table, by suffix, of the gain per block at initialisation where a part asks for it."""
    from experiments.images.gains import measure

    nets = {(name, key): net for name in parts for key, net in work.plan.untrained_deep(name, GAIN_SEEDS).items()}
    labels = {at: f"{at[0]}, {at[1].dataset}, {at[1].arm}, depth {at[1].depth}" for at in nets}
    options = {"images": GAIN_IMAGES}
    found = work.running.measure({labels[at]: (net, options) for at, net in nets.items()}, measure, "gain")
    return {"_gains": images.gains({at: found[label] for at, label in labels.items() if label in found})}


def known(work: Work) -> list[Path]:
    """Measures the tangent kernels at initialisation, and whether they knew the final errors; returns the paths."""
    from experiments.images.kernels import measure

    running, plan, rows = work.running, work.plan, []
    for kernel in plan.design.kernels:
        nets = plan.untrained(kernel)
        options = {"mode": kernel.mode, "pool": kernel.pool, "n": kernel.n}
        todo = {f"{key.dataset}, {key.arm}, {kernel.mode} kernel": (config, options) for key, config in nets.items()}
        found = running.measure(todo, measure, "kernel")
        rows += [
            pd.DataFrame(found[label]["rows"]).assign(set=key.dataset, arm=key.arm)
            for label, key in zip(todo, nets, strict=True)
            if label in found
        ]
    table = pd.concat(rows, ignore_index=True)
    final = images.rows(_reported(work, around=False))
    return running.publish({"_kernels": table, "_knew": images.knew(table, final, plan.design)}, {})


def _reported(work: Work, *, around: bool) -> list:
    parts = work.plan.design.parts
    return [pair for pair in work.reported if parts[pair[0].about["part"]].around == around]


def derived(rows: pd.DataFrame, design: Design) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The tables that follow from the rows of the replicas, by suffix, and the verdicts."""
    differences, contrasts = images.differences(rows), images.contrasts(rows, design)
    written = {"": rows, "_differences": differences, "_contrasts": contrasts}
    said = images.verdicts(differences, contrasts, design)
    depths = images.depths(rows)
    if len(depths):
        written["_depths"], said = depths, said | images.stand(depths)
    return written, said


def rederived(out: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The tables that follow from the rows in OUT.csv, by suffix, and the verdicts."""
    written, said = derived(tables.read_csv(f"{out}.csv"), DESIGNS[flags.recorded(_parser(), out).design])
    return {suffix: table for suffix, table in written.items() if suffix}, said


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables of a study."""
    return figures.draw(tables.written(out, *SUFFIXES), out)
