"""What the user sees of many jobs: a live table on a terminal, elsewhere lines as they start and end."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table

from resjax.sweep.jobs import Event

# Rows of each state, so that the table of hundreds of jobs fits a terminal of 24 lines.
ROWS = {"running": 7, "failed": 7, "done": 4}
STYLES = {"running": "", "failed": "red", "done": "green"}


@dataclass
class _Row:
    number: int
    state: str = "waiting"
    began: float | None = None
    ended: float | None = None
    text: str = ""


class Board:
    """The states of jobs; a context manager.

    Args:
      labels: of all jobs, which wait at first.
      console: where to draw.
      live: a table that is redrawn; else lines. Not where a job draws on the same terminal itself.
    """

    def __init__(self, labels: Iterable[str], console: Console, live: bool):
        self._rows = {label: _Row(number) for number, label in enumerate(labels, start=1)}
        self._console, self._said = console, ""
        self._live = Live(self, console=console, refresh_per_second=2) if live and self._rows else None
        self._began = time.monotonic()

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live:
            self._live.stop()
            for label, row in self._rows.items():
                if row.state == "failed":  # all, and whole, where the table may have cut
                    self._console.print(f"{label}: {row.text}", markup=False, highlight=False, style="red")

    def show(self, event: Event, text: str = "") -> None:
        """What became of a job; `text`: its result in words. One that was never running had been done before."""
        row, now = self._rows[event.label], time.monotonic()
        row.state, row.text = event.state, ", ".join(filter(None, [text, event.reason]))
        if event.state == "running":
            row.began = now
            self._say(event.label)
        elif event.state == "waiting":
            row.began = None
            self._say(event.label, [row.text])
        else:
            row.ended = now
            how = ["failed"] if event.state == "failed" else []
            self._say(event.label, [*how, _took(row, now), text, self._left()], event.reason)

    def _say(self, label: str, words: Iterable[str] = (), reason: str = "") -> None:
        if self._live:
            return
        if self._said != label:  # jobs that run side by side end between others' lines
            line = f"[{self._rows[label].number}/{len(self._rows)}] {label}"
            self._console.print(line, markup=False, highlight=False)
            self._said = label
        if text := ", ".join(filter(None, words)):
            self._console.print(f"    {text}", markup=False, highlight=False)
        if reason:
            self._console.print(f"    {reason}", markup=False, highlight=False, style="red")

    def _left(self) -> str:
        """The time left, if those to come end at the rate of those that ended."""
        ended = sum(bool(row.began and row.ended) for row in self._rows.values())
        remain = sum(row.state in ("waiting", "running") for row in self._rows.values())
        return f"about {duration((time.monotonic() - self._began) / ended * remain)} left" if ended and remain else ""

    def __rich__(self) -> Table:
        """Counts, then who runs and who failed, and the latest that are done."""
        now = time.monotonic()
        counts = Counter(row.state for row in self._rows.values())
        title = [f"{counts[state]} {state}" for state in ("done", "running", "waiting", "failed")]
        table = Table(
            box=None, pad_edge=False, show_header=False, title_justify="left", title_style="bold", expand=True
        )
        table.title = ", ".join(filter(None, [*title, self._left()]))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        for state, most in ROWS.items():
            rows = [(label, row) for label, row in self._rows.items() if row.state == state]
            rows.sort(key=lambda item: item[1].ended or item[1].began or 0)
            for label, row in rows[-most:]:
                table.add_row(state, label, _took(row, now), row.text, style=STYLES[state])
            if state != "done" and len(rows) > most:
                table.add_row("", f"and {len(rows) - most} more {state}")
        return table


def _took(row: _Row, now: float) -> str:
    return "" if row.began is None else duration((row.ended or now) - row.began)


def duration(seconds: float) -> str:
    """`35 s`, `12 min`, `2 h 5 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
