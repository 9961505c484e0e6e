"""One submitted job: what became of it as its submitter sees it, and what its own process does."""

import os
import signal
import sys
import time
from collections.abc import Iterator

from resjax.runtime.interrupt import SIGNALS, Interrupted
from resjax.sweep.jobs import Event, Job, reason

REFRESH_SECONDS = 30  # between two questions to SLURM; submitit alone asks every ten minutes
RESULT_SECONDS = 15  # until a file that was written on another host must have come
INTERRUPTED = "interrupted; the same command continues it"


class Submitted:
    """A job that was submitted.

    Attributes:
      ended: whether it has been told what became of it.
    """

    _asked = 0.0  # when SLURM was asked last, about all of them

    def __init__(self, label: str, job, slurm: bool):
        self.ended = False
        self._label, self._job, self._slurm = label, job, slurm
        self._running, self._gone = False, None

    def changes(self) -> Iterator[Event]:
        """What has become of it since the last call."""
        self._refresh(REFRESH_SECONDS)
        why = self._outcome()
        if not self._running and (why is not None or self._job.state == "RUNNING"):
            self._running = True
            yield Event(self._label, "running")
        if why is not None:
            self.ended = True
            yield Event(self._label, "failed" if why else "done", why)

    def _outcome(self) -> str | None:
        """Why it failed, "" if it did not; None while it goes on."""
        if not self._job.done() and self._job.state != "PREEMPTED":  # submitit waits for a requeue that will not come
            return None
        if self._job.paths.result_pickle.exists():
            why = self._result()
        else:
            self._gone = self._gone or time.monotonic()
            if self._slurm and time.monotonic() - self._gone < RESULT_SECONDS:
                return None
            slurm = f", SLURM says {self._job.state}" if self._slurm else ""
            why = f"ended without a result (killed or preempted{slurm}); its log: {self._job.paths.stderr}"
        for file in (self._job.paths.submitted_pickle, self._job.paths.result_pickle):
            file.unlink(missing_ok=True)
        return why

    def _result(self) -> str:
        try:
            return self._job.result()
        except Exception as error:  # it could not even begin: the last line of its traceback says why
            return str(error).rpartition("\n---")[0].strip().rpartition("\n")[2] or reason(self._label, error)

    def stop(self) -> None:
        """Tells it once to save and end."""
        if self._slurm:
            self._job.cancel(check=False)
        elif not self._job.done():
            # The controller passes it on and waits; submitit's own cancel() kills after a second.
            os.kill(int(self._job.job_id), signal.SIGTERM)

    def stopping(self) -> bool:
        """Whether it has yet to end after `stop`."""
        self._refresh(5)
        return not self._job.done() and self._job.state != "PENDING"

    def _refresh(self, seconds: float) -> None:
        """Asks SLURM how all jobs are, unless it did so within as many seconds."""
        if self._slurm and time.monotonic() - Submitted._asked > seconds:
            Submitted._asked = time.monotonic()
            self._job.get_info(mode="force")


def run(label: str, job: Job, command: list[str], devices: dict[str, str] | None) -> str:
    """What a submitted process does: `job`; returns why it failed, "" if it did not.

    Args:
      label: of the job.
      job: what to do.
      command: that a run notes as its origin, in place of submitit's.
      devices: the variables that say which GPUs there are, where submitit hides all that were not asked for.
    """
    for signum in SIGNALS:  # a training has handlers of its own; those of submitit would only note SIGTERM
        signal.signal(signum, _interrupt)
    sys.argv = command
    if devices is not None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.update(devices)
    try:
        job()
    except Interrupted:
        return INTERRUPTED
    except Exception as error:
        return reason(label, error)
    return ""


def _interrupt(signum: int, _frame) -> None:
    raise Interrupted(signum)
