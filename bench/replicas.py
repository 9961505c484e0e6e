"""How eight replicas best share the cores: python -m bench.replicas [--rounds=5]

Images per second over all replicas, of the same training: a device per core, each of which trains replicas of its own
(what `resjax` does); a process per core, pinned to it; one device, whose operations use all cores. Rounds interleave
them. Writes bench/replicas.md.
"""

import argparse
import datetime
import os
import statistics
from pathlib import Path

from bench.training import CASES, Contender, machine

SEEDS = 8
SHARED = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}  # one device, whatever the number of cores


def measure(case: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """Images per second of each way, one figure a round."""
    pixels, channels, depth, _, images = case
    cores = sorted(os.sched_getaffinity(0))[:SEEDS]
    own = SEEDS // len(cores)
    ways = {
        "a device per core": [Contender("resjax", (pixels, channels, depth, SEEDS, images))],
        "a process per core": [
            Contender("resjax", (pixels, channels, depth, own, images), SHARED, {core}) for core in cores
        ],
        "one device": [Contender("resjax", (pixels, channels, depth, SEEDS, images), SHARED)],
    }
    speeds = {way: [] for way in ways}
    for _ in range(rounds):
        for way, processes in ways.items():
            for process in processes:
                process.start()
            speeds[way].append(sum(process.speed() for process in processes))
    for processes in ways.values():
        for process in processes:
            process.close()
    return speeds


HEAD = """# Eight replicas on the cores of one machine

Images per second over all replicas, and the ratio to a device per core; median (range) of {rounds} interleaved rounds.
`make bench` writes this page.

{machine}; {date}

| case | a device per core | a process per core | one device |
|---|---|---|---|
"""


def row(name: str, speeds: dict[str, list[float]]) -> str:
    """A line of the table."""
    base = speeds["a device per core"]
    cells = [f"{statistics.median(base):,.0f}"]
    for way in ("a process per core", "one device"):
        ratios = [other / ours for other, ours in zip(speeds[way], base, strict=True)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return f"| {name} | {' | '.join(cells)} |\n"


def main() -> None:
    """Measures all cases of several replicas and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    page = HEAD.format(rounds=args.rounds, machine=machine(), date=datetime.date.today())
    for name, case in CASES.items():
        if case[3] == SEEDS:
            page += row(name, measure(case, args.rounds))
            print(page.splitlines()[-1], flush=True)
    Path(__file__).with_name("replicas.md").write_text(page)


if __name__ == "__main__":
    main()
