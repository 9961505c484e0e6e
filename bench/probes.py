"""What probes during training cost: python -m bench.probes [--rounds=3] [--merge=gate_sig]

Trains the same run, digits with ResNet-8, 6 seeds, 40 epochs, without probes and with those of the preset "probes", by
turns in one process. A probe's cost is the time that the epoch loop spends in it, as a share of the time that it spends
in training and evaluation. The first look and the first epoch of a run compile: the others stand for them, and the
first look is stated apart. Writes bench/probes.md.
"""

import argparse
import datetime
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from resjax import config as config_lib
from resjax.probes.registry import PROBES
from resjax.runtime import startup
from resjax.training import loop, rundir

GOAL = 0.10
ALL = "all together"
_seconds: dict[str, list[float]] = defaultdict(list)  # of the run under way: in each look of each probe, in epochs


def timed(name: str, function: Callable) -> Callable:
    """The function, its seconds kept."""

    def wrapper(*args, **words):
        began = time.monotonic()
        out = function(*args, **words)
        _seconds[name].append(time.monotonic() - began)
        return out

    return wrapper


class Run(NamedTuple):
    """Seconds of a run: in its epochs, all alike; and by probe, in its first look, and in all, as if none compiled."""

    epochs: float
    first: dict[str, float]
    looks: dict[str, float]


def train(config: ConfigDict) -> Run:
    """Trains the run anew."""
    _seconds.clear()
    with tempfile.TemporaryDirectory() as workdir:
        loop.train(config, workdir)
    in_looks = sum(_seconds[ALL][1:])
    epochs = (sum(_seconds["epoch"][1:]) - in_looks) * config.epochs / (config.epochs - 1)
    by_probe = {name: spent for name, spent in _seconds.items() if name != "epoch" and spent}
    looks = {name: sum(spent[1:]) * len(spent) / (len(spent) - 1) for name, spent in by_probe.items()}
    return Run(epochs, {name: spent[0] for name, spent in by_probe.items()}, looks)


HEAD = """# Cost of probes during training

Digits, ResNet-8, `{merge}`, 6 seeds, 40 epochs; probes look at {images} training images, at their periods of the preset
"probes". Share: seconds in the probe over those of the same run's training and evaluation, median (range) of {rounds}
runs, compilation apart; first look: seconds with compilation, no cache. The goal is a share of {goal:.0%} for all
together. `python -m bench.probes` writes this page.

{machine}; {date}

| probe | every | share | first look, s |
|---|---|---|---|
"""


def row(name: str, every: str, runs: Sequence[Run]) -> str:
    """A line of the table."""
    shares = _median([run.looks[name] / run.epochs for run in runs], ".1%")
    return f"| {name} | {every} | {shares} | {runs[0].first[name]:.1f} |\n"


def _median(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Runs both and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--merge", default="gate_sig", help="of the nets: one with a gate, at which more is measured")
    args = parser.parse_args()
    periods = {key.removeprefix("probes."): every for key, every in config_lib.PRESETS["probes"].items()}
    plain = config_lib.base()
    words = {"seeds": 6, "name": args.merge, "model.merge": args.merge, "compilation_cache": "none"}
    plain.update_from_flattened_dict(words)
    probed = config_lib.with_preset(plain.copy_and_resolve_references(), "probes")
    startup.start(plain)
    PROBES.update({name: timed(name, PROBES[name]) for name in periods})
    loop.Probing.look = timed(ALL, loop.Probing.look)
    loop._Run._train_epoch = timed("epoch", loop._Run._train_epoch)
    without, runs = [], []
    for _ in range(args.rounds):
        without.append(train(plain))
        runs.append(train(probed))
        print(f"epochs: {without[-1].epochs:.1f} s without, {runs[-1].epochs:.1f} s with; looks: {runs[-1].looks}")
    about = rundir.environment()
    page = HEAD.format(
        merge=args.merge,
        rounds=args.rounds,
        images=plain.probes.images,
        goal=GOAL,
        machine=f"{about['cpu']}, {os.cpu_count()} cores; jax {about['versions']['jax']}",
        date=datetime.date.today(),
    )
    page += "".join(row(name, f"{every} epochs", runs) for name, every in periods.items()) + row(ALL, "", runs)
    ratios = [(b.epochs + b.looks[ALL]) / a.epochs for a, b in zip(without, runs, strict=True)]
    page += (
        f"\nWith all of them a run takes {_median(ratios, '.2f')} times as long as the same round's run without, which "
    )
    page += f"takes {statistics.median(run.epochs for run in without):.1f} s.\n"
    print(page)
    Path(__file__).with_name("probes.md").write_text(page)


if __name__ == "__main__":
    main()
