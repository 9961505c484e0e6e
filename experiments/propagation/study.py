"""What a merge does to signal and gradients before anything is learned (Q3, Q16), and what a zero says (Q18).

  python -m experiments.propagation --smoke
  python -m experiments.propagation

Q3: do BatchNorms on both sides with bias 1 (mul_bn1) make means 1 and gradients stable? ResNets of several depths and
a wide residual mlp, with BatchNorm and with LayerNorm, many seeds: moments of every block's output, and the gain of
gradient power per block, against mean-field theory (resjax/theory/mean_field.py); the scale g of mul_bn1 and mul_res is
swept in the mlp, and the literal relu(s*f) of a post-activation ResNet is looked at with either shortcut.
Q16: standard deviations forwards and backwards in plain stacks, by initialiser. Q18: zeros of ReLUs against units that
are never active, in the only nets that this study trains and in plain stacks.

Writes what was seen of every seed, OUT_rows.csv (a row per block), OUT_stacks.csv, OUT_activity.csv and OUT_losses.csv;
means with intervals, OUT.csv (a row per net), OUT_blocks.csv, OUT_literal.csv, OUT_initialisers.csv and OUT_zeros.csv;
and figures. Exit code 1: a cell failed; 2: bad input, in one line; 128 + n: stopped by signal n.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from experiments.propagation import figures as signal_figures
from experiments.propagation import tables as signal_tables
from resjax.analysis import plots, tables
from resjax.config import ConfigError
from resjax.sweep import flags, measuring, runs, study

MODULE = "experiments.propagation"
NORMS = ("bn", "ln")
SWEPT = ("mul_bn1", "mul_res")
IMAGES = {"resnet": 128, "mlp": 512}  # that BatchNorm takes its statistics of; of a resnet as in training
SMOKE = {
    "merges": "mul_bn1", "depths": (8,), "mlp_width": 64, "mlp_depth": 6, "scales": (0.3,), "literal_depth": 8,
    "trained": "add", "seeds": 2, "epochs": 2, "out": "results/signal_smoke",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A net that is looked at before training.

    Attributes:
      part: of the study: depth, wide, scale or literal.
      config: of the net.
    """

    part: str
    config: ConfigDict


def main(
    argv: Sequence[str] | None = None,
    train: runs.Train | None = None,
    measure: measuring.Measure | None = None,
) -> int:
    """Runs the study; returns the exit code. `train` and `measure` replace the trainer and the measurement."""
    return study.run(MODULE, argv, _parser(), seen, train, measure)


def seen(running: study.Study) -> list[Path]:
    """Trains the few nets whose zeros are counted, measures those and all untrained ones, and reports."""
    from experiments.propagation.measure import measure

    todo = untrained(running.args)
    measurements = asked(todo, running.train(trained(running.args)))
    jobs = {
        f"{kind}, {k}": (c, {"kind": kind, "images": IMAGES[c.model.name]})
        for kind, own in measurements.items()
        for k, c in own.items()
    }
    measured = running.measure(jobs, measure, "init")
    found = {
        kind: {k: measured[f"{kind}, {k}"] for k in own if f"{kind}, {k}" in measured}
        for kind, own in measurements.items()
    }
    if not all(found.values()):
        raise ConfigError("too little could be measured; the reasons stand above")
    rows, stacks = rows_of(todo, found["signal"], found["safe"]), stacks_of(running.args.seeds)
    merges = {label: config.model.merge for label, config in measurements["trained"].items()}
    of_seeds = {"_rows": rows, "_stacks": stacks, "_activity": zero_rows(found, merges, stacks)}
    of_seeds["_losses"] = losses_of(todo, found["untrained"])
    of_all, said = derived(of_seeds)
    return running.publish(of_all | of_seeds, said) + draw(running.args.out)


def _parser() -> argparse.ArgumentParser:
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/signal", seeds=6)
    p.add_argument("--depths", type=flags.whole_numbers, default=(8, 20, 32, 56), metavar="N,N", help="of the ResNets")
    p.add_argument("--mlp_width", type=int, default=512, metavar="N", help="of the residual mlps; %(default)s")
    p.add_argument("--mlp_depth", type=int, default=14, metavar="N", help="two layers a block, and two; %(default)s")
    p.add_argument(
        "--scales", type=flags.numbers, default=(0.1, 0.3, 0.5, 0.7, 1.0, 1.5), metavar="G,G", help="g swept"
    )
    p.add_argument("--literal_depth", type=int, default=20, metavar="N", help="of relu(s*f); %(default)s")
    p.add_argument("--trained", default="add,mul_bn1", metavar="A,B", help="merges trained for Q18; %(default)s")
    return p


def untrained(args: argparse.Namespace) -> dict[str, Cell]:
    """The nets that are looked at before training, by label. Raises ConfigError."""
    from resjax.models.build import check
    from resjax.models.merges import MERGES

    dataset, *more = flags.datasets(args.datasets)
    if more:
        raise ConfigError("--datasets: one at a time")
    merges = flags.merges(args.merges, MERGES)
    # Nearly independent inputs of equal norm, as theory has them.
    mlp = {"dataset.name": "cube12_degree2", "model.width": args.mlp_width, "model.depth": args.mlp_depth}
    literal = {"model.depth": args.literal_depth, "model.post_activation": "relu"}
    each, once = itertools.product, "cube_degree2"
    asked = [("depth", dataset, m, {"model.norm": n, "model.depth": d}) for m, n, d in each(merges, NORMS, args.depths)]
    asked += [("wide", once, m, mlp | {"model.norm": n}) for m, n in each(merges, NORMS)]
    asked += [
        ("scale", once, m, mlp | {"model.norm": n, "model.scale": g}) for m, n, g in each(SWEPT, NORMS, args.scales)
    ]
    asked += [("literal", dataset, "mul", literal | {"model.shortcut": option}) for option in "AB"]
    found = {}
    for part, preset, merge, entries in asked:
        config = flags.config(args, preset, merge, **entries)
        check(config.model)
        words = ", ".join(f"{key.removeprefix('model.')} {value}" for key, value in entries.items())
        found[f"{part}: {merge}, {words}"] = Cell(part, config)
    return found


def trained(args: argparse.Namespace) -> dict[str, ConfigDict]:
    """The nets that are trained, by label. Raises ConfigError."""
    from resjax.models.merges import MERGES

    dataset = flags.datasets(args.datasets)[0]
    return {merge: flags.config(args, dataset, merge) for merge in flags.merges(args.trained, MERGES)}


def asked(todo: Mapping[str, Cell], outcomes: Sequence[runs.Outcome]) -> dict[str, dict[str, ConfigDict]]:
    """Look of `experiments.propagation.measure.measure` -> label -> config."""
    nets = {label: cell.config for label, cell in todo.items()}
    finished = {f"ResNet {o.label}": o.config for o in outcomes if o.run_dir}
    literal = {label: config for label, config in nets.items() if todo[label].part == "literal"}
    swept = {label: config for label, config in nets.items() if todo[label].part == "scale"}
    return {"signal": nets, "safe": swept, "untrained": literal | finished, "trained": finished}


Measured = Mapping[str, Mapping[str, list[dict]]]  # label -> table name -> rows


def rows_of(todo: Mapping[str, Cell], measured: Measured, safe: Measured) -> pd.DataFrame:
    """The measured rows of all cells, with what names a cell, the block's number, and of theory predicted_* and, where
    a scale is swept, safe_depth.
    """
    found = []
    for label, of_cell in measured.items():
        model, rows = todo[label].config.model, pd.DataFrame(of_cell["rows"])
        about = {name: model[name] for name in ("merge", "norm", "depth", "shortcut")}
        about |= {"part": todo[label].part, "scale": float("nan") if model.scale is None else model.scale}
        about["safe_depth"] = safe[label]["rows"][0]["safe_depth"] if label in safe else None
        theory = pd.DataFrame(of_cell["theory"] or {"block": rows["block"].unique()}).set_index("block")
        rows = rows.join(theory.add_prefix("predicted_"), on="block")
        number = {block: i for i, block in enumerate(rows["block"].unique(), 1)}
        found.append(rows.assign(**about, number=rows["block"].map(number)))
    table = pd.concat(found, ignore_index=True)
    numbers = table.columns.difference(["merge", "norm", "shortcut", "part", "block"])
    predicted = [f"predicted_{name}" for name in ("mean", "power", "kurtosis", "typical", "alive", "gain")]
    return table.astype(dict.fromkeys(numbers, float)).reindex(columns=[*dict.fromkeys([*table.columns, *predicted])])


def zero_rows(found: Mapping[str, Mapping], merges: Mapping[str, str], stacks: pd.DataFrame) -> pd.DataFrame:
    """The zeros of every ReLU: of the trained cells before and after training, and of plain stacks at He's variance."""
    out = []
    for moment in ("untrained", "trained"):
        for label in [label for label in found["trained"] if label in found["untrained"]]:
            rows = pd.DataFrame(found[moment][label]["rows"])
            if len(rows):  # none if all replicas diverged
                about = {"net": f"{label}, {moment}", "merge": merges[label], "moment": moment}
                out.append(rows.assign(**about, number=rows.groupby("seed").cumcount() + 1))
    plain = stacks[(stacks["activation"] == "relu") & (stacks["initializer"] == "He")]
    out.append(plain.assign(net="plain ReLU stack", merge="", moment="", number=plain["layer"]))
    return pd.concat(out)[["net", "merge", "moment", "number", "layer", "seed", "zero", "never_active"]]


def stacks_of(seeds: int) -> pd.DataFrame:
    """`experiments.propagation.stack` of every initialiser, linear and with ReLU, with seed and the predicted ratio."""
    import jax

    from experiments.propagation.stack import INITIALIZERS, predicted_ratio, stack

    found = [
        stack(name, activation, jax.random.key(seed)).assign(
            initializer=name, activation=activation, seed=seed, predicted=predicted_ratio(name, activation)
        )
        for name, activation, seed in itertools.product(INITIALIZERS, ("none", "relu"), range(seeds))
    ]
    return pd.concat(found, ignore_index=True)


def losses_of(todo: Mapping[str, Cell], untrained: Measured) -> pd.DataFrame:
    """Of the literal product: shortcut (the option), seed, loss and guessing."""
    found = [
        pd.DataFrame(of["losses"]).assign(shortcut=todo[k].config.model.shortcut)
        for k, of in untrained.items()
        if k in todo
    ]
    return (
        pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["seed", "loss", "guessing", "shortcut"])
    )


def derived(seen: Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Suffix -> table with intervals, and the verdicts; from what was seen of every seed: `_rows` of `rows_of`,
    `_stacks` of `stacks_of`, `_activity` of `zero_rows` and `_losses` of `losses_of`.
    """
    rows, zeros, losses = seen["_rows"], seen["_activity"], seen["_losses"]
    blocks, nets = signal_tables.blocks(rows), signal_tables.cells(signal_tables.per_seed(rows))
    theory = rows[[*signal_tables.CELL, "safe_depth"]].drop_duplicates()
    nets = nets.merge(theory, how="left", on=signal_tables.CELL, validate="1:1")
    literal, ratios = blocks[blocks["part"] == "literal"], signal_tables.ratios(seen["_stacks"])
    said = {
        "Q3": signal_tables.verdict_gradients(nets),
        "theory": signal_tables.verdict_theory(nets),
        "relu(s*f)": signal_tables.verdict_literal(literal, dict(iter(losses.groupby("shortcut")))),
        "Q16": signal_tables.verdict_initialisers(ratios),
        "Q18": signal_tables.verdict_zeros(zeros),
    }
    found = {"": nets, "_blocks": blocks, "_literal": literal, "_initialisers": ratios}
    return found | {"_zeros": signal_tables.zeros(zeros)}, said


def rederived(out: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """What is `derived` from the tables OUT*.csv."""
    return derived(tables.written(out, "_rows", "_stacks", "_activity", "_losses"))


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv."""
    read = tables.written(out, "_blocks", "_literal", "_stacks", "_zeros")
    plan = {
        "_blocks": ("_blocks", signal_figures.blocks),
        "_gains": ("", signal_figures.gains),
        "_scales": ("", signal_figures.scales),
        "_literal": ("_literal", signal_figures.literal),
        "_initialisers": ("_stacks", signal_figures.stacks),
        "_zeros": ("_zeros", signal_figures.zeros),
    }
    return plots.of_tables(read, out, plan)
