"""The board: merges that went through one protocol, with what they cost. This module writes docs/board.md.

python -m experiments.compare --board=configs/mine.py    # a merge of one's own through the protocol
python -m experiments.compare.board                      # docs/board.md from the tables in results/; without JAX
"""

import argparse
import math
import sys
from pathlib import Path

import pandas as pd

from resjax import records
from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.stats import Estimate
from resjax.sweep import flags

PROTOCOL = {
    "datasets": "digits", "seeds": 12, "tune": True, "tune_factors": (0.3, 1.0, 3.0, 10.0), "tune_seeds": 6,
    "tune_epochs": 20, "allow_edge": False, "smoke": False, "set": ["optimizer.clip_norm=1.0"],
}  # fmt: skip
PAGE, RESULTS = Path("docs/board.md"), Path("results")
COLUMNS = ("merge", "identity", "OA (%)", "less `add`", "p", "rate", "params", "FLOPs", "stored", "speed", "gain")

ABOVE = """# The board: merges under one protocol

Contents: [the table](#the-table) - [the protocol](#the-protocol) - [enter yours](#enter-yours)

`python -m experiments.compare.board` makes this page from tables in `results/`.

## The table

Digits, ResNet-8 of width 16. Rows are in the order of accuracy.

- OA is the accuracy on the test set after the last epoch, with its 95 % t interval over seeds.
- The difference to `add` is in points, paired by seed. Its p is that of the sign-flip test, after Holm's correction
  over the merges of the study in which it was measured.
- Parameters, FLOPs of a forward pass, activations stored by a training step, and images per second of training are
  divided by those of `add`.
- The gain is that of gradient power per block of this net at initialisation, by theory. A dash means that there is no
  theory of it.
- "Identity" is that of a block whose branch is zero, as in the [README](../README.md#merges).

"""
BELOW = """
Merges whose intervals overlap are not told apart by their place.

## The protocol

- Each merge has a learning rate of its own: the best of .03, .1, .3 and 1 by the mean validation accuracy of six
  seeds after 20 epochs on nine tenths of the training set. The grid goes on beyond an edge until the best rate is
  inside.
- Twelve other seeds train for 40 epochs on the whole training set. A replica that diverges is counted and left out of
  the means.
- All else is the preset `digits` with gradients clipped to the norm 1.

## Enter yours

Write a config file that [registers your merge](../README.md#merges), then take it through the protocol. The command
trains `add` beside it, and takes minutes on two cores:

```sh
python -m experiments.compare --board=configs/mine.py
```

It prints the row and writes `results/board_mine*.csv`. With these files in `results/`,
`python -m experiments.compare.board` adds the row here.
"""


def apply(args: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags of a study that takes the merges in args.board through the protocol.

    Raises ConfigError if the command line says what the protocol does.
    """
    for name in (*PROTOCOL, "merges"):
        if getattr(args, name) != parser.get_default(name):
            raise ConfigError(f"--{name}: with --board the protocol of docs/board.md decides it")
    flags.refuse(args, flags.given(args))
    more = {"merges": args.board}
    if args.out == parser.get_default("out"):
        more["out"] = "_".join([f"{RESULTS}/board", *(Path(word.strip()).stem for word in args.board.split(","))])
    return argparse.Namespace(**vars(args) | PROTOCOL | more)


def rows(results: Path = RESULTS) -> pd.DataFrame:
    """A row per merge on the board, best first: from the tables of all studies of the protocol.

    Of a merge in several studies the first counts, by the names of their tables. Raises ConfigError if there is none.
    """
    found = []
    for path in sorted(results.glob("board*_costs.csv")):
        out = str(path).removesuffix("_costs.csv")
        read = tables.written(out, "_differences", "_tuning", "_costs")
        tuning = read["_tuning"]
        rates = tuning[tuning["picked"]].groupby("merge")["learning_rate"].first().rename("rate")
        own = read["_differences"].merge(read["_costs"], on=["dataset", "merge"]).join(rates, on="merge")
        base = own[own["merge"] == "add"].iloc[0]
        for name in ("parameters", "flops", "stored", "images_per_s"):
            own[name] = own[name] / base[name]
        found.append(own)
    if not found:
        raise ConfigError(f"{results}: no study of the board is here: python -m experiments.compare --board=core")
    return pd.concat(found).drop_duplicates("merge").sort_values("mean", ascending=False, ignore_index=True)


def page(table: pd.DataFrame) -> str:
    """The text of docs/board.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in table.to_dict("records")]
    return ABOVE + "\n".join(lines) + "\n" + BELOW


def cells(row: dict) -> list[str]:
    """A row of the page, in COLUMNS."""
    lost = f", {row['diverged']} lost" if row["diverged"] else ""
    ratios = [f"{row[name]:.2f}" for name in ("parameters", "flops", "stored", "images_per_s")]
    return [
        f"`{row['merge']}`",
        row["identity"],
        f"{Estimate.of(row, 'mean', 100):.2f}{lost}",
        "" if row["merge"] == "add" else f"{Estimate.of(row, 'difference', 100):+.2f}",
        "" if math.isnan(row["p_holm"]) else f"{row['p_holm']:.2f}",
        f"{row['rate']:g}",
        *ratios,
        "-" if math.isnan(row["gain"]) else f"{row['gain']:.2g}",
    ]


def main() -> int:
    """Writes the page; returns the exit code."""
    try:
        text = page(rows())
    except ConfigError as error:
        print("error:", error, file=sys.stderr)
        return 2
    with records.replacing(PAGE) as temporary:
        temporary.write_text(text)
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
