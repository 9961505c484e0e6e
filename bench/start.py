"""From the command to the end of the first epoch: python -m bench.start [--rounds=3]

Digits, ResNet-8, one seed, eleven steps: `resjax.main` with an empty cache of compiled programs and with a full one,
beside a bare script that imports JAX and Flax, compiles a step and runs the same steps. Writes bench/start.md.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.training import machine

COMMAND = ["-m", "resjax.main", "--config=configs/add.py", "--config.seeds=1", "--config.epochs=2"]
BARE = ["-m", "bench.contenders", "flax", "8", "1", "8", "1", "1437"]
POLL = 0.01  # seconds


def ours(cache: str) -> float:
    """Seconds until the first epoch's metrics are written; then the run goes on to its end."""
    with tempfile.TemporaryDirectory() as workdir:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *COMMAND, f"--workdir={workdir}"],
            env=os.environ | {"XDG_CACHE_HOME": cache},
            stdout=subprocess.DEVNULL,
        )
        while not any(path.stat().st_size for path in Path(workdir).glob("*/metrics.jsonl")):
            if process.poll() is not None:
                raise SystemExit(f"error: {' '.join(COMMAND)} ended with exit code {process.returncode}")
            time.sleep(POLL)
        seconds = time.perf_counter() - began
        process.wait()
        return seconds


def bare() -> float:
    """Seconds until the bare script has run its first epoch."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    process.stdout.readline()
    seconds = time.perf_counter() - began
    process.stdin.close()
    process.wait()
    return seconds


PAGE = """# Time to the first epoch

Seconds from the command to the end of the first epoch of eleven steps on digits (ResNet-8, one seed); median of
{rounds} interleaved rounds. `make bench` writes this page.

{machine}; {date}

| program | seconds | to the bare script |
|---|---|---|
"""


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[float]] = {"bare Flax script": [], "resjax, empty cache": [], "resjax, full cache": []}
    for _ in range(args.rounds):
        found["bare Flax script"].append(bare())
        with tempfile.TemporaryDirectory() as cache:
            found["resjax, empty cache"].append(ours(cache))
            found["resjax, full cache"].append(ours(cache))
    page = PAGE.format(rounds=args.rounds, machine=machine(), date=datetime.date.today())
    base = statistics.median(found["bare Flax script"])
    for name, seconds in found.items():
        page += f"| {name} | {statistics.median(seconds):.1f} | {statistics.median(seconds) / base:.2f} |\n"
    print(page)
    Path(__file__).with_name("start.md").write_text(page)


if __name__ == "__main__":
    main()
