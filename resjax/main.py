"""Trains the replicas of one config: python -m resjax.main --config=configs/mul.py

  --config=FILE[:PRESET]     such as configs/mul.py:cifar10 or configs/mul.py:dataset=cifar100,depth=20
  --config.KEY=VALUE         overrides one entry: --config.model.depth=14 --config.seeds=3
  --workdir=DIR              root of the run directories (runs)

FILE is executed. Every key and its meaning: resjax/config.py. The same command continues a run, and leaves a
finished one alone. Exit code 1: a replica diverged; 2: bad input, said in one line.
"""

import logging
import os
import sys

from resjax import command_line
from resjax.config import ConfigError


def main(argv: list[str]) -> int:
    """Runs the program on `argv`; returns its exit code."""
    if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & set(argv[1:]):
        print(__doc__)
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        config, workdir = command_line.parse(argv)
        from resjax.analysis import figures, report  # after the flags: a bad one need not wait for JAX
        from resjax.training import loop, rundir, startup

        startup.start(config)
        before = rundir.read_status(rundir.path_of(config, workdir)).get("status")
        path = loop.train(config, workdir)
        if not (path / "curves.png").exists():
            figures.curves(path)
        report.print_run(path)
    except ConfigError as e:
        print("error:", " ".join(str(e).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    if before in rundir.FINISHED:
        print("this run was finished before: nothing was done")
    diverged = rundir.read_status(path)["diverged"]
    for seed, reason in diverged.items():
        print(f"seed {seed} diverged: {reason}", file=sys.stderr)
    print(path)
    return 1 if diverged else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
