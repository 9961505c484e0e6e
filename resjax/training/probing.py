"""Probes at work during training: which are due, and what they look at. Training never sees them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resjax.data import batches
from resjax.data.dataset import Split
from resjax.models.frozen import calibrated
from resjax.probes.registry import PROBES
from resjax.probes.subject import Subject
from resjax.training import history, step


def subjects(
    task: step.Task, split: Split, images: int, variables: Mapping[int, dict[str, Any]], moment: str
) -> dict[int, Subject]:
    """Seed -> what a probe looks at: these variables, and `images` images, spread evenly over the split.

    Before training (`moment` is "init") BatchNorm's running statistics mean nothing; those of the images replace them.
    """
    index = evenly(len(split.labels_N), images)
    x_BxHxWxC = batches.normalize(jnp.asarray(split.images_NxHxWxC[index]), task.mean_C, task.std_C)
    targets_BxK = jax.nn.one_hot(split.labels_N[index], task.num_classes)
    out = {}
    for seed, own in variables.items():
        own = calibrated(task.net, own, x_BxHxWxC) if moment == "init" else own
        out[seed] = Subject(
            task.net, own, x_BxHxWxC, targets_BxK, step.LOSSES[task.config.loss.name], step.keys(seed)[3]
        )
    return out


def evenly(size: int, count: int) -> np.ndarray:
    """Positions of `count` of `size` examples, spread evenly; all if there are fewer."""
    return np.linspace(0, size - 1, min(count, size)).round().astype(int)


class Probing:
    """The probes of a run.

    Attributes:
      periods: name -> epochs between two looks, of those that are on (config.probes).
    """

    def __init__(self, task: step.Task, split: Split):
        self._task, self._split = task, split
        probes = task.config.probes
        self.periods = {name: probes[name] for name in PROBES if probes.get(name)}  # others are for finished runs alone
        self._update = jax.jit(task.optimizer.update)

    def due(self, epoch: int) -> list[str]:
        """Names of the probes that look at the end of `epoch`; 0 is before training, the last epoch always counts."""
        last = epoch == self._task.config.epochs
        return [name for name, period in self.periods.items() if last or epoch % period == 0]

    def look(self, names: list[str], epoch: int, states: Mapping[int, step.State]) -> dict[str, list[dict]]:
        """Name -> rows, of the replicas given by seed."""
        variables = {seed: {"params": state.params, **state.stats} for seed, state in states.items()}
        seen = subjects(
            self._task, self._split, self._task.config.probes.images, variables, "init" if epoch == 0 else "trained"
        )
        seen = {seed: at._replace(update=self._updater(states[seed])) for seed, at in seen.items()}
        found = {}
        for name in names:
            rows = PROBES[name](seen).assign(epoch=epoch).to_dict("records")
            found[name] = [{key: history.jsonable(value) for key, value in row.items()} for row in rows]
        return found

    def _updater(self, state: step.State):
        return lambda gradients: self._update(gradients, state.opt_state, state.params)[0]
