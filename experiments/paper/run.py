"""The paper in one command: every study as it was run for results/, then all figures, tables and a report.

  python -m experiments.paper                  # trains what is not trained yet: the same command continues
  python -m experiments.paper --report-only    # from the tables of results/ alone, without training
  python -m experiments.paper --smoke          # every study at its smallest, into paper_smoke/

Studies run one after the other; one that fails does not stop the others. What is trained stays in runs/, and a study
that ends replaces its tables in results/, as committed ones (`git diff results/` tells what changed): after a stop or a
failure old and new ones stand side by side, each with its own date, and the report names the studies that failed. All
figures and results/MANIFEST.json are drawn and written anew. Writes paper/figures, paper/tables (CSV, and LaTeX where a
table is short) and paper/report.html, question by question. Exit code 1: a study failed; 2: bad input; 128 + n: stopped
by signal n.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.paper import questions, redraw, report
from resjax.config import ConfigError
from resjax.sweep import launchers
from resjax.sweep.board import duration

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
LAUNCHING = ("launcher", "jobs", "time_limit", "gpus", "partition")


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """What is run, by its name."""
    passed = [f"--workdir={args.workdir}"]
    passed += [f"--{name}={value}" for name in LAUNCHING if (value := getattr(args, name)) is not None]
    start = [sys.executable, "-m"]
    if args.smoke:
        small = {name: ["--smoke", f"--out={args.results / name}"] for name in questions.studies()}
        return {name: [*start, f"experiments.{name}", *words, *passed] for name, words in small.items()}
    every = [(name, shlex.split(line)) for name, lines in questions.commands().items() for line in lines]
    return {shlex.join([name, *words]): [*start, f"experiments.{name}", *words, *passed] for name, words in every}


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a command in a process group of its own, to which signals go; its exit code, 128 + n after signal n."""
    told: list[int] = []
    children: list[subprocess.Popen] = []

    def pass_on(number: int, _) -> None:
        told.append(number)
        for child in children:
            os.killpg(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        with subprocess.Popen(command, env=environment, start_new_session=True) as child:
            children.append(child)
            for number in told:  # before there was a child
                os.killpg(child.pid, number)
            code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def study(todo: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> tuple[dict[str, int], int]:
    """Runs one study after the other: exit codes of those that failed, and that of the one that was stopped, or 0."""
    failed = {}
    for number, (name, command) in enumerate(todo.items(), 1):
        print(f"[{number}/{len(todo)}] {name}", flush=True)
        began = time.monotonic()
        code = run(command, environment)
        print(f"[{number}/{len(todo)}] {name}: exit code {code}, {duration(time.monotonic() - began)}", flush=True)
        if code - 128 in SIGNALS:  # other signals are a crash of that study alone
            return failed, code
        if code:
            failed[name] = code
    return failed, 0


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the paper; returns the exit code."""
    args = _parser().parse_args(argv)
    args.results = Path("paper_smoke/results" if args.smoke else "results")
    target = Path("paper_smoke" if args.smoke else "paper")
    failed = {}
    try:
        if not args.report_only:
            # Small studies only have to run: unoptimised programs compile in three quarters of the time.
            more = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if args.smoke else {}
            failed, stopped = study(commands(args), os.environ | more)
            if stopped:
                print("stopped; the same command continues", file=sys.stderr)
                return stopped
        undrawn = 0 if args.smoke else redraw.redraw(args.results)  # small studies have just drawn theirs
        print(report.write(args.results, target, smoke=args.smoke, failed=failed))
    except ConfigError as error:
        print("error:", error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    for name, code in failed.items():
        print(f"failed: {name}: exit code {code}", file=sys.stderr)
    return int(bool(failed or undrawn))


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m experiments.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--smoke", action="store_true", help="every study at its smallest, into paper_smoke/")
    p.add_argument("--report-only", action="store_true", help="no study runs; from the tables that there are")
    p.add_argument("--workdir", default="runs", metavar="DIR", help="of the run directories; %(default)s")
    launchers.add_flags(p)
    return p
