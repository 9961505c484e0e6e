"""The files of a symmetric kernel that is computed in pieces: what is done, and what it is the kernel of.

PATH.npy is the kernel once it is whole, PATH.json its record, and the directory PATH.pieces holds what is done until
then. A piece has the rows of one strip, from the diagonal to the right, summed over the first groups of logits; every
file is written whole or not at all, so that a process may be killed at any moment.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resjax.config import ConfigError
from resjax.ntk.empirical import mirrored
from resjax.records import read_json, replacing, write_json

TOLERANCE = 1e-3  # of logits, over their largest: another machine rounds differently, another net differs by far more


def digest(*trees: Any) -> str:
    """SHA-256 of the leaves of pytrees with their paths, dtypes and shapes; functions do not enter."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {np.shape(leaf)};".encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()


class Pieces:
    """What stands on the disk of the kernel [n, n].

    Args:
      path: ends with .npy.
      of: the digest of all that the kernel depends on but the function.
      logits: [samples, C] of the first samples, which tell functions with the same leaves apart.
      n: samples.

    Raises:
      ConfigError: the record is of something else or damaged, or the kernel has no record.
    """

    def __init__(self, path: Path, of: str, logits: np.ndarray, n: int):
        if path.suffix != ".npy":
            raise ConfigError(f"{path}: the file of a kernel must end with .npy")
        self._path, self._directory, self._record = path, path.with_suffix(".pieces"), path.with_suffix(".json")
        self._n, self._own = n, {"of": of, "first_logits": np.asarray(logits, float).tolist()}
        self.plan: dict | None = None  # how the kernel was begun, if it was
        if self._record.exists():
            record = read_json(self._record)
            if not self._is_own(record):
                raise ConfigError(f"{path}: is the kernel of another net or of other samples; choose another path")
            self.plan = record["plan"]
        elif path.exists() or self._directory.exists():
            raise ConfigError(f"{path}: {self._record.name}, which says what it is of, is missing; choose another path")

    def _is_own(self, record: dict) -> bool:
        own, other = (np.asarray(r.get("first_logits", ()), float) for r in (self._own, record))
        if record.get("of") != self._own["of"] or own.shape != other.shape or not isinstance(record.get("plan"), dict):
            return False
        return bool(np.abs(own - other).max() <= TOLERANCE * np.abs(own).max())

    def begin(self, plan: dict) -> None:
        """Writes the record, before the first piece."""
        write_json(self._record, self._own | {"plan": plan})

    def finished(self) -> np.ndarray | None:
        """The whole kernel, mapped and read-only, or None. Raises ConfigError if the file is damaged."""
        if not self._path.exists():
            return None
        kernel = _mapped(self._path, (self._n, self._n))
        shutil.rmtree(self._directory, ignore_errors=True)  # a process that was killed after `join` has left it
        return kernel

    def done(self, start: int, stop: int) -> int:
        """How many groups of logits the newest piece of the strip has; 0: there is none."""
        found = [int(p.stem.rpartition("_")[2]) for p in self._directory.glob(f"{self._piece(start, stop, '*').name}")]
        return max(found, default=0)

    def load(self, start: int, stop: int) -> np.ndarray:
        """The sums [stop - start, n - start] of the strip so far, mapped, or zeros. Raises ConfigError."""
        groups, shape = self.done(start, stop), (stop - start, self._n - start)
        return _mapped(self._piece(start, stop, groups), shape) if groups else np.zeros(shape, np.float32)

    def keep(self, start: int, stop: int, groups: int, sums: np.ndarray) -> None:
        """Writes the sums of the strip over its first `groups` groups, and removes the older ones."""
        with replacing(self._piece(start, stop, groups)) as temporary:
            np.save(temporary, sums)
        for older in range(1, groups):
            self._piece(start, stop, older).unlink(missing_ok=True)

    def _piece(self, start: int, stop: int, groups: int | str) -> Path:
        return self._directory / f"rows_{start}_{stop}_groups_{groups}.npy"

    def join(self, strips: list[tuple[int, int]]) -> np.ndarray:
        """Writes the whole kernel from all its strips, and removes them. The disk holds both meanwhile."""
        with replacing(self._path) as temporary:
            kernel = np.lib.format.open_memmap(temporary, "w+", np.float32, (self._n, self._n))
            for start, stop in strips:
                kernel[start:stop, start:] = self.load(start, stop)
            mirrored(kernel).flush()
        del kernel
        return self.finished()


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array in a file. Raises ConfigError if it is truncated or has another shape."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: damaged ({error}); remove it, and what it had is computed again") from None
    if array.shape != shape or array.dtype != np.float32:
        raise ConfigError(f"{path}: has {array.dtype} {array.shape} and should have float32 {shape}; remove it")
    return array
