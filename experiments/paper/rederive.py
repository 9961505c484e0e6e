"""Intervals, p-values and verdicts of tables anew, from the rows of seeds beside them: after a change of statistics.

  python -m experiments.paper.rederive results/compare_digits results/surface

Nothing is trained or measured: each OUT names a run whose study can do so (its `rederived`). All tables of the run keep
command, commit, device and date of what was measured, and say as `statistics` at which commit the rest was derived; the
figures are drawn by `experiments.paper.redraw`. Exit code 2: bad input, in one line.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.paper import redraw
from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.training import rundir


def rederive(run: redraw.Run, commit: str) -> list[Path]:
    """Writes the tables of a run anew; returns their paths. Raises ConfigError if its study can't derive them."""
    study = importlib.import_module(f"experiments.{run.study}.study")
    if not hasattr(study, "rederived"):
        raise ConfigError(f"{run.out}: experiments.{run.study} derives no tables from rows")
    found, said = study.rederived(run.out)
    origin = {key: value for key, value in run.header.items() if key in tables.ORIGIN}
    origin["statistics"] = f"intervals and p-values derived from the rows at commit {commit}"
    kept = {path: tables.read_text(path) for path in run.tables}
    header = origin | tables.verdicts(run.header) | said
    derived = {Path(f"{run.out}{suffix}.csv"): table for suffix, table in found.items()}
    if strangers := derived.keys() - kept.keys():
        raise ConfigError(f"{run.out}: the run has no {', '.join(sorted(path.name for path in strangers))}")
    for path, text in kept.items():
        if path in derived:
            tables.write_csv(derived[path], path, header)
        else:
            tables.write_text(text, path, header)
    return list(kept)


def main(argv: Sequence[str] | None = None) -> int:
    """Derives the tables of the runs named; returns the exit code."""
    p = argparse.ArgumentParser(
        prog="python -m experiments.paper.rederive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("out", nargs="+", type=Path, metavar="OUT", help="how the names of a run's tables begin")
    try:
        environment = rundir.environment()
        commit = f"{environment['commit'] or 'unknown'}{' (with changes)' if environment['dirty'] else ''}"
        for out in p.parse_args(argv).out:
            runs = [run for run in redraw.runs(out.parent) if run.out == out]
            if not runs:
                raise ConfigError(f"{out}: no run left tables whose names begin so")
            for path in rederive(runs[0], commit):
                print(path)
    except ConfigError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
