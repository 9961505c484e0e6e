"""Saving and restoring the states of all replicas: the only file that knows orbax."""

from functools import cached_property
from pathlib import Path


class Checkpoints:
    """The checkpoints of one run, by epoch; a context manager, whose end waits for pending saves.

    Args:
      path: their directory.
      keep: how many of the newest are kept.
    """

    def __init__(self, path: Path, keep: int):
        self._path, self._keep = path.resolve(), keep

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_):
        if "_manager" in self.__dict__:
            self._manager.close()

    @cached_property
    def _manager(self):
        import orbax.checkpoint as ocp  # seconds to import, and needed first at the end of a short run

        self._args = ocp.args
        return ocp.CheckpointManager(
            self._path, options=ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
        )

    def save(self, epoch: int, states) -> None:
        """Saves in the background; an error of the save before this one is raised here or at the end."""
        self._manager.save(epoch, args=self._args.StandardSave(states))

    def wait(self) -> None:
        """Returns when all saves are on disk; raises what went wrong with them."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def restore(self, like):
        """The newest (epoch, states), with the shapes and placement of `like`; None if there is none."""
        if not self._path.exists() or (epoch := self._manager.latest_step()) is None:
            return None
        return epoch, self._manager.restore(epoch, args=self._args.StandardRestore(like))
