"""A trace of compiled calls, and the time that each of their operations took."""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.profiler import ProfileData


@contextmanager
def tracing(folder: Path) -> Iterator[None]:
    """Traces what the body computes into `folder`, whose older trace is deleted; TensorBoard and Perfetto show it."""
    shutil.rmtree(folder, ignore_errors=True)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would make the steps slower, and the file ten times as large
    with jax.profiler.trace(folder, profiler_options=options):
        yield


def seconds_by_operation(folder: Path, program: str) -> Counter[str]:
    """Operation of `program` (its HLO name) -> seconds, summed over calls, threads and this host's devices.

    An operation that contains others, such as a loop, has only the time that is not theirs.
    """
    own: Counter[str] = Counter()
    for file in folder.rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                own.update(_own_times(_events(line, program)))
    return Counter({name: ns / 1e9 for name, ns in own.items()})


def _events(line, program: str) -> list[tuple[float, float, str]]:
    """(start, end, operation) of what one thread or stream did for `program`, the outer before the inner ones."""
    events = []
    for event in line.events:
        stats = dict(event.stats)
        if "hlo_op" in stats and stats.get("hlo_module") == program:
            events.append((event.start_ns, event.start_ns + event.duration_ns, stats["hlo_op"]))
    return sorted(events, key=lambda event: (event[0], -event[1]))


def _own_times(events: list[tuple[float, float, str]]) -> Counter[str]:
    own: Counter[str] = Counter()
    around: list[tuple[float, str]] = []  # (end, operation) of those that contain the present one
    for start, end, name in events:
        while around and around[-1][0] <= start:
            around.pop()
        if around:
            own[around[-1][1]] -= end - start
        own[name] += end - start
        around.append((end, name))
    return own
