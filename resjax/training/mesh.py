"""Where replicas run: over devices first, then one after another on each; a batch may be split over devices too.

`jit` shards over a mesh ("replica", "batch"): XLA inserts the communication, and BatchNorm sees the global batch.
`pmap` splits every batch over all devices and names that axis, over which BatchNorm and gradients are averaged.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from resjax.config import ConfigError

BATCH_AXIS = "batch"


class BatchSplit(NamedTuple):
    """How a batch lies on the devices: pmap's axis and its size, and where jit puts a whole batch."""

    axis_name: str | None = None
    parts: int = 1
    place: Callable = lambda batch: batch


class Replicas:
    """Maps a function of one replica over all replicas and devices.

    Attributes:
      batch_parts: number of devices that share a batch.
      device_count: number of devices in use.
    """

    def __init__(self, config: ConfigDict):
        """Raises ConfigError if the devices can't share a batch evenly, or some of several processes had none."""
        devices = jax.devices()
        self._pmap = config.parallel == "pmap"
        self.batch_parts = config.batch_devices or _batch_parts(config, devices)
        if self.batch_parts > len(devices):
            raise ConfigError(f"config.batch_devices={config.batch_devices}: only {len(devices)} devices are here")
        if config.batch_size % self.batch_parts:
            raise ConfigError(
                f"config.batch_size={config.batch_size}: must be a multiple of {self.batch_parts}, "
                "the number of devices that share a batch (config.batch_devices)"
            )
        rows = 1 if self._pmap else math.gcd(config.seeds, len(devices) // self.batch_parts)
        self.device_count = rows * self.batch_parts
        if jax.process_count() > 1 and (self._pmap or self.device_count < len(devices)):
            raise ConfigError(
                "config.parallel=pmap: for one process alone; use jit"
                if self._pmap
                else f"config.seeds={config.seeds} and config.batch_devices={config.batch_devices} use only "
                f"{self.device_count} of the {len(devices)} devices of {jax.process_count()} processes"
            )
        self._on_one_device = jax.vmap if config.replicas == "vmap" else _one_by_one
        self._mesh = jax.make_mesh(
            (rows, self.batch_parts),
            ("replica", BATCH_AXIS),
            axis_types=(AxisType.Auto,) * 2,
            devices=devices[: self.device_count],
        )

    def spread(self, own: Any) -> Any:
        """Places arrays [replicas, ...] on the devices that own them."""
        return self._placed(own, P("replica"))

    def copy(self, fixed: Any) -> Any:
        """Places a copy of the arrays on every device."""
        return self._placed(fixed, P())

    def _placed(self, tree, spec: P):
        sharding = NamedSharding(self._mesh, spec)
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)

        def from_host(array):  # each process places what its devices hold; device_put would compare the hosts' arrays
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(from_host, tree)

    def compile(self, function: Callable, *, donate: bool = False) -> Callable:
        """`function(fixed, own) -> own` of one replica, compiled for all of them: `own` becomes [replicas, ...].

        With `donate`, the result takes the memory of `own`.
        """

        def local(fixed, own):
            return self._on_one_device(partial(function, fixed))(own)

        mapped = jax.shard_map(
            local,
            mesh=self._mesh,
            in_specs=(P(), P("replica")),
            out_specs=P("replica"),
            axis_names={"replica"},
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=(1,) if donate else ())

    def compile_training(self, function: Callable) -> Callable:
        """As `compile`, for `function(fixed, own, split=BatchSplit)`, whose batches may lie on several devices.

        Its `lower(fixed, own).compile()` is the program that a call runs, compiled once for both.
        """
        if not self._pmap:
            place = partial(lax.with_sharding_constraint, shardings=NamedSharding(self._mesh, P(BATCH_AXIS)))
            split = BatchSplit(place=place) if self.batch_parts > 1 else BatchSplit()
            return self.compile(partial(function, split=split), donate=True)

        split = BatchSplit(BATCH_AXIS, self.batch_parts)

        def local(fixed, own, _):
            return self._on_one_device(partial(function, fixed, split=split))(own)

        mapped = jax.pmap(
            local, axis_name=BATCH_AXIS, in_axes=(None, None, 0), out_axes=None, devices=list(self._mesh.devices.flat)
        )
        # pmap must map over something, and gives results its own sharding.
        return _Split(mapped, jnp.arange(self.batch_parts), self.spread)


class _Split(NamedTuple):
    """What pmap made of a function of (fixed, own), called and lowered as if jit had made it."""

    mapped: Callable
    index: jax.Array
    place: Callable

    def __call__(self, fixed: Any, own: Any) -> Any:
        return self.place(self.mapped(fixed, own, self.index))

    def lower(self, fixed: Any, own: Any) -> jax.stages.Lowered:
        return self.mapped.lower(fixed, own, self.index)


def _batch_parts(config: ConfigDict, devices: list) -> int:
    """Devices per batch where the config leaves it open."""
    if config.parallel == "pmap":
        return len(devices)
    if devices[0].platform == "cpu" and jax.process_count() == 1:
        return 1  # virtual devices share their cores: splitting a batch only adds copies
    return len(devices) // math.gcd(config.seeds, len(devices))


def _one_by_one(function: Callable) -> Callable:
    return partial(lax.map, function)
