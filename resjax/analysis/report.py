"""What a run says in the end, as tables on the terminal."""

from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from resjax import records
from resjax.stats import Estimate

_ROWS = {
    "OA": "overall accuracy (OA)",
    "AA": "average accuracy (AA)",
    "kappa": "Cohen's kappa",
    "ECE": "calibration error (ECE)",
    "generalization_gap": "generalization gap",
    "train_loss": "train loss",
    "test_loss": "test loss",
    "train_accuracy": "train accuracy",
    "validation_loss": "validation loss",
    "validation_accuracy": "validation accuracy",
}


def print_run(run_dir: Path, console: Console | None = None) -> None:
    """Prints mean, standard deviation and 95 % CI over the replicas of a finished run."""
    summary, config = records.read_json(run_dir / records.SUMMARY), records.read_json(run_dir / records.CONFIG)
    kept = [row for row in summary["per_seed"] if row["status"] != "diverged"]
    model = config["model"]
    title = (
        f"{model['merge']} on {config['dataset']['name']}: {model['name']}-{model['depth']}, "
        f"{summary['parameters']:,} parameters, final epoch, {len(kept)} of {len(summary['per_seed'])} replicas"
    )
    console = console or Console()
    console.print(title, highlight=False, soft_wrap=True)
    table = Table("", "mean", "std", "95 % CI")
    for name, label in _ROWS.items():
        if name in summary["statistics"]:
            s = summary["statistics"][name]
            table.add_row(
                label, f"{s['mean']:.4f}", "" if s["std"] is None else f"{s['std']:.4f}", Estimate.of(s).interval(".4f")
            )
    console.print(table)


# Kinds of work in modules of the net, and the heads of their columns.
_KINDS = {
    "linear": "linear",
    "gradient by input": "by input",
    "gradient by weights": "by weights",
    "norm": "norm",
    "elementwise": "elementwise",
}
_BLOCKS = 20  # rows at most for blocks of their own, else a row is a stage


def print_profile(run_dir: Path, console: Console | None = None) -> None:
    """Prints where the time of a step goes: ms of each block of the net by kind of work; says so if none was traced."""
    console, file = console or Console(), run_dir / records.PROFILE / records.STEPS
    if not file.exists():
        console.print("no step was left to profile")
        return
    rows = pd.read_csv(file)
    rows["block"] = rows["module"].str.split("/").str[0]
    if rows["block"].nunique() > _BLOCKS:
        rows["block"] = rows["block"].str.split("_block").str[0]
    ms = rows.pivot_table(index="block", columns="kind", values="ms_per_step", aggfunc="sum", sort=False)
    sums, total = ms.sum(axis=1).sort_values(ascending=False), rows["ms_per_step"].sum()
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("ms per step", no_wrap=True)
    for head in (*_KINDS.values(), "sum", "%"):
        table.add_column(head, justify="right", no_wrap=True)
    for block in sums.index:
        table.add_row(block, *_cells(ms.loc[block]), f"{sums[block]:.2f}", f"{100 * sums[block] / total:.1f}")
    table.add_section()
    table.add_row("sum", *_cells(ms.sum()), f"{total:.2f}", "100.0")
    table.add_row("%", *_cells(100 * ms.sum() / total, ".1f"), "100.0", "")
    console.print(table)
    console.print(file, highlight=False, soft_wrap=True)


def _cells(values: pd.Series, form: str = ".2f") -> list[str]:
    return [format(values[kind], form) if values.get(kind, 0) > 0 else "" for kind in _KINDS]
