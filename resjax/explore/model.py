"""What the explorer shows, computed: runs opened again, the classes on a plane, what a net does at one point of it."""

import os
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import contourpy
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy import ndimage

from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.data import batches
from resjax.data.dataset import Dataset, Split
from resjax.models.merges import Merge
from resjax.probes.blocks import connections
from resjax.probes.functions.function import logits
from resjax.probes.functions.planes import Plane
from resjax.probes.gates.gate_points import apply_with_gates
from resjax.probes.gates.masks import factor, mask
from resjax.training import rundir, trained

POINTS = 81  # of a side of the grid over a plane
MARGIN = 0.2  # around the corners, as a share of their extent
READS = "all blocks"
LOW, HIGH = 0.1, 0.9  # the quantiles that tell the spread of a gate's values


class Run(NamedTuple):
    """A finished run.

    Attributes:
      name: merge, depth, data set and run directory.
      net: of all its replicas.
      variables: seed -> the trained variables of a replica that did not diverge.
      merges: merge point -> what it declares (`gate_points.apply_with_gates`).
    """

    name: str
    net: nn.Module
    variables: dict[int, dict[str, Any]]
    merges: dict[str, Merge | None]


class Pictures(NamedTuple):
    """The test images that all runs share, their number of classes, and the statistics that normalise them."""

    split: Split
    num_classes: int
    mean_C: np.ndarray
    std_C: np.ndarray

    def same_as(self, others: "Pictures") -> bool:
        """Whether an index means the same image, label and input."""
        ours, theirs = ((*vars(p.split).values(), *p[1:]) for p in (self, others))
        return all(map(np.array_equal, ours, theirs))

    def inputs(self, index_N: Iterable[int]) -> np.ndarray:
        """Images as nets see them, normalised, float32 [N, H, W, C]."""
        images_NxHxWxC = jnp.asarray(self.split.images_NxHxWxC[list(index_N)])
        return np.asarray(batches.normalize(images_NxHxWxC, self.mean_C, self.std_C))

    def colours(self, x_NxHxWxC: np.ndarray) -> np.ndarray:
        """Normalised images as they look, uint8 [N, H, W, 3]: clipped to what can be shown, grey unless C is 3."""
        pixels = np.rint(np.clip(x_NxHxWxC * self.std_C + self.mean_C, 0, 1) * 255).astype(np.uint8)
        grey = pixels if pixels.shape[-1] == 3 else pixels.mean(-1, keepdims=True).astype(np.uint8)
        return np.broadcast_to(grey, (*pixels.shape[:-1], 3))

    def another(self, rng: np.random.Generator, label: int | None) -> int:
        """Position of a random image, of one class if a label is given."""
        labels_N = self.split.labels_N
        return int(rng.choice(np.flatnonzero(labels_N == label) if label is not None else len(labels_N)))


class Regions(NamedTuple):
    """What a net says on the grid of a plane.

    Attributes:
      xy_PxPx2: coordinates (`planes.Plane.grid`).
      class_PxP: the class of the largest logit.
      lead_PxP: its probability less the next one's, in [0, 1].
      borders: lines [N, 2] between classes, interpolated linearly.
      extent: smallest and largest finite logit.
    """

    xy_PxPx2: np.ndarray
    class_PxP: np.ndarray
    lead_PxP: np.ndarray
    borders: list[np.ndarray]
    extent: tuple[float, float]


class Look(NamedTuple):
    """What a net does with one image.

    Attributes:
      logits_K: its answer.
      masks: merge point -> [H, W] (`resjax.probes.gates.masks`); empty if the net has no maps.
      gates: a row per merge point: block, and mean, low and high (the quantiles LOW and HIGH) of what
        `masks.factor` says the other path is multiplied by, over its positions and channels.
      weights: of a connection, means over positions. Block -> [n, n], the weight of stream i in the next stream j; or
        READS -> [L, L], that of output j (the first is the stem's) in what block i (the last is the head) reads.
    """

    logits_K: np.ndarray
    masks: OrderedDict[str, np.ndarray]
    gates: pd.DataFrame
    weights: OrderedDict[str, np.ndarray]


def open_runs(run_dirs: Iterable[str | os.PathLike]) -> tuple[list[Run], Pictures]:
    """The runs, in their order, and the test images that they share.

    Raises:
      ConfigError: one is not a finished run, is left with no replica, or has other test images than the first.
    """
    runs: list[Run] = []
    pictures, first = None, ""
    for run_dir in [Path(d).expanduser().resolve() for d in run_dirs]:
        config = tables.read_config(run_dir)
        expected = rundir.path_of(config, run_dir.parent)
        if expected != run_dir:
            raise ConfigError(f"{run_dir}: its name is not that of its config, {expected.name}; was it renamed?")
        run = trained.reopen(config, run_dir.parent)
        if not run.seeds:
            raise ConfigError(f"{run_dir}: all its replicas diverged")
        about = tables.config_columns(config)
        own = _pictures(run.dataset)
        if pictures is None:
            pictures, first = own, about["dataset"]
        elif not own.same_as(pictures):
            raise ConfigError(f"{run_dir} is of {about['dataset']}: its test images are not those of {first}")
        variables = jax.device_put(run.final)
        merges = _merges(run.task.net, variables[run.seeds[0]], pictures.inputs([0]))
        words = (about["merge"], f"depth {about['depth']}", about["dataset"], run_dir.name)
        runs.append(Run(", ".join(words), run.task.net, variables, merges))
    return runs, pictures


def _pictures(dataset: Dataset) -> Pictures:
    return Pictures(dataset.test, dataset.num_classes, dataset.mean_C, dataset.std_C)


def _merges(net: nn.Module, variables: dict, x: np.ndarray) -> dict[str, Merge | None]:
    found = {}
    jax.eval_shape(lambda variables, x: found.update(apply_with_gates(net, variables, x)[2]), variables, x)
    return found


def regions(run: Run, seed: int, plane: Plane) -> Regions:
    """The classes of one replica on a square around the corners of the plane."""
    xy_PxPx2 = plane.grid(POINTS, MARGIN)
    rows = [np.asarray(logits(run.net, run.variables[seed], plane.images(row))) for row in xy_PxPx2]
    logits_PxPxK = np.stack(rows).astype(float)
    highest_PxPxK = np.sort(softmax(logits_PxPxK), -1)
    lead_PxP = highest_PxPxK[..., -1] - highest_PxPxK[..., -2]
    finite = logits_PxPxK[np.isfinite(logits_PxPxK)]
    extent = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return Regions(xy_PxPx2, logits_PxPxK.argmax(-1), lead_PxP, _borders(logits_PxPxK, xy_PxPx2), extent)


def _borders(logits_PxPxK: np.ndarray, xy_PxPx2: np.ndarray) -> list[np.ndarray]:
    """Where a class's logit equals the largest of the others."""
    lines = []
    for k in np.unique(logits_PxPxK.argmax(-1)):
        others = np.delete(logits_PxPxK, k, -1).max(-1)
        ahead = contourpy.contour_generator(xy_PxPx2[0, :, 0], xy_PxPx2[:, 0, 1], logits_PxPxK[..., k] - others)
        lines += ahead.lines(0.0)
    return lines


def seats(class_PxP: np.ndarray) -> dict[int, tuple[int, int]]:
    """Class -> row and column of the grid point deepest inside its region, if it is wide enough for a number."""
    found = {}
    for k in np.unique(class_PxP):
        depth_PxP = ndimage.distance_transform_edt(np.pad(class_PxP == k, 1))[1:-1, 1:-1]
        if depth_PxP.max() > 3:
            found[int(k)] = tuple(map(int, np.unravel_index(depth_PxP.argmax(), depth_PxP.shape)))
    return found


def look(run: Run, seed: int, x_HxWxC: np.ndarray) -> Look:
    """What one replica does with a normalised image."""
    logits_K, found, weights = jax.device_get(_look(run.net, run.variables[seed], x_HxWxC[None]))
    rows = [(name, float(mean), float(low), float(high)) for name, (_, mean, low, high) in found.items()]
    gates = pd.DataFrame(rows, columns=["block", "mean", "low", "high"])
    masks = OrderedDict((name, mask_HxW) for name, (mask_HxW, *_) in found.items() if mask_HxW is not None)
    return Look(logits_K, masks, gates, _squares(run.net, weights))


def _squares(net: nn.Module, weights: OrderedDict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
    """Mixing matrices as they are; what all blocks read, of more and more outputs, as one matrix."""
    if not weights or net.connection.write in connections.MIXING:
        return weights
    reads_LxL = np.zeros((len(weights), max(map(len, weights.values()))))
    for i, own_Lx1 in enumerate(weights.values()):
        reads_LxL[i, : len(own_Lx1)] = own_Lx1[:, 0]
    return OrderedDict({READS: reads_LxL})


@partial(jax.jit, static_argnames="net")
def _look(net: nn.Module, variables: dict, x_1xHxWxC: jax.Array) -> tuple[jax.Array, OrderedDict, OrderedDict]:
    """Logits [K]; of every merge point its mask [H, W] or None, and mean and two quantiles of its factor; and what
    each block reads or mixes, the mean over positions of `connections.weights`.
    """
    logits_1xK, points, merges = apply_with_gates(net, variables, x_1xHxWxC)
    found = OrderedDict()
    for name, point in points.items():
        gate, maps = factor(point, merges[name]), point.f.ndim == 4
        low, high = jnp.quantile(gate, jnp.array([LOW, HIGH]))
        found[name] = mask(point, merges[name])[0] if maps else None, jnp.mean(gate), low, high
    read = connections.weights(net, variables, x_1xHxWxC)
    return (
        logits_1xK[0],
        found,
        OrderedDict((name, jnp.mean(own, tuple(range(1, own.ndim - 1)))) for name, own in read.items()),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [..., K] of finite logits [..., K]; 0 where none of them is finite enough to say."""
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return np.nan_to_num(powers / powers.sum(-1, keepdims=True))
