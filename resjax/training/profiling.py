"""Where the time of a training step goes: some steps are traced, and each operation's time is put where it belongs."""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from resjax import records
from resjax.runtime import hosts
from resjax.runtime.trace import seconds_by_operation, tracing
from resjax.training import attribution

WARM = 2  # steps before those that are traced: the first one is slow
STEPS = 10  # that are traced at most,
SECONDS = 0.5  # and no more than fit in; a CPU writes 20 MB of trace per second


def affordable(seconds_per_step: float) -> int:
    """How many steps to trace, the same in all processes."""
    count = int(SECONDS / seconds_per_step) if seconds_per_step else 1
    return int(hosts.agree((max(1, min(STEPS, count)),))[0])


class Profile:
    """The profile of a run: a trace and a table in `folder`, which the first process writes.

    Attributes:
      start: the step with which the trace begins.
    """

    def __init__(
        self, folder: Path, start: int, program: jax.stages.Compiled, params: Any, replicas: int, devices: int
    ):
        """Takes the names from the compiled program.

        `params` are the shapes of one replica's parameters, `replicas` those that a device computes at once, and
        `devices` are this host's.
        """
        self.start = start
        self._folder, self._text, self._devices = folder, program.as_text(), devices
        self._net, self._replicas = attribution.modules(params), replicas

    @contextmanager
    def traced(self, steps: int) -> Iterator[None]:
        """Traces the body, which trains so many steps, and writes the table."""
        if not hosts.is_first():
            yield
            return
        with tracing(self._folder):
            yield
        self._write(steps)

    def _write(self, steps: int) -> None:
        """Writes a row per module and kind: ms of a step, mean over steps and devices, and percent of all."""
        program = self._text.split(maxsplit=2)[1].rstrip(",")
        operations, nothing = attribution.operations(self._text), attribution.Operation("", 0)
        found: Counter[tuple[str, str]] = Counter()
        for name, seconds in seconds_by_operation(self._folder, program).items():
            operation = operations.get(name, nothing)
            found[attribution.place(operation, self._net, self._replicas)] += 1000 * seconds / steps / self._devices
        total = sum(found.values())
        with records.replacing(self._folder / records.STEPS) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("module", "kind", "ms_per_step", "percent"))
            for (module, kind), ms in found.most_common():
                writer.writerow((module, kind, f"{ms:.6f}", f"{100 * ms / total:.4f}"))
