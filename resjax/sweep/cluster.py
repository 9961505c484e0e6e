"""Jobs as processes of their own: on SLURM where there is one, else by submitit's executor on this machine.

What to do goes out, and why it failed comes back, through pickles that submitit writes and reads in WORKDIR/jobs, a
directory that its owner alone may enter; nothing here reads one. A job's log lies there as well.
"""

import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from resjax.config import ConfigError
from resjax.runtime.interrupt import Interrupted, StopSignals
from resjax.sweep.jobs import Event, Job
from resjax.sweep.submitted import Submitted, run

DAY = 24 * 60  # minutes
POLL_SECONDS = 0.5
RETRY_SECONDS = 20  # after a submission that was refused
GIVE_UP_SECONDS = 600  # of refusals while nothing runs
STOP_SECONDS = 90  # in which a job that was told to stop should have saved


class Cluster:
    """A launcher (resjax.sweep.launchers) that submits jobs and waits for them; with itself it stops them.

    Args:
      workdir: of the run directories, on a file system that all hosts share.
      jobs: submitted at a time; None: 100 on SLURM, 1 on one machine, where each job may use all of it.
      time_limit: minutes; None: a day. A job is told to save half a minute (SLURM: 90 s) before.
      gpus: of a job on SLURM; None: 1. Elsewhere jobs see the devices that this process sees.
      partition: of SLURM; None: its default.

    Raises:
      ConfigError: submitit is not installed, or a value can't work.
    """

    def __init__(self, workdir: str, jobs=None, time_limit=None, gpus=None, partition=None):
        try:
            import submitit
        except ImportError:
            raise ConfigError("--launcher=submitit: .venv/bin/pip install --editable '.[cluster]'") from None
        self._submitit, self._folder = submitit, Path(workdir) / "jobs"
        self._slurm = submitit.SlurmExecutor.affinity() > 0
        for flag, value, least in (("jobs", jobs, 1), ("time_limit", time_limit, 1), ("gpus", gpus, 0)):
            if value is not None and value < least:
                raise ConfigError(f"--{flag}={value}: must be at least {least}")
        for flag, value in {"gpus": gpus, "partition": partition}.items():
            if value is not None and not self._slurm:
                raise ConfigError(f"--{flag} is for SLURM, and there is no srun here: jobs would run on this machine")
        self._limit = jobs or (100 if self._slurm else 1)
        self._parameters = {
            "name": "resjax",
            "timeout_min": time_limit or DAY,
            "slurm_partition": partition,
            # None, not 0: a partition without GPUs may refuse the question.
            "gpus_per_node": ((1 if gpus is None else gpus) or None) if self._slurm else None,
            # Who was preempted continues with the same command; SLURM must not start it a second time.
            "slurm_additional_parameters": {"no_requeue": True},
        }

    def __call__(self, jobs: Mapping[str, Job]) -> Iterator[Event]:
        """Submits `jobs`; if this process is told to stop, so are they, and Interrupted is raised."""
        if not jobs:
            return
        waiting, executor = dict(jobs), self._executor()
        out: dict[str, Submitted] = {}
        pause, failing_since = 0.0, None
        with StopSignals() as signals:
            try:
                while waiting or out:
                    while waiting and len(out) < self._limit and time.monotonic() > pause and not signals.received:
                        label = next(iter(waiting))
                        try:
                            out[label] = self._submit(executor, label, waiting[label])
                        except (OSError, RuntimeError) as error:  # as many as one may have here, or out of order
                            now = time.monotonic()
                            failing_since = failing_since or now
                            if not out and (len(waiting) == len(jobs) or now - failing_since > GIVE_UP_SECONDS):
                                line = " ".join(str(error).split())
                                raise ConfigError(f"a job can't be submitted: {line}") from None
                            pause = now + RETRY_SECONDS
                        else:
                            del waiting[label]
                            failing_since = None
                    for label in list(out):
                        yield from out[label].changes()
                        if out[label].ended:
                            del out[label]
                    if signals.received:
                        raise Interrupted(signals.received)
                    time.sleep(POLL_SECONDS)
            finally:
                _stop(out.values())

    def _executor(self):
        """Keeps its files in a new directory: they are named by process ids, which come again."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = self._folder.stat()
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"{self._folder}: what lies there is executed, and others may enter it; chmod 700 it")
            folder = tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=self._folder)
        except OSError as error:
            raise ConfigError(f"cannot write {self._folder}: {error.strerror}; choose another --workdir") from None
        executor = self._submitit.AutoExecutor(folder, cluster="slurm" if self._slurm else "local")
        executor.update_parameters(**self._parameters)
        return executor

    def _submit(self, executor, label: str, job: Job) -> Submitted:
        devices = {k: v for k, v in os.environ.items() if k == "CUDA_VISIBLE_DEVICES"}
        # Ctrl-C reaches all processes of a terminal. Blocked in those that are started here, it comes to this one
        # alone, which tells the others once: the second time would end a training without saving.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            submitted = executor.submit(run, label, job, sys.argv, None if self._slurm else devices)
            return Submitted(label, submitted, self._slurm)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(jobs: Collection[Submitted]) -> None:
    """Tells all jobs to save and end, and waits for it."""
    for job in jobs:
        job.stop()
    until = time.monotonic() + STOP_SECONDS
    while (running := sum(job.stopping() for job in jobs)) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    if running:
        print(f"{running} jobs have not ended yet", file=sys.stderr)
