"""Images trained per second, side by side: python -m bench.training [--rounds=5] [--quick]

Every contender (bench/contenders.py) is a process that trains one epoch when told to. Rounds interleave the
contenders, and a figure is the median over rounds of the ratio within a round, so that a noisy machine blurs but does
not favour. Compilation is apart. Writes bench/README.md.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

from bench.contenders import CONTENDERS

CASES = {  # name -> pixels, channels, depth, seeds, images
    "digits, ResNet-8, 1 seed": (8, 1, 8, 1, 1437),
    "digits, ResNet-8, 8 seeds": (8, 1, 8, 8, 1437),
    "CIFAR, ResNet-8, 1 seed": (32, 3, 8, 1, 768),
    "CIFAR, ResNet-8, 8 seeds": (32, 3, 8, 8, 256),
    "CIFAR, ResNet-20, 1 seed": (32, 3, 20, 1, 256),
    "CIFAR, ResNet-20, 8 seeds": (32, 3, 20, 8, 128),
}


class Contender:
    """A process that trains one epoch per call.

    `env` adds to its environment, and `cores` are those that it may use, else all.
    """

    def __init__(
        self, name: str, case: tuple[int, ...], env: Mapping[str, str] | None = None, cores: Collection[int] = ()
    ):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.contenders", name, *map(str, case)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | dict(env or {}), preexec_fn=partial(os.sched_setaffinity, 0, cores) if cores else None,
        )  # fmt: skip
        if self._process.stdout.readline().strip() != "ready":
            raise SystemExit(f"error: contender {name!r} did not start; try python -m bench.contenders {name!r} ...")

    def start(self) -> None:
        """Begins one epoch."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def speed(self) -> float:
        """Images per second of the epoch, when it has ended."""
        return float(self._process.stdout.readline())

    def __call__(self) -> float:
        """Images per second of one epoch."""
        self.start()
        return self.speed()

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def measure(case: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """Images per second of every contender, one figure a round."""
    contenders = {name: Contender(name, case) for name in CONTENDERS}
    speeds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            speeds[name].append(run())
    for run in contenders.values():
        run.close()
    return speeds


def row(name: str, speeds: dict[str, list[float]]) -> str:
    """A line of the table: our speed, and its ratio to the plain loop and to PyTorch's best variant."""

    def fastest(names: Iterable[str]) -> str:
        return max(names, key=lambda name: statistics.median(speeds[name]))

    def against(other: str, own: str) -> str:
        ratios = [ours / theirs for ours, theirs in zip(speeds[own], speeds[other], strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"

    ours, best = fastest(("resjax", "resjax split")), fastest(n for n in speeds if n.startswith("torch"))
    cells = [name, f"{statistics.median(speeds[ours]):,.0f}", against("flax", ours), against(best, ours)]
    cells += [best.removeprefix("torch "), against("resjax", "resjax split"), against("resjax", "resjax bfloat16")]
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """Processor, cores and versions; without PyTorch's where it is not installed."""
    from importlib import metadata, util

    import jax

    torch = f", torch {metadata.version('torch')}" if util.find_spec("torch") else ""

    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    processor = models[0] if models else platform.processor()
    accelerator = "" if jax.default_backend() == "cpu" else f"{jax.devices()[0].device_kind}, "
    return f"{accelerator}{processor}, {os.cpu_count()} cores; jax {jax.__version__}{torch}"


HEAD = """# Speed of training

Images trained per second over all seeds, and its ratio to (a) a plain Flax loop (one jitted step a batch, host
transfer, metrics fetched every step) and (b) PyTorch's fastest variant (eager or torch.compile, channels first or
last), both one seed after another. Ours is the faster of a device per replica, and every batch split over all cores
("split": `config.parallel=pmap`, `config.batch_devices`). Beside them the split ones and bfloat16 to the usual.
Median (range) of {rounds} interleaved rounds; compilation apart; batch 128, float32. `make bench` writes this page.

{machine}; {date}

| case | resjax, images/s | to plain Flax | to PyTorch | its best variant | split to usual | bfloat16 to float32 |
|---|---|---|---|---|---|---|
"""


TAIL = """
The goals are 4x the plain loop and 2x PyTorch on digits with 8 seeds, and .9 of PyTorch's speed on CIFAR shapes. What
brought them near, and what keeps the rest away:

- Inside loops XLA's CPU backend computes the gradients of a convolution by naive loops. `resjax/models/conv.py` writes
  them in forms that stay fast; [conv.md](conv.md) has each shape beside oneDNN.
- A gradient by the weights is a sum over pieces of the batch that stay in the cache: at most twice oneDNN's time, where
  it took up to six times as long.
- Several replicas have a device per core, which comes within 6 % of a process per core ([replicas.md](replicas.md)).
  One replica has one device and gains little from a second core: the operations of a ResNet-8 step on CIFAR shapes
  take 217 ms on one core and, summed over threads, 361 ms on two (`--profile`). A batch that is split over the cores
  is up to 1.5 times as fast. It is an option, not the default: rounding would depend on the number of cores.
- bfloat16 is slower than float32. Where the stride is 1 the convolutions of jaxlib 0.10 run at about float32's speed in
  either type, oneDNN's at up to twice that (`python -m bench.conv --dtype=bfloat16`). Products of matrices gain, 1.4
  to 1.9 times with sums in float32; convolutions written as such products were not tried.
- jaxlib 0.12 has flags that send convolutions to oneDNN. On this processor (AMD, AVX-512) XLA's forward convolution
  with 16, 32 and 64 channels reached 66, 83 and 107 GFLOP/s with them, and 45, 100 and 105 without, on one core beside
  other work: they win with 16 channels alone, where ours has 69 without them.
"""


def main() -> None:
    """Runs all cases and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="digits alone")
    args = parser.parse_args()
    page = HEAD.format(rounds=args.rounds, machine=machine(), date=datetime.date.today())
    print(page, end="", flush=True)
    for name, case in CASES.items():
        if args.quick and not name.startswith("digits"):
            continue
        page += row(name, measure(case, args.rounds)) + "\n"
        print(page.splitlines()[-1], flush=True)
    if not args.quick:
        Path(__file__).with_name("README.md").write_text(page + TAIL)


if __name__ == "__main__":
    main()
