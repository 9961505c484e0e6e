"""The small files of finished runs, outside the work directory: what is committed, so that nothing is trained twice.

A run whose record lies here counts as finished on any machine: its table is read from there. Weights stay behind.
"""

import shutil
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from resjax import records
from resjax.sweep.runs import Train
from resjax.training import rundir

FILES = (records.CONFIG, records.ENV, records.SUMMARY, records.METRICS, records.STATUS)  # the last one completes it


class Archive:
    """A folder of finished runs, named as in the work directory, which may be the same."""

    def __init__(self, folder: Path, workdir: Path):
        self.folder, self.workdir = folder, workdir

    def has(self, config: ConfigDict) -> bool:
        """Whether the run is finished, here or in the work directory."""
        return _finished(rundir.path_of(config, self.folder)) or _finished(rundir.path_of(config, self.workdir))

    def restore(self, config: ConfigDict) -> None:
        """Brings the record of a run that is finished here, and not there, into the work directory."""
        here, there = rundir.path_of(config, self.folder), rundir.path_of(config, self.workdir)
        if _finished(here) and not _finished(there):
            _copy(here, there)

    def keep(self, config: ConfigDict) -> None:
        """Copies the record of a run that is finished in the work directory, and not here."""
        here, there = rundir.path_of(config, self.folder), rundir.path_of(config, self.workdir)
        if _finished(there) and not _finished(here):
            _copy(there, here)

    def keeping(self, train: Train) -> Train:
        """`train`, after which the run's record is kept."""
        return partial(_trained_and_kept, self, train)


def _trained_and_kept(archive: Archive, train: Train, config: ConfigDict, workdir: str) -> Path:
    path = train(config, workdir)
    archive.keep(config)
    return path


def _finished(path: Path) -> bool:
    return rundir.read_status(path).get("status") in rundir.FINISHED


def _copy(source: Path, target: Path) -> None:
    for name in FILES:
        with records.replacing(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
