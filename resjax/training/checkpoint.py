"""Saving and restoring what a run has reached: the only file that knows orbax.

orbax renames a checkpoint into place when it is whole, but a byte that flips later comes back unnoticed. So a step is
sealed: SEAL.json in it has the SHA-256 of every array as it was in memory, of every file, and of itself. A checkpoint
counts only if all of them agree; the newest such one is used, and the others are named. They are numbered as they
come: a run may be saved twice after the same step, before and after the metrics of its epoch are written.

One process writes (the first), in the background; arrays are whole, so that a run may continue on other devices.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resjax.config import ConfigError
from resjax.runtime import hosts

SEAL = "SEAL.json"
UNSEALED = ".unsealed"  # a file beside a checkpoint that is being written


class Saved(NamedTuple):
    """What was saved: after `step` steps, with `epoch` epochs in metrics.jsonl; `tree` has NumPy arrays."""

    step: int
    epoch: int
    tree: Any


class Checkpoints:
    """The checkpoints of the run that this process writes; a context manager, whose end waits for the last save.

    Args:
      path: their directory.
      keep: how many of the newest are kept.
    """

    def __init__(self, path: Path, keep: int):
        self._path, self._keep = path.resolve(), keep
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future | None = None
        self._count = 0  # the number of the newest
        self._position: tuple[int, int] | None = None  # step and epoch of the newest

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_):
        self._writer.shutdown()
        if "_manager" in self.__dict__:
            self._manager.close()

    @cached_property
    def _manager(self):
        import orbax.checkpoint as ocp  # seconds to import, and needed first at the end of a short run

        self._path.mkdir(parents=True, exist_ok=True)
        # Old steps go when the new one is sealed (_write), not when it is written.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None,
            create=False,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}),
        )
        return ocp.CheckpointManager(self._path, options=options)

    def save(self, step: int, epoch: int, tree: Any) -> None:
        """Saves in the background, unless this is saved. Raises OSError if the save before this one failed."""
        self.wait()
        if (step, epoch) != self._position:
            arrays = flatten(hosts.fetch(tree))
            self._count += 1
            if hosts.is_first():
                self._pending = self._writer.submit(self._write, self._count, step, epoch, arrays)
            self._position = step, epoch

    def wait(self) -> None:
        """Returns when all is on disk. Raises OSError, with what to do, if something is not."""
        pending, self._pending = self._pending, None
        hosts.run_on_first(lambda: pending.result() if pending else None)

    def _write(self, number: int, step: int, epoch: int, arrays: dict[str, np.ndarray]) -> None:
        import orbax.checkpoint as ocp

        place, unsealed = self._path / str(number), self._path / f"{number}{UNSEALED}"
        try:
            _make_sure_of_room(self._manager.directory, sum(array.nbytes for array in arrays.values()))
            unsealed.touch()
            self._manager.save(number, args=ocp.args.PyTreeSave(arrays))
            _seal(place, step, epoch, arrays)
            unsealed.unlink()
        except Exception as error:
            shutil.rmtree(place, ignore_errors=True)
            why = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise OSError(
                f"the checkpoint of step {step} can't be written to {self._path} ({why}): older ones are untouched, "
                "and the same command continues from there"
            ) from error
        for old in _numbers(self._path)[self._keep :]:
            shutil.rmtree(self._path / str(old), ignore_errors=True)  # what is left of it goes with the next one

    def restore(self, like: Any) -> Saved | None:
        """The newest good checkpoint, in the structure of `like`; None if there is none at all. Bad ones are set aside.

        Raises:
          ConfigError: there are some but none is good, or the newest does not fit `like`.
        """
        arrays = flatten(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like))
        found = hosts.run_on_first(lambda: self._restore_into(arrays))
        if found is None:
            return None
        self._count, *position = found
        self._position = step, epoch = tuple(position)
        return Saved(step, epoch, unflatten(hosts.broadcast(arrays), like))

    def _restore_into(self, arrays: dict[str, np.ndarray]) -> tuple[int, int, int] | None:
        """Replaces `arrays` by those of the newest good one; returns its number, step and epoch."""
        for left in self._path.glob(f"*{UNSEALED}") if self._path.exists() else ():  # by a process that was killed
            shutil.rmtree(self._path / left.name.removesuffix(UNSEALED), ignore_errors=True)
            left.unlink()
        good, bad = newest_good(self._path)
        if good is None:
            return None
        place = self._path / str(good)
        arrays |= _fit(_arrays(place), arrays, self._path)
        for number in bad:  # out of the way of the next ones
            aside = self._path / f"{number}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self._path / str(number)).rename(aside)
        seal = _read_seal(place)
        return good, seal["step"], seal["epoch"]


def read(path: Path, like: Any) -> Saved | None:
    """The newest good checkpoint of a run that is only looked at; else as `Checkpoints.restore`."""
    number, _ = newest_good(path)
    if number is None:
        return None
    place = path.resolve() / str(number)
    arrays, seal = _fit(_arrays(place), flatten(like), path), _read_seal(place)
    return Saved(seal["step"], seal["epoch"], unflatten(arrays, like))


def newest_good(path: Path) -> tuple[int | None, list[int]]:
    """The newest checkpoint that is as it was saved, and the newer ones, which are not and are named on stderr.

    Raises:
      ConfigError: there are some, but none is good.
    """
    flaws: dict[int, str] = {}
    for number in _numbers(path):
        if not (flaw := _flaw(path / str(number))):
            for bad, why in flaws.items():
                print(f"warning: checkpoint {path / str(bad)} is damaged ({why}); using {number}", file=sys.stderr)
            return number, list(flaws)
        flaws[number] = flaw
    if flaws:
        reasons = "; ".join(f"{number}: {flaw}" for number, flaw in flaws.items())
        raise ConfigError(f"no checkpoint in {path} is good ({reasons}): to start over, delete {path.parent}")
    return None, []


def _numbers(path: Path) -> list[int]:
    """Of the checkpoints, the newest first."""
    names = [p.name for p in path.iterdir()] if path.exists() else []
    return sorted((int(name) for name in names if name.isdigit() and f"{name}{UNSEALED}" not in names), reverse=True)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Copies of the arrays of `tree` by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): np.array(leaf) for path, leaf in leaves}  # a copy: training goes on in the same memory


def unflatten(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """`flatten` undone."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], like)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _fit(arrays: dict[str, np.ndarray], like: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    for name in sorted(set(arrays) | set(like)):
        kinds = [(a[name].shape, str(a[name].dtype)) if name in a else "nothing" for a in (arrays, like)]
        if kinds[0] != kinds[1]:
            why = f"{name} is {kinds[0]} there and {kinds[1]} here"
            raise ConfigError(f"the checkpoints in {path} were made by other code ({why}): to start over, delete it")
    return arrays


def _arrays(place: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    names = _read_seal(place)["arrays"]
    as_numpy = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
    checkpointer = ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(),
        multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}),
    )
    with checkpointer:
        arrays = checkpointer.restore(place / "default", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    for name, digest in names.items():
        if _digest_of(arrays[name]) != digest:
            raise ConfigError(f"{place}: {name} came back with other values than were saved; delete {place}")
    return arrays


def _make_sure_of_room(path: Path, size: int) -> None:
    """Raises OSError if `size` bytes and a little more don't fit: orbax says that in pages, from several threads."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with tempfile.TemporaryFile(dir=path) as probe:
        os.posix_fallocate(probe.fileno(), 0, size + 2**20)


def _seal(place: Path, step: int, epoch: int, arrays: dict[str, np.ndarray]) -> None:
    files = sorted(p for p in place.rglob("*") if p.is_file())
    seal: dict[str, Any] = {
        "step": step,
        "epoch": epoch,
        "arrays": {name: _digest_of(array) for name, array in sorted(arrays.items())},
        "files": {str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    }
    temporary = place / f".{SEAL}.{os.getpid()}"
    temporary.write_text(json.dumps(seal | {"seal": _digest_of_seal(seal)}, indent=1))
    temporary.replace(place / SEAL)


def _read_seal(place: Path) -> dict[str, Any]:
    """Raises ValueError if it is not what was written."""
    seal = json.loads((place / SEAL).read_text())
    if not isinstance(seal, dict) or seal.pop("seal", None) != _digest_of_seal(seal):
        raise ValueError
    return seal


def _flaw(place: Path) -> str:
    """What is wrong with a checkpoint; "" if nothing is."""
    try:
        seal = _read_seal(place)
    except FileNotFoundError:
        return f"it has no {SEAL}"
    except (OSError, ValueError):
        return f"{SEAL} is damaged"
    for name, digest in seal["files"].items():
        try:
            if hashlib.sha256((place / name).read_bytes()).hexdigest() != digest:
                return f"{name} has changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return ""


def _digest_of(array: np.ndarray) -> str:
    kind = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(kind + np.ascontiguousarray(array).tobytes()).hexdigest()


def _digest_of_seal(seal: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(seal, sort_keys=True).encode()).hexdigest()
