"""What a run says in the end, as a table on the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from resjax import records
from resjax.stats import Estimate

_ROWS = {
    "OA": "overall accuracy (OA)",
    "AA": "average accuracy (AA)",
    "kappa": "Cohen's kappa",
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
