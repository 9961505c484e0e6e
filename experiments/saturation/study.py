"""Q5, Q6, Q12: do gates saturate, what else makes them feel under-trained, and what do masks look at?

  python -m experiments.saturation --smoke
  python -m experiments.saturation

Every cell is a ResNet-8 on digits; seeds are paired over cells. The parts (--parts):
  gates     all gates and attentions of --merges, their saturation and gradients looked at during training
  controls  add, gate_sig and gate_sig_bn with a larger rate in the branch, and with a ReLU after the merge
  shape     gates of the values 1/2 and 1 and the slopes 1/4 and 1/2 at 0, in all pairs
  rates     learning rate x schedule for add and both: is a gate's rate only too small?
  number    gates in some blocks only, of all granularities or of the channels
  masks     what the masks of trained products, gates and attentions look at

Explanations of Q5 stand against each other. Saturation: a good part of the gate's values lies at an asymptote. Small
slope: none does, but a gate passes less of the gradient on, at init .212 of its amplitude; then a steeper gate closes
the gap to `add`, or a rate 1/.212 = 4.7 times as large behind the gate the gap to an `add` whose branch has that rate
too. Small value: a gate of 1/2 halves what passes; then one of 1 closes the gap. Sparsification: a ReLU after the merge
kills units; then dropping it closes the gap that is there with it. What "closes" is, and who is
"supported", is said in experiments/saturation/tables.py: `hypotheses`.

Writes OUT.csv (a row per cell and seed), OUT_gates.csv (what the probe saw), OUT_course.csv, OUT_effects.csv,
OUT_hypotheses.csv, OUT_shape.csv, OUT_rates.csv, OUT_masks.csv, OUT_maps.csv, OUT_costs.csv, and figures.
Exit code 1: a cell failed; 2: bad input, in one line; 128 + n: stopped by signal n.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.saturation import figures, verdicts
from experiments.saturation import tables as saturation
from experiments.saturation.cells import (
    BASELINE,
    COUNTED,
    MERGES,
    PARTS,
    configurations,
    cures,
    pairs,
    parts,
    words,
)
from experiments.saturation.gates import SHAPES, register
from resjax import config as config_lib
from resjax.analysis import tables
from resjax.analysis.plots import of_tables
from resjax.sweep import flags, measuring, runs, study

MODULE = "experiments.saturation"
COSTED = ("add", "mul", "gate_sig", "se", "cbam", "eca", "simam", "gate_granularity")
EARLY = 5  # epochs in which being under-trained shows
IMAGES = 16  # whose masks are looked at
SMOKE = {  # an mlp compiles in a third of the time, but has no maps, and so no masks
    "merges": "gate_sig,gate_2sig", "parts": "gates,controls,shape,rates,number", "set": ["model.name=mlp"],
    "rates": (0.1,), "schedules": ("cosine",), "blocks": (1,), "seeds": 2, "epochs": 6, "depth": 6, "width": 16,
    "every": 2, "out": "results/saturation_smoke",
}  # fmt: skip


def main(
    argv: Sequence[str] | None = None, train: runs.Train | None = None, measure: measuring.Measure | None = None
) -> int:
    """Runs the study; returns the exit code. `train` and `measure` replace the trainer and the measurements."""
    return study.run(
        MODULE, argv, _parser(), study.of_probes(configurations, measurements, report, register), train, measure
    )


def _parser() -> argparse.ArgumentParser:
    p = flags.parser(MODULE, __doc__, SMOKE)
    p.set_defaults(out="results/saturation", merges=MERGES, seeds=6)
    group = p.add_argument_group("what is varied")
    group.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="%(default)s")
    rates = (0.03, 0.1, 0.3, 1.0, 3.0)
    group.add_argument("--rates", type=flags.numbers, default=rates, metavar="X,X", help="%(default)s")
    group.add_argument("--schedules", type=words, default=("cosine", "constant", "step"), metavar="A,B")
    group.add_argument("--blocks", type=flags.whole_numbers, default=(1, 2), metavar="N,N", help="gated; beside all")
    group.add_argument("--every", type=int, default=4, metavar="N", help="epochs between two measurements; %(default)s")
    return p


def measurements(args: argparse.Namespace) -> dict[str, dict]:
    """The masks of the cells of that part."""
    chosen = tuple(cell.label for cell in parts(args).get("masks", ()))
    return {"masks": {"images": IMAGES, "probes": ("masks",), "split": "test", "cells": chosen}} if chosen else {}


class Results(NamedTuple):
    """What is written.

    Attributes:
      tables: by what follows OUT in the file's name.
      verdicts: by what they are on.
    """

    tables: dict[str, pd.DataFrame]
    verdicts: dict[str, str]


def report(found: study.Study) -> list[Path]:
    """Prints the verdicts, and writes the tables and figures."""
    chosen = parts(found.args)
    labels = {name: list(dict.fromkeys(cell.label for cell in own)) for name, own in chosen.items()}
    nets = with_metrics(found)
    results = Results({"": nets, "_effects": saturation.effects(nets, pairs(chosen, set(nets["cell"])))}, {})
    gates = looked_at(found)
    if len(gates):
        _on_gates(results, nets, gates, labels.get("gates", []))
    if "controls" in labels and len(gates) and (tests := cures([*labels["controls"], *labels.get("shape", ())])):
        results.tables["_hypotheses"] = saturation.hypotheses(nets, gates, tests)
        results.verdicts["Q5, explanations"] = verdicts.on_gates(results.tables["_hypotheses"])
    if set(SHAPES) <= {*labels.get("shape", ())}:
        results.tables["_shape"] = saturation.factorial(nets, SHAPES)
        results.verdicts["Q5, slope and value"] = verdicts.on_shape(results.tables["_shape"])
    if "rates" in labels:
        results.tables["_rates"] = saturation.best_rates(nets[nets["cell"].isin(labels["rates"])])
        results.verdicts["Q5, learning rate"] = verdicts.on_rates(results.tables["_rates"], results.tables["_effects"])
    few = f"{COUNTED[0]}, {min(found.args.blocks, default=0)} gated"
    if "number" in labels and {few, *COUNTED[:2]} <= set(nets["cell"]):
        results.verdicts["Q6, number and granularity"] = verdicts.on_number(nets, COUNTED[0], few, COUNTED[1])
    if "masks" in labels:
        _on_masks(results, found.measurements["masks"])
    return found.publish(results.tables, results.verdicts, "verdict on {}") + draw(found.args.out)


def draw(out: str | Path) -> list[Path]:
    """Draws the figures of the tables OUT*.csv, of the parts that were studied."""
    read = tables.written(out, "_effects", "_gates", "_course", "_rates", "_maps")
    nets, effects = read[""], read["_effects"]
    of = {part: effects[effects["arm"] == part] for part in ("gates", "controls", "number")}
    gated = {BASELINE, *of["gates"]["cell"]}
    plan = {}
    if len(of["gates"]) and "_gates" in read:
        lost = int((nets["cell"].isin(gated) & (nets["status"] == "diverged")).sum())
        read |= {name: read[name][read[name]["cell"].isin(gated)] for name in ("_gates", "_course")}
        if (read["_gates"]["gate"] != "").any():
            plan["_histograms"] = ("_gates", partial(figures.histograms, lost=lost))
        plan["_course"] = ("_course", partial(figures.course, lost=lost))
    if len(of["controls"]):
        controls = effects[effects["arm"].isin(["controls", "shape"])].drop_duplicates(["cell", "metric"])
        plan["_effects"] = ("_effects", lambda _, path: figures.effects(controls, path))
    if "_rates" in read:
        merge, words = nets["merge"], nets["cell"].str.replace(", rate [^,]+", "", regex=True)
        swept = merge.isin([BASELINE, *read["_rates"]["merge"]]) & words.isin(
            [*merge, *(merge + ", " + nets["schedule"])]
        )
        plan["_rates"] = ("", lambda nets, path: figures.rates(nets[swept], path))
    if len(of["number"]):
        blocks = nets[["cell", "blocks"]].drop_duplicates()
        plan["_number"] = ("", lambda _, path: figures.number(of["number"].merge(blocks, on="cell"), path))
    return of_tables(read, out, plan | {"_masks": ("_maps", figures.masks)})


def looked_at(found: study.Study) -> pd.DataFrame:
    """What the probe left of all the cells that have it, but for replicas that diverged; no rows if nothing is left."""
    probed = [o for o in found.outcomes if o.config.probes.saturation and o.run_dir]
    if not probed or (gates := replace(found, outcomes=probed).probed("saturation")).empty:
        return pd.DataFrame()
    nets = found.nets
    done = nets.loc[nets["status"] == "done", ["cell", "seed"]].astype({"seed": int})
    return gates.merge(done, on=["cell", "seed"])


def _on_gates(results: Results, nets: pd.DataFrame, gates: pd.DataFrame, labels: list[str]) -> None:
    course = saturation.over_training(gates)
    results.tables.update({"_gates": gates, "_course": course})
    own, course = gates[gates["cell"].isin(labels)], course[course["cell"].isin(labels)]
    if (own["gate"] != "").any():
        lost = nets[nets["cell"].isin(labels) & (nets["status"] == "diverged")]
        results.verdicts["Q6, saturation"] = verdicts.on_attention(course, lost)


def _on_masks(results: Results, masks: pd.DataFrame) -> None:
    results.tables["_costs"] = costs()
    if masks.empty:
        return
    results.tables["_masks"] = saturation.attention(masks)
    results.verdicts["Q12, masks"] = verdicts.on_masks(results.tables["_masks"])
    if len(maps := saturation.maps(masks)):
        results.tables["_maps"] = maps


def with_metrics(found: study.Study) -> pd.DataFrame:
    """`found.nets` with early_loss, log_train_loss, schedule, and blocks, the number of those with the merge.

    float32 rounds the loss of a sample to 0 below its epsilon: this is the least loss that has a logarithm here.
    """
    nets, early = found.nets, {}
    for outcome in found.outcomes:
        if outcome.run_dir:
            run = tables.load(outcome.run_dir)
            first = run[(run["split"] == "train") & (run["epoch"] <= EARLY)].groupby("seed")["loss"]
            early |= {(outcome.label, seed): loss for seed, loss in first.mean().items()}
    config = {o.label: o.config for o in found.outcomes}
    nets["early_loss"] = [early.get(key) for key in zip(nets["cell"], nets["seed"], strict=True)]
    nets["early_loss"] = nets["early_loss"].where(nets["status"] == "done").astype(float)
    nets["log_train_loss"] = np.log10(nets["train_loss"].clip(lower=np.finfo(np.float32).eps))
    nets["schedule"] = [config[cell].schedule.name for cell in nets["cell"]]
    depth = [(config[cell].model.depth - 2) // 2 for cell in nets["cell"]]
    nets["blocks"] = [config[cell].model.merge_blocks or own for cell, own in zip(nets["cell"], depth, strict=True)]
    return nets


def costs() -> pd.DataFrame:
    """A row per merge of COSTED: parameters and flops of ResNet-20 on a 32x32x3 image, and those above `add`'s."""
    from resjax.models.build import build
    from resjax.models.costs import costs as costs_of

    model, rows = config_lib.base().model, []
    for merge in COSTED:
        model.update({"depth": 20, "merge": merge})
        rows.append({"merge": merge} | costs_of(build(model, 10), (32, 32, 3)))
    table = pd.DataFrame(rows)
    for column in ("parameters", "flops"):
        table[f"more_{column}"] = table[column] - table[column].iloc[0]
    return table
