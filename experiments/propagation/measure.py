"""Nets at initialisation, without a run, beside the theory of what they do there; and their zeros before and after."""

import os
from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp
import optax
import pandas as pd
from jax.nn import relu
from ml_collections import ConfigDict

from experiments.propagation.activity import activity
from resjax.config import ConfigError
from resjax.data.dataset import load
from resjax.models.layers import ACTIVATIONS
from resjax.models.merges import MERGES, Merge
from resjax.probes.blocks.propagation import propagation
from resjax.probes.subject import Subject
from resjax.theory import mean_field, population
from resjax.theory.laws import gaussian
from resjax.training import probing, step
from resjax.training.loop import make_task
from resjax.training.trained import reopen

LIMIT = 30  # blocks
SAME_LOSS = 1e-3  # nats within which the loss of an image is that of equal logits, ln(classes)


def measure(config: ConfigDict, workdir: str | os.PathLike, *, kind: str, images: int) -> dict[str, list[dict]]:
    """What one kind finds in the nets of `config`, a replica for each of its seeds.

    Args:
      config: of the nets.
      workdir: root of the run directories, for "trained".
      kind: "signal": rows of `propagation`, and theory, those of `predicted`; "safe": one row, `safe`;
        "untrained", "trained": rows of `activity`, and losses, with seed, loss (mean, in nats) and guessing, the share
        of images whose loss is ln(classes).
      images: of the training split, spread evenly over it.

    Raises:
      ConfigError: of the data or the net; there is no finished run.
    """
    if kind == "safe":
        return {"rows": [{"safe_depth": safe(config.model)}]}
    if kind == "trained":
        run = reopen(config, workdir)
        return _active(probing.subjects(run.task, run.dataset.train, images, run.final, "trained"), train=False)
    subjects = _untrained(config, images)
    if kind == "untrained":
        return _active(subjects, train=True)
    seen = [propagation(at.net, at.variables, at.x_BxHxWxC, at.key).assign(seed=seed) for seed, at in subjects.items()]
    return {"rows": pd.concat(seen).to_dict("records"), "theory": predicted(config)}


def predicted(config: ConfigDict) -> list[dict]:
    """Theory of that: a row per block, in the columns of `propagation` that it knows.

    [] for nets that it does not describe: another merge or norm, an activation after the merge (its z is the one after
    that), dropout, blocks of several merges, and changes of shape by zero-padding.
    """
    net = make_task(config, load(config.dataset)).net
    if not _described(config.model) or (config.model.shortcut == "A" and len(net.stages) > 1):
        return []
    merge, kwargs = _in_theory(config.model)
    try:
        found = (population if merge.connection else mean_field).stages(merge, [n for n, _, _ in net.stages], **kwargs)
    except ConfigError:
        return []
    names = (f"stage{i}_block{j}" for i, (count, _, _) in enumerate(net.stages, 1) for j in range(1, count + 1))
    moments = ("mean", "power", "kurtosis", "typical", "alive")
    return [
        {"block": name} | {moment: getattr(b.z, moment) for moment in moments} | {"gain": b.gain}
        for name, b in zip(names, found, strict=True)
    ]


def safe(model: ConfigDict) -> int | None:
    """Theory's `safe_depth` of blocks of equal shapes, counted from the first z; at most LIMIT. None as `predicted`."""
    merge, kwargs = _in_theory(model)
    if merge.connection or not _described(model):
        return None
    first = mean_field.blocks(merge, gaussian().through(relu), 1, **kwargs)[0]
    return mean_field.safe_depth(merge, first.z, limit=LIMIT, **kwargs)


def _described(model: ConfigDict) -> bool:
    return model.post_activation == "none" and not model.dropout and not model.merge_blocks


def _in_theory(model: ConfigDict) -> tuple[Merge, dict]:
    """The merge at its init, and the keywords of `mean_field.block`."""
    given = {"branch_scale": model.scale, "extra_bias": model.gate_bias}
    merge = replace(MERGES[model.merge], **{name: value for name, value in given.items() if value is not None})
    return merge, {"norm": model.norm, "activation": ACTIVATIONS[model.activation]}


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
