"""The cells of the saturation study, by the part of it that they are for, and what is compared with what."""

import argparse
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.saturation import tables as saturation
from experiments.saturation.gates import SHAPES
from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.sweep import flags

BASELINE = "add"
MERGES = "gate_sig,gate_sig_bn,gate_2sig,gate_alpha,gate_tanh,sig_sig,gate_granularity,se,cbam,simam"
PARTS = ("gates", "controls", "shape", "rates", "number", "masks")
CONTROLLED = ("gate_sig", "gate_sig_bn")
STEEPER = ("gate_2sig", "gate_alpha", "gate_tanh")  # than gate_sig, and of another value at 0
COUNTED = ("gate_granularity full", "gate_granularity channel", "se")
MASKED = ("mul", "mul_bn1", "gate_sig", "gate_granularity spatial", "simam", "cbam", "se")
GRANULARITIES = ("scalar", "channel", "spatial", "full")
BRANCH_RATE = {"optimizer.gate_lr": 4.7}  # the gate is a function of the branch; `add` has one as well
RELU = {"model.post_activation": "relu"}
WORDS = {  # entry -> what a label says of it
    "model.granularity": " {}",
    "model.merge_blocks": ", {} gated",
    "model.post_activation": ", {}",
    "optimizer.gate_lr": ", branch rate x{:g}",
    "optimizer.learning_rate": ", rate {:g}",
    "schedule.name": ", {}",
}


class Cell(NamedTuple):
    """A merge, what differs from the base config, and whether its gates are looked at during training."""

    merge: str
    entries: Mapping
    probed: bool = True

    @property
    def label(self) -> str:
        """The cell in words."""
        return self.merge + "".join(WORDS[key].format(value) for key, value in self.entries.items())


def words(text: str) -> tuple[str, ...]:
    """`a,b` -> ("a", "b")."""
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def parts(args: argparse.Namespace) -> dict[str, list[Cell]]:
    """The cells of each part. Raises ConfigError."""
    from resjax.models.merges import MERGES as registry

    asked = words(args.parts)
    for name in asked or ("",):
        if name not in PARTS:
            raise ConfigError(f"--parts: unknown {name!r}; choose from {', '.join(PARTS)}")
    names = [name for name in flags.merges(args.merges, registry) if name != BASELINE]
    plain = {cell.label: cell for name in (BASELINE, *names) for cell in _granular(name)}
    controlled = [name for name in CONTROLLED if name in names]
    reference = config_lib.flat(flags.config(args, flags.datasets(args.datasets)[0], BASELINE))
    sweep = [
        {"optimizer.learning_rate": rate, "schedule.name": schedule}
        for schedule in args.schedules
        for rate in args.rates
    ]
    sweep = [{key: value for key, value in entries.items() if value != reference[key]} for entries in sweep]
    chosen = {
        "gates": list(plain.values()),
        "controls": [plain[BASELINE], *(plain[name] for name in controlled)],
        "shape": [plain[BASELINE]],
        "rates": [Cell(name, entries, probed=False) for entries in sweep for name in (BASELINE, *controlled)],
        "number": [plain[BASELINE]],
        "masks": [cell for label, cell in plain.items() if label in MASKED],
    }
    chosen["controls"] += [Cell(name, entries) for name in (BASELINE, *controlled) for entries in (BRANCH_RATE, RELU)]
    chosen["controls"] += [plain[name] for name in STEEPER if name in plain and "gate_sig" in names]
    if {"gate_sig", "gate_2sig"} <= {*names}:
        chosen["shape"] += [Cell(name, {}) for name in SHAPES]
    for cell in (plain[label] for label in COUNTED if label in plain):
        chosen["number"] += [cell._replace(entries={**cell.entries, "model.merge_blocks": n}) for n in args.blocks]
        chosen["number"].append(cell)
    chosen["masks"] += [Cell(name, {}, probed=False) for name in MASKED if name.startswith("mul")]
    return {name: chosen[name] for name in PARTS if name in asked}


def _granular(name: str) -> list[Cell]:
    if name != "gate_granularity":
        return [Cell(name, {})]
    return [Cell(name, {"model.granularity": granularity}) for granularity in GRANULARITIES]


def configurations(args: argparse.Namespace) -> dict[str, ConfigDict]:
    """The config of every cell, by its label. Raises ConfigError."""
    (dataset, *others) = flags.datasets(args.datasets)
    if others:
        raise ConfigError("--datasets: one at a time")
    if args.every < 1:
        raise ConfigError(f"--every={args.every}: at least 1")
    chosen = [cell for own in parts(args).values() for cell in own]
    probed = {cell.label for cell in chosen if cell.probed}
    found = {}
    for cell in chosen:
        entries = {**cell.entries} | ({"probes.saturation": args.every} if cell.label in probed else {})
        if cell.label not in found:
            found[cell.label] = flags.config(args, dataset, cell.merge, **entries)
    return found


def pairs(chosen: Mapping[str, Sequence[Cell]], trained: set[str]) -> list[tuple[str, str, str]]:
    """(part, cell, what it is compared with), of cells in `trained`.

    That is `add`, with the ReLU or the branch's rate that the cell has; each of these is compared with `add` itself.
    """
    found = []
    for part, own in chosen.items():
        for label, cell in {cell.label: cell for cell in own if part != "rates"}.items():
            shared = cell.entries if cell.merge != BASELINE and cell.entries in (BRANCH_RATE, RELU) else {}
            baseline = Cell(BASELINE, shared).label
            if label != baseline and {label, baseline} <= trained:
                found.append((part, label, baseline))
    return found


def cures(labels: Sequence[str]) -> list[saturation.Cure]:
    """What should close the gap of each controlled gate, given the cells of the study."""
    found = []
    for name in [name for name in CONTROLLED if name in labels]:
        gap = {name: 1, BASELINE: -1}
        faster, with_relu = (
            {Cell(name, entries).label: 1, Cell(BASELINE, entries).label: -1} for entries in (BRANCH_RATE, RELU)
        )
        found.append(saturation.Cure(name, "small slope", "the branch's rate x4.7, for both", gap, faster))
        if name == "gate_sig":
            causes = {"gate_sig_steep": "small slope", "gate_2sig_flat": "small value"}
            causes |= dict.fromkeys(STEEPER, "small slope and value")
            found += [
                saturation.Cure(name, cause, cell, gap, {cell: 1, BASELINE: -1})
                for cell, cause in causes.items()
                if cell in labels
            ]
        found.append(saturation.Cure(name, "ReLU after the merge", "no ReLU", with_relu, gap))
    return found
