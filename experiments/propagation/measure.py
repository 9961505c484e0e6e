"""Nets at initialisation, without a run, beside the theory of what they do there; and their zeros before and after."""

import os
from collections.abc import Mapping

import jax.numpy as jnp
import optax
import pandas as pd
from ml_collections import ConfigDict

from experiments.propagation.activity import activity
from resjax.data.dataset import load
from resjax.probes.blocks.predicted import predicted, safe_depth
from resjax.probes.blocks.propagation import propagation
from resjax.probes.subject import Subject
from resjax.training import probing, step
from resjax.training.loop import make_task
from resjax.training.trained import reopen

SAME_LOSS = 1e-3  # nats within which the loss of an image is that of equal logits, ln(classes)


def measure(config: ConfigDict, workdir: str | os.PathLike, *, kind: str, images: int) -> dict[str, list[dict]]:
    """What one kind finds in the nets of `config`, a replica for each of its seeds.

    Args:
      config: of the nets.
      workdir: root of the run directories, for "trained".
      kind: "signal": rows of `propagation`, and theory, those of `predicted`; "safe": one row, `safe_depth`;
        "untrained", "trained": rows of `activity`, and losses, with seed, loss (mean, in nats) and guessing, the share
        of images whose loss is ln(classes).
      images: of the training split, spread evenly over it.

    Raises:
      ConfigError: of the data or the net; there is no finished run.
    """
    if kind == "safe":
        return {"rows": [{"safe_depth": safe_depth(config.model)}]}
    if kind == "trained":
        run = reopen(config, workdir)
        return _active(probing.subjects(run.task, run.dataset.train, images, run.final, "trained"), train=False)
    subjects = _untrained(config, images)
    if kind == "untrained":
        return _active(subjects, train=True)
    seen = [propagation(at.net, at.variables, at.x_BxHxWxC, at.key).assign(seed=seed) for seed, at in subjects.items()]
    return {"rows": pd.concat(seen).to_dict("records"), "theory": predicted(config.model)}


def _active(subjects: Mapping[int, Subject], *, train: bool) -> dict[str, list[dict]]:
    rows, losses = [], []
    for seed, at in subjects.items():
        table, logits_BxK = activity(at.net, at.variables, at.x_BxHxWxC, train=train)
        rows += table.assign(seed=seed).to_dict("records")
        loss_B = optax.softmax_cross_entropy(logits_BxK, at.targets_BxK)
        guessing_B = jnp.abs(loss_B - jnp.log(logits_BxK.shape[-1])) < SAME_LOSS
        losses.append({"seed": seed, "loss": float(loss_B.mean()), "guessing": float(guessing_B.mean())})
    return {"rows": rows, "losses": losses}


def _untrained(config: ConfigDict, images: int) -> dict[int, Subject]:
    """Seeds and their nets; BatchNorm's running statistics are void, and whoever looks takes those of the images."""
    dataset = load(config.dataset)
    task = make_task(config, dataset)
    x_1xHxWxC = jnp.zeros((1, *dataset.train.images_NxHxWxC.shape[1:]), jnp.float32)
    # Not compiled as a whole: for deep nets that would take longer than drawing all seeds.
    seeds = range(config.seed, config.seed + config.seeds)
    variables = {seed: task.net.init(step.keys(seed)[0], x_1xHxWxC) for seed in seeds}
    return probing.subjects(task, dataset.train, images, variables, "as they are")
