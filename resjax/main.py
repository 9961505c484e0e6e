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
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from resjax.config import ConfigError, check

CONFIG = config_flags.DEFINE_config_file("config", None, "the config file, then :PRESET")
WORKDIR = flags.DEFINE_string("workdir", "runs", "root of the run directories")


def main(argv: list[str]) -> int:
    """Runs the program on `argv`; returns its exit code."""
    if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & set(argv[1:]):
        print(__doc__)
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        config = _parse(argv)
        from resjax.training import loop, mesh, rundir  # after the flags: a bad one need not wait for JAX

        mesh.use_cpu_cores(config)
        before = rundir.read_status(rundir.path_of(config, WORKDIR.value)).get("status")
        path = loop.train(config, WORKDIR.value)
        from resjax.analysis import figures, report

        if not (path / "curves.png").exists():
            figures.curves(path)
        report.print_run(path)
        if before in rundir.FINISHED:
            print("this run was finished before: nothing was done")
    except ConfigError as e:
        return _fail(e)
    diverged = rundir.read_status(path)["diverged"]
    for seed, reason in diverged.items():
        print(f"seed {seed} diverged: {reason}", file=sys.stderr)
    print(path)
    return 1 if diverged else 0


def _parse(argv: list[str]):
    """The checked config. A config file is the user's code, so whatever it raises becomes one line."""
    try:
        file = next((word[len("--config=") :].split(":")[0] for word in argv if word.startswith("--config=")), None)
        if file and not Path(file).exists():
            raise ConfigError(f"--config: there is no file {file}")
        rest = flags.FLAGS(argv)[1:]
        if rest:
            raise ConfigError(
                f"unexpected argument {rest[0]!r}: options are --config=FILE, --config.KEY=VALUE, --workdir=DIR"
            )
        if CONFIG.value is None:
            raise ConfigError("no --config: try --config=configs/mul.py")
        check(CONFIG.value)
    except ModuleNotFoundError as e:
        hint = ": run from the folder that holds configs/" if e.name == "configs" else ""
        raise ConfigError(f"--config: {e}{hint}") from None
    except (ConfigError, flags.Error) as e:
        raise ConfigError(str(e)) from None
    except (AttributeError, KeyError) as e:
        raise ConfigError(f"--config: no entry {str(e.args[0]).strip(chr(34))}") from None
    except Exception as e:
        raise ConfigError(f"--config: {type(e).__name__}: {e}") from None
    return CONFIG.value


def _fail(error: ConfigError) -> int:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
