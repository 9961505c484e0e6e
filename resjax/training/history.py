"""The rows of metrics.jsonl, and what they tell of each replica. A resumed run knows all it needs from them."""

import math
from collections import defaultdict
from typing import Any


def row(epoch: int, seed: int, split: str, **values: float) -> dict:
    """One row; what does not apply to the split, and what is not finite, is None."""
    names = ("loss", "accuracy", "grad_norm", "learning_rate", "images_per_s")
    return {"epoch": epoch, "seed": seed, "split": split} | {name: finite(values.get(name, math.nan)) for name in names}


def finite(value: float) -> float | None:
    """`value` as JSON can hold it: None for NaN and infinities."""
    value = float(value)
    return value if math.isfinite(value) else None


def jsonable(value: Any) -> Any:
    """A table's entry as JSON can hold it."""
    value = value.item() if hasattr(value, "item") else value
    return finite(value) if isinstance(value, float) else value


def diverged(rows: list[dict]) -> dict[int, int]:
    """Seed -> epoch, of the replicas with a loss or gradient norm that is not finite."""
    return {
        r["seed"]: r["epoch"] for r in rows if r["loss"] is None or (r["split"] == "train" and r["grad_norm"] is None)
    }


def gap(rows: list[dict], seeds: list[int], epoch: int, patience: int) -> str:
    """The first training row that `epoch` epochs should have left and that is not there, in words; "" if none is."""
    ended = diverged(rows) | stopped(rows, patience)
    found = {(r["seed"], r["epoch"]) for r in rows if r["split"] == "train"}
    for seed in seeds:
        for at in range(1, ended.get(seed, epoch) + 1):
            if (seed, at) not in found:
                return f"epoch {at} of seed {seed}"
    return ""


def stopped(rows: list[dict], patience: int) -> dict[int, int]:
    """Seed -> epoch, of the replicas without a lower validation loss for `patience` epochs; 0 stops none."""
    best: dict[int, tuple[float, int]] = defaultdict(lambda: (math.inf, 0))
    out = {}
    for r in rows:
        if patience and r["split"] == "validation" and r["loss"] is not None:
            best[r["seed"]] = min(best[r["seed"]], (r["loss"], r["epoch"]))
            if r["epoch"] - best[r["seed"]][1] >= patience:
                out.setdefault(r["seed"], r["epoch"])
    return out
