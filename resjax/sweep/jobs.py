"""The jobs of a study, and what becomes of them.

A launcher is a function of jobs (label -> a call without arguments, module-level or a partial of such) that yields
what becomes of each: running, then done or failed. A job leaves its result in files; a failing one does not stop the
others.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from resjax.config import ConfigError


@dataclass(frozen=True)
class Event:
    """What became of a job.

    Attributes:
      label: its name.
      state: running, done or failed; waiting, where a study has put it off.
      reason: why it failed, in one line.
      error: what it raised, unless that was on a cluster, from where only the line comes back.
    """

    label: str
    state: str
    reason: str = ""
    error: Exception | None = None


Job = Callable[[], object]
Launcher = Callable[[Mapping[str, Job]], Iterator[Event]]


def ended(label: str, error: Exception | None) -> Event:
    """Of a job that ended without an error, or with one."""
    if error is None:
        return Event(label, "done")
    return Event(label, "failed", reason(label, error), error)


def reason(label: str, error: Exception) -> str:
    """Why a job failed, in one line; where it did goes to the log, unless the line says it all."""
    line = " ".join(str(error).split())
    if isinstance(error, ConfigError):
        return line
    logging.getLogger(__name__).error("%s failed", label, exc_info=error)
    return f"{type(error).__name__}: {line}"
