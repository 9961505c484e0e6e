"""Q2: is a merge's difference to the sum bias at initialisation, finite width, feature learning, or optimisation?

  python -m experiments.cause --smoke
  python -m experiments.cause                                                          # the cube, on a laptop
  python -m experiments.cause --designs=axes --out=results/cause/axes                  # other widths and depths
  python -m experiments.cause --designs=far --out=results/cause/far                    # width 512, eight blocks
  python -m experiments.cause --designs=digits,cifar10 --out=results/cause/images --launcher=submitit
  python -m experiments.cause --designs=battery --out=results/cause/battery
  python -m experiments.cause --designs=rates --out=results/cause/rates

Every task is learned five times with the same weights, points and batches: by the infinitely wide net's kernel (R0), by
the net's own kernel (R1), linearised (R2), by the net itself (R3, at several scales of laziness, matched over merges),
and by the standard recipe, with clipped gradients and a rate tuned per merge (R4); see resjax/regression/ladder.py. The
difference to `add` at R4 is the sum of the steps between. Which of them counts as the cause is decided by rules that
were fixed before: experiments/cause/prereg.md. In the reference setting R4 is also run without LayerNorm and without
clipping.

The battery (experiments/cause/battery.py) intervenes instead: forward of one merge and backward of another, identity at
initialisation, other norms and targets, transplants.

Tasks: parities of degree 1 to 4 on the 10-cube; images with targets of known degree ("eigen": eigenvectors of the
additive net's kernel, "hermite": polynomials of the principal components) and their classes. LayerNorm residual mlps.

Writes OUT.csv (a row per replica and rung), OUT_differences.csv, OUT_interaction.csv, OUT_scale.csv (error by alpha
sqrt(K)), OUT_stability.csv (R4 with and without norm and clipping), OUT_verdicts.csv, OUT_tuning.csv and figures; the
battery OUT.csv (a row per arm), OUT_tuning.csv and a figure. Exit code 1: a cell failed, such as one whose best rate is
at an edge; 2: bad input, in one line; 128 + n: stopped by signal n.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from experiments.cause import figures as cause_figures
from experiments.cause import rates as cause_rates
from experiments.cause import stability
from experiments.cause import tables as cause
from experiments.cause.battery import ARMS
from experiments.cause.battery import table as battery
from resjax import config as config_lib
from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.regression.tasks import OWN, Target
from resjax.sweep import flags, measuring, study

MODULE = "experiments.cause"
BASELINE = "add"
RUNGS = ("R0", "R1", "R2", "R3", "R4")  # of `resjax.regression.ladder`
SMOKE = {
    "designs": "smoke", "merges": "mul", "seeds": 3, "inits": 1, "epochs": 20, "rates": (0.01, 0.1), "allow_edge": True,
    "out": "results/cause_smoke",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What is learned of a data set; its name in the tables is `digits:eigen4`, or the data set alone."""

    dataset: str
    target: Target = OWN

    def __str__(self) -> str:
        return self.dataset if self.target == OWN else f"{self.dataset}:{self.target}"


@dataclass(frozen=True)
class Part:
    """Some settings of a design: tasks x widths x numbers of blocks, with the rungs that are climbed there.

    `merges` and `inits`: fewer than the command line has. `recipes`: of R4, of `RECIPES`; those but the first have no
    other rung, and one initialisation per split.
    """

    tasks: tuple[Task, ...]
    n: int = 256
    test: int = 256
    widths: tuple[int, ...] = (128,)
    blocks: tuple[int, ...] = (2,)
    rungs: tuple[str, ...] = RUNGS
    alphas: tuple[float, ...] = (0.125, 1, 64)
    unmatched: tuple[float, ...] = (1,)
    merges: tuple[str, ...] = ()
    inits: int = 0
    recipes: tuple[str, ...] = ("",)


ALONE = ("axes", "far", "battery", "rates")  # designs with tables of their own
RECIPES = {  # name of the arm -> changes of the config
    "": {},
    "no clipping": {"optimizer.clip_norm": 0.0},
    "no norm": {"model.norm": "none"},
    "no norm, no clipping": {"model.norm": "none", "optimizer.clip_norm": 0.0},
}
_CONTRAST = (Task("cube10_degree3"), Task("cube10_degree2"))  # of the interaction
_OTHERS = (Task("cube10_degree4"), Task("cube10_degree1"))
_SCALES = (0.03125, 0.0625, 0.125, 0.25, 0.5, 1, 2, 4, 16, 64)
_SOME = ("add", "mul", "gate_sig_bn")  # on the axes


def _images(name: str) -> tuple[Part, ...]:
    return (
        Part((Task(name, Target("classes")),), n=64, test=64),
        Part(tuple(Task(name, Target(*of)) for of in (("eigen", 4), ("eigen", 32), ("hermite", 2), ("hermite", 3)))),
    )


DESIGNS: dict[str, tuple[Part, ...]] = {
    "cube": (Part((*_CONTRAST, *_OTHERS), alphas=_SCALES, recipes=tuple(RECIPES)),),
    "axes": (
        Part(_CONTRAST, merges=_SOME, inits=1),
        Part(_CONTRAST, widths=(64, 256), merges=_SOME, inits=1),
        Part(_CONTRAST, blocks=(4,), merges=_SOME, inits=1),
    ),
    "far": (  # the axes' ends, which take an hour
        Part(_CONTRAST, merges=_SOME, inits=1),
        Part(_CONTRAST, widths=(512,), merges=_SOME, inits=1),
        Part(_CONTRAST, blocks=(8,), merges=_SOME, inits=1),
    ),
    "digits": _images("digits"),
    "cifar10": _images("cifar10"),
    "cifar100": (_images("cifar100")[1],),  # the full kernel of 100 classes is for 10,000 pairs
    "smoke": (
        Part(_CONTRAST, n=64, test=64, widths=(16,), recipes=("", "no norm")),
        Part(_CONTRAST[:1], n=64, test=64, widths=(32,)),
    ),
}


@dataclass(frozen=True)
class Cell:
    """One merge on one setting.

    Attributes:
      about: the setting, as `cause.SETTING` names it, the merge, and the arm of the battery or "".
      config: of the net and its recipe.
      options: of `resjax.regression.ladder.measure`.
    """

    about: Mapping
    config: ConfigDict
    options: Mapping

    @property
    def key(self) -> tuple:
        """Equal for cells that are measured alike."""
        return config_lib.hash8(self.config), *self.options.items()


def main(argv: Sequence[str] | None = None, measure: measuring.Measure | None = None) -> int:
    """Runs the study; returns the exit code. `measure` replaces that of `resjax.regression.ladder`."""
    return study.run(MODULE, argv, _parser(), measured, measure=measure)


def measured(running: study.Study) -> list[Path]:
    """Measures every cell of the designs, once where cells are measured alike, and reports."""
    from resjax.regression import ladder

    asked = configurations(running.args)
    at_rates = running.args.designs == "rates"
    first: dict[tuple, str] = {}
    for label, cell in asked.items():
        first.setdefault(cell.key, label)
    todo = {label: (asked[label].config, asked[label].options) for label in first.values()}
    rungs = running.measure(todo, cause_rates.measure if at_rates else ladder.measure, "rungs")
    if not rungs:
        raise ConfigError("nothing could be measured; the reasons stand above")
    found = {label: rungs[first[cell.key]] for label, cell in asked.items() if first[cell.key] in rungs}
    return (_report_rates if at_rates else report)(rows_of(asked, found), running)


def _parser() -> argparse.ArgumentParser:
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/cause/cause", seeds=8)
    p.add_argument("--designs", default="cube", metavar="A,B", help=f"of {', '.join(DESIGNS)}; %(default)s")
    p.add_argument("--inits", type=int, default=2, metavar="N", help="initialisations per split; %(default)s")
    flags.add_rates(p)
    return p


def configurations(args: argparse.Namespace) -> dict[str, Cell]:
    """The cells, by label. Raises ConfigError."""
    from resjax.models.merges import MERGES

    merges = dict.fromkeys([BASELINE, *flags.merges(args.merges, MERGES)])
    found: dict[str, Cell] = {}
    for name in args.designs.split(","):
        if name in ALONE and args.designs != name:
            raise ConfigError(f"--designs={args.designs}: {name} goes alone, its tables are others")
        if name in OTHERS:
            found |= OTHERS[name](args)
        elif name not in DESIGNS:
            raise ConfigError(f"--designs: unknown {name!r}; choose from {', '.join([*DESIGNS, *OTHERS])}")
        for part in DESIGNS.get(name, ()):
            some = [merge for merge in merges if merge in (part.merges or merges)]
            plan = itertools.product(part.tasks, part.recipes, part.widths, part.blocks, some)
            for task, recipe, width, blocks, merge in plan:
                cell = _cell(args, part, task, width, blocks, merge, **RECIPES[recipe])
                if recipe:
                    few = {"rungs": ("R4",), "inits": 1}
                    cell = replace(cell, about={**cell.about, "arm": recipe}, options={**cell.options, **few})
                words = [merge, *(f"{key} {cell.about[key]}" for key in cause.SETTING), recipe]
                found[", ".join(filter(None, words))] = cell
    return found


def _battery(args: argparse.Namespace) -> dict[str, Cell]:
    found = {}
    part = Part(_CONTRAST, rungs=("R4",))
    for task, (name, arm) in itertools.product(part.tasks, ARMS.items()):
        for merge in (arm.merge, BASELINE):
            learned = Task(arm.task or task.dataset, arm.target)
            cell = _cell(args, part, learned, 128, 2, merge, **arm.entries)
            about = {**cell.about, "task": str(task), "arm": name}
            options = cell.options | ({} if arm.metric == "error" else {"choose": arm.metric})
            found[f"{task}, {name}: {merge}"] = Cell(about, cell.config, options)
    return found


def _at_equal_rates(args: argparse.Namespace) -> dict[str, Cell]:
    """The core merges at every rate of `cause_rates.RATES`, at degrees 3 and 4."""
    from resjax.models.merges import MERGES

    merges, found = dict.fromkeys([BASELINE, *flags.merges(args.merges, MERGES)]), {}
    part = Part((_CONTRAST[0], _OTHERS[0]))
    for task, (arm, rates), merge in itertools.product(part.tasks, cause_rates.RATES.items(), merges):
        cell = _cell(args, part, task, 128, 2, merge, **RECIPES[arm])
        found[", ".join(filter(None, [merge, str(task), arm]))] = replace(
            cell, about={**cell.about, "arm": arm}, options={"test": part.test, "rates": rates}
        )
    return found


OTHERS = {"battery": _battery, "rates": _at_equal_rates}  # designs of other cells


def _cell(args: argparse.Namespace, part: Part, task: Task, width: int, blocks: int, merge: str, **changes) -> Cell:
    entries = {
        "dataset.name": task.dataset, "dataset.train_size": part.n,
        "dataset.augment": "none", "dataset.crop_padding": 0,
        "model.name": "mlp", "model.depth": 2 * blocks + 2, "model.width": width, "model.norm": "ln",
        "loss.name": "mse", "batch_size": 32, "epochs": args.epochs or 100, "optimizer.learning_rate": 0.1,
        "optimizer.clip_norm": 1.0,
    }  # fmt: skip
    flags.refuse(args, entries.keys() - {"epochs"} | changes.keys())
    config = flags.config(args, "digits", merge, **entries | changes)
    rungs = tuple(rung for rung in part.rungs if rung != "R0" or _has_infinite_kernel(merge))
    options = {
        "rungs": rungs, "test": part.test, "inits": part.inits or args.inits, "alphas": part.alphas,
        "unmatched": part.unmatched, "rates": args.rates, "allow_edge": args.allow_edge, "target": task.target,
    }  # fmt: skip
    about = {"task": str(task), "n": part.n, "blocks": blocks, "width": width, "merge": merge, "arm": ""}
    return Cell(about, config, options)


@cache
def _has_infinite_kernel(merge: str) -> bool:
    from resjax.ntk.infinite import merge_kernel

    try:
        merge_kernel(merge, 1, norm="ln")
    except ConfigError:
        return False
    return True


def rows_of(asked: Mapping[str, Cell], found: Mapping[str, Mapping[str, list[dict]]]) -> pd.DataFrame:
    """A row per replica and rung, with the setting and the merge."""
    frames = [pd.DataFrame(of_cell["rows"]).assign(**asked[label].about) for label, of_cell in found.items()]
    table = pd.concat(frames, ignore_index=True)
    numbers = ["alpha", "own_alpha", "kernel", "error", "train_error", "steps", "moved", "rate", "stable"]
    table = table.astype(dict.fromkeys(set(numbers) & set(table), float))
    columns = [*cause.SETTING, "arm", "merge", "split", "init", "rung", *numbers]
    return table[[column for column in columns if column in table]]


def report(rows: pd.DataFrame, running: study.Study) -> list[Path]:
    """Prints the verdicts, and writes the tables and figures."""
    if set(rows["arm"]) <= set(ARMS):
        return _report_battery(rows, running)
    ladder = rows[rows["arm"] == ""]
    D = cause.differences(ladder, BASELINE)
    wide = cause.by_rung(D)
    gates = cause.gate(ladder)
    written = {
        "": rows[rows["rung"] != "tuning"],
        "_tuning": _tuning(rows),
        "_differences": cause.estimates(wide, gates),
        "_scale": cause.by_scale(ladder, D),
        "_stability": stability.table(rows, BASELINE),
        "_gate": gates,
    }
    contrast = [str(task) for task in _CONTRAST]
    if set(contrast) <= set(D["task"]):
        written["_interaction"] = cause.interaction(wide, *contrast)
    written["_verdicts"] = cause.verdicts(wide, D, written["_gate"])
    of = (written.get(name) for name in ("_differences", "_verdicts", "_interaction", "_gate"))
    sentences = cause.sentences(*of) | stability.sentences(written["_stability"])
    return running.publish(written, sentences) + draw(running.args.out)


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv."""
    read = tables.written(out, "_differences", "_scale", "_interaction", "_tuning")
    if "supports" in read[""]:
        return cause_figures.battery(read[""], out)
    if "median" in read[""]:  # at equal rates
        return []
    paths = cause_figures.decomposition(read["_differences"], f"{out}_decomposition")
    paths += cause_figures.by_scale(read["_scale"], f"{out}_scale")
    paths += cause_figures.by_rate(read["_tuning"], f"{out}_rates")
    paths += cause_figures.axes(read["_differences"], f"{out}_axes")
    if "_interaction" in read:
        paths += cause_figures.interaction(read["_interaction"], f"{out}_interaction")
    return paths


def _report_battery(rows: pd.DataFrame, running: study.Study) -> list[Path]:
    arms = battery(rows)
    if arms.empty:
        raise ConfigError("no arm has both of its nets; the reasons stand above")
    for row in arms.to_dict("records"):
        text = (
            f"{row['task']}, {row['arm']}: {row['metric']} {cause.in_words(row)}, {row['supports'] or 'for comparison'}"
        )
        running.console.print(text, markup=False, highlight=False)
    return running.publish({"": arms, "_tuning": _tuning(rows)}, {}) + draw(running.args.out)


def _report_rates(rows: pd.DataFrame, running: study.Study) -> list[Path]:
    found = cause_rates.table(rows)
    return running.publish({"": found, "_nets": rows}, cause_rates.sentences(found))


def _tuning(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[rows["rung"] == "tuning", [*cause.SETTING, "arm", "merge", "split", "rate", "error", "train_error"]]
