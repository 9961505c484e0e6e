"""The gain of gradient power per block of untrained nets, beside what theory says."""

import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resjax.data import batches
from resjax.data.dataset import load
from resjax.probes.blocks.predicted import predicted
from resjax.probes.blocks.propagation import propagation
from resjax.training import step
from resjax.training.loop import make_task
from resjax.training.probing import evenly


def measure(config: ConfigDict, workdir: str | os.PathLike, images: int) -> dict[str, list[dict]]:
    """Rows of seed, block and gain, and theory, with block and gain: none where there is no theory of the net.

    Args:
      config: of the nets.
      workdir: unused; nothing was trained.
      images: of the training set, spread evenly over it.
    """
    dataset = load(config.dataset)
    task, index = make_task(config, dataset), evenly(len(dataset.train.labels_N), images)
    x_BxHxWxC = batches.normalize(jnp.asarray(dataset.train.images_NxHxWxC[index]), task.mean_C, task.std_C)
    rows = []
    for seed in range(config.seed, config.seed + config.seeds):
        weights, cotangent = jax.random.split(step.keys(seed)[0])
        seen = propagation(task.net, task.net.init(weights, x_BxHxWxC[:1]), x_BxHxWxC, cotangent)
        rows += seen[["block", "gain"]].assign(seed=seed).to_dict("records")
    return {"rows": rows, "theory": [{"block": row["block"], "gain": row["gain"]} for row in predicted(config.model)]}
