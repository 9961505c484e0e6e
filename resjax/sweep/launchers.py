"""Where the jobs of a study run: one after the other here, in processes beside this one, or on a cluster."""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread

from resjax.config import ConfigError
from resjax.sweep.jobs import Event, Job, Launcher, ended


def add_flags(p: argparse.ArgumentParser) -> None:
    """The flags that `chosen` reads."""
    group = p.add_argument_group("many runs at a time")
    group.add_argument("--launcher", default="local", metavar="NAME", help="local or submitit; %(default)s")
    for name, metavar, text in (
        ("jobs", "N", "submitted at a time; 100 on SLURM, 1 where they share this machine"),
        ("time_limit", "MINUTES", "of a job, which is told to save before it ends; a day"),
        ("gpus", "N", "of a job on SLURM; 1"),
    ):
        group.add_argument(f"--{name}", type=int, metavar=metavar, help=text)
    group.add_argument("--partition", metavar="NAME", help="of SLURM; else its default")


def chosen(args: argparse.Namespace) -> Launcher:
    """The launcher of the flags. Raises ConfigError."""
    given = {name: getattr(args, name) for name in ("jobs", "time_limit", "gpus", "partition")}
    given = {name: value for name, value in given.items() if value is not None}
    if args.launcher == "submitit":
        from resjax.sweep.cluster import Cluster

        return Cluster(args.workdir, **given)
    if args.launcher != "local":
        raise ConfigError(f"--launcher: unknown {args.launcher!r}; choose from local, submitit")
    for name in given:
        raise ConfigError(f"--{name} is for --launcher=submitit")
    return in_this_process


def in_this_process(jobs: Mapping[str, Job]) -> Iterator[Event]:
    """One after the other, here."""
    for label, job in jobs.items():
        yield Event(label, "running")
        try:
            job()
            error = None
        except Exception as raised:  # one of many: name it, and go on
            error = raised
        yield ended(label, error)


def in_processes(jobs: Mapping[str, Job], processes: int) -> Iterator[Event]:
    """So many at a time in processes of their own, which end with this one; one alone runs here."""
    processes = min(processes, len(jobs))
    if processes < 2:
        yield from in_this_process(jobs)
        return
    from resjax.runtime.startup import cores

    # Several processes whose linear algebra uses all cores each would take many times as long.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, cores() // processes)))
    waiting, running, others = dict(jobs), {}, active_children()
    with (
        ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_end_with_parent) as executor,
        _terminating(others),
    ):
        while waiting or running:
            while waiting and len(running) < processes:
                label = next(iter(waiting))
                yield Event(label, "running")
                try:
                    running[executor.submit(waiting.pop(label))] = label
                except BrokenProcessPool as error:  # one of the processes was killed, and took the others with it
                    yield ended(label, error)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield ended(running.pop(future), future.exception())


@contextmanager
def _terminating(others: Sequence[BaseProcess]) -> Iterator[None]:
    """Terminates the children that are none of the others if the body is left before its end."""
    try:
        yield
    except BaseException:
        for child in active_children():
            if child not in others:
                child.terminate()
        raise


def _end_with_parent() -> None:
    """In a new process: ends it when the one that started it is gone, even by SIGKILL."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
