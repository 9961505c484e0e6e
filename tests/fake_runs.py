"""Run directories with made-up numbers, as the trainer leaves them."""

import json
import math
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from resjax import config as config_lib
from resjax.analysis.tables import FINAL_METRICS

ENV = {"commit": "0123abc", "dirty": False, "versions": {}, "device": "cpu", "device_count": 1}


def a_config(merge: str = "add", preset: str = "digits", **entries) -> ConfigDict:
    config = config_lib.with_preset(config_lib.base(), preset)
    config.update_from_flattened_dict({"name": merge, "model.merge": merge} | entries)
    return config


def write_run(
    config: ConfigDict, workdir: Path, accuracy: dict[int, float], diverged: dict[int, int] | None = None
) -> Path:
    """A finished run in which seed s reaches `accuracy[s]`, unless it is in `diverged` (seed -> epoch)."""
    diverged = diverged or {}
    run_dir = Path(workdir) / f"{config.name}-{config_lib.hash8(config)}"
    run_dir.mkdir(parents=True, exist_ok=True)
    splits = ["train", "test"] + ["validation"] * bool(config.dataset.validation)
    rows, per_seed = [], []
    for seed, reached in sorted(accuracy.items()):
        rng = np.random.default_rng(seed)
        for epoch in range(1, diverged.get(seed, config.epochs) + 1):
            late = 1 - math.exp(-4 * epoch / config.epochs)
            lost = diverged.get(seed) == epoch
            for split in splits:
                level = (reached + 0.03 * (split == "train")) * late + 0.002 * rng.normal()
                rows.append({
                    "epoch": epoch, "seed": seed, "split": split,
                    "loss": None if lost else (1.03 - level) * (1 + 0.1 * rng.random()),
                    "accuracy": None if lost else min(level, 1.0),
                    "grad_norm": 1.0 if split == "train" and not lost else None,
                    "learning_rate": 0.1 if split == "train" else None,
                    "images_per_s": 1e3 if split == "train" else None,
                })  # fmt: skip
        final = dict.fromkeys(FINAL_METRICS, reached)
        if not config.dataset.validation:
            final |= {"validation_loss": None, "validation_accuracy": None}
        if seed in diverged:
            final = dict.fromkeys(FINAL_METRICS)
        status = "diverged" if seed in diverged else "done"
        per_seed.append({"seed": seed, "status": status, "epoch": diverged.get(seed, config.epochs)} | final)
    (run_dir / "config.json").write_text(config_lib.to_json(config))
    (run_dir / "env.json").write_text(json.dumps(ENV))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {"parameters": 4321, "num_classes": 10, "per_seed": per_seed, "statistics": {}}
    (run_dir / "summary.json").write_text(json.dumps(content))
    status = "diverged" if len(diverged) == len(accuracy) else "done"
    (run_dir / "status.json").write_text(json.dumps({"status": status, "epoch": config.epochs}))
    return run_dir


class Trainer:
    """Stands in for resjax.training.loop.train: same contract, made-up numbers."""

    def __init__(self, accuracy=lambda c, seed: 0.9, diverged=lambda c: {}, fails=()):
        self.accuracy, self.diverged, self.fails, self.trained = accuracy, diverged, fails, []

    def __call__(self, config, workdir) -> Path:
        if config.model.merge in self.fails:
            raise RuntimeError("out of memory\nsecond line")
        run_dir = Path(workdir) / f"{config.name}-{config_lib.hash8(config)}"
        if (run_dir / "status.json").exists():
            return run_dir
        self.trained.append(config)
        seeds = range(config.seed, config.seed + config.seeds)
        reached = {seed: self.accuracy(config, seed) for seed in seeds}
        return write_run(config, Path(workdir), reached, self.diverged(config))
