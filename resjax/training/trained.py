"""A finished run, opened again: what it started from, and what training made of it."""

import os
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resjax.config import ConfigError
from resjax.data.dataset import Dataset, load
from resjax.training import checkpoint, rundir, step
from resjax.training.loop import make_task
from resjax.training.mesh import Replicas


class Trained(NamedTuple):
    """One run.

    Attributes:
      task: its config, net and normalisation.
      dataset: its data.
      seeds: of the replicas that did not diverge.
      initial, final: seed -> variables {"params", ...} before the first and after the last step.
    """

    task: step.Task
    dataset: Dataset
    seeds: list[int]
    initial: dict[int, dict]
    final: dict[int, dict]


def reopen(config: ConfigDict, workdir: str | os.PathLike) -> Trained:
    """Opens the finished run of `config`. Raises ConfigError if there is none, or its checkpoint is gone."""
    path: Path = rundir.path_of(config, workdir)
    status = rundir.read_status(path)
    if status.get("status") not in rundir.FINISHED:
        raise ConfigError(f"{path}: no finished run; train it first")
    dataset = load(config.dataset)
    task = make_task(config, dataset)
    seeds = [config.seed + i for i in range(config.seeds)]
    x_1xHxWxC = jnp.zeros((1, *dataset.train.images_NxHxWxC.shape[1:]), jnp.float32)
    replicas = Replicas(config)
    own = replicas.spread(jnp.array(seeds, jnp.int32))
    initial = replicas.compile(partial(step.init, task))(replicas.copy(x_1xHxWxC), own)
    saved = checkpoint.read(
        path / "checkpoints", {"states": initial, "sums": step.Sums(*[np.zeros(len(seeds), np.float32)] * 4)}
    )
    if saved is None or saved.step != status["epoch"] * task.steps_per_epoch:
        raise ConfigError(
            f"{path}: no good checkpoint of its end; delete its status.json and train again: what is left continues"
        )
    kept = {seed: i for i, seed in enumerate(seeds) if str(seed) not in status["diverged"]}
    return Trained(task, dataset, list(kept), _variables(initial, kept), _variables(saved.tree["states"], kept))


def _variables(states: step.State, kept: dict[int, int]) -> dict[int, dict]:
    states = jax.tree.map(np.asarray, {"params": states.params, **states.stats})
    return {seed: jax.tree.map(itemgetter(i), states) for seed, i in kept.items()}
