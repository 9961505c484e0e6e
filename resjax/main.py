"""Trains the replicas of one config: python -m resjax.main --config=configs/mul.py

  --config=FILE[:PRESET]     such as configs/mul.py:cifar10 or configs/mul.py:dataset=cifar100,depth=20
  --config.KEY=VALUE         overrides one entry: --config.model.depth=14 --config.seeds=3
  --workdir=DIR              root of the run directories (runs)
  --distributed=auto         this is one of several processes that train one run, under SLURM or on a TPU pod;
                             elsewhere --distributed=HOST:PORT,PROCESSES,INDEX
  --profile                  trace some steps, and say where their time goes

FILE is executed. Every key and its meaning: resjax/config.py. The same command continues a run, and leaves a
finished one alone. Exit code 1: a replica diverged, or the disk is full; 2: bad input, said in one line; 128 + n:
stopped by signal n, with all that was done saved.
"""

import contextlib
import logging
import os
import sys

from ml_collections import ConfigDict

from resjax import command_line, records
from resjax.config import ConfigError
from resjax.runtime.interrupt import exit_code


def main(argv: list[str]) -> int:
    """Runs the program on `argv`; returns its exit code."""
    if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & set(argv[1:]):
        print(__doc__)
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # orbax's failed writes, which are said in one line below
    try:
        config, workdir, distributed, profile = command_line.parse(argv)
        from resjax.runtime import startup  # after the flags: a bad one need not wait for JAX

        startup.start(config, distributed)
        return _run(config, workdir, profile)
    except ConfigError as e:
        print("error:", e, file=sys.stderr)
        return 2
    except OSError as e:
        print("error:", e, file=sys.stderr)
        return 1
    except KeyboardInterrupt as e:
        with contextlib.suppress(OSError):  # who read this may be gone, as `tee` is after Ctrl-C
            print("interrupted: the same command continues", file=sys.stderr)
        return exit_code(e)


def _run(config: ConfigDict, workdir: str, profile: bool) -> int:
    from resjax.analysis import plots, probe_figures, report
    from resjax.models.merges import MERGES
    from resjax.runtime import hosts
    from resjax.training import loop, rundir

    path = rundir.path_of(config, workdir)
    before = hosts.run_on_first(lambda: rundir.read_status(path))
    loop.train(config, workdir, profile=profile)
    diverged = hosts.run_on_first(lambda: rundir.read_status(path))["diverged"]
    if hosts.is_first():
        if not (path / records.CURVES).exists():
            plots.curves(path)
        drawn = list(probe_figures.of_run(path))
        report.print_run(path)
        if before.get("status") in rundir.FINISHED:
            own = not MERGES[config.model.merge].combine.__module__.startswith("resjax.")
            hint = "; a merge whose formula has changed needs a new name" if own else ""
            hint += "; no step is left to profile" if profile else ""
            print(f"this run was finished before: nothing was done{hint}")
        elif profile:
            report.print_profile(path)
        for seed, reason in diverged.items():
            print(f"seed {seed} diverged: {reason}", file=sys.stderr)
        print(path / records.CURVES, *drawn, path, sep="\n")
    return 1 if diverged else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
