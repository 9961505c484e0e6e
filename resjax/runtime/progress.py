"""What the user sees of long work: a live bar with ETA on a terminal, else a line every ten seconds."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """Shows steps done of `total`, the time left, and the latest loss and accuracy; a context manager.

    One of several processes shows it, the others have it `quiet`.
    """

    def __init__(self, name: str, total: int, done: int = 0, *, quiet: bool = False):
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._name, self._total, self._done = name, total, done
        self._began: tuple[float, int] | None = None  # time and steps done after the first call
        self._said = time.monotonic()
        self._expected: tuple[str, int] | None = None
        self._calls = 0
        self._text = ""
        self._live = None
        if self._console.is_terminal and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._live = Progress(*columns, TextColumn("{task.fields[text]}"), console=self._console, transient=True)
            self._task = self._live.add_task(name, total=total, completed=done, text="compiling")

    def __enter__(self) -> "TrainingProgress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live:
            self._live.stop()

    def expect(self, what: str, images_per_step: int) -> None:
        """Announces a run, such as "8 replicas"; a line says it, with speed and time left, when these are known."""
        self._expected = what, images_per_step

    def advance(self, steps: int, seconds: float = 0.0) -> None:
        """`steps` more are done; they took so many seconds, which an announced run has to tell."""
        self._done += steps
        self._calls += steps > 0
        if self._calls == 2 and self._expected:  # the first call is slower than those that follow
            what, images = self._expected
            self.say(f"{what}, {_estimate(seconds / steps, images, self._total - self._done)}")
            self._expected = None
        now = time.monotonic()
        if self._live:
            self._live.update(self._task, completed=self._done, text=self._text or "compiled")
        elif self._began and now - self._said >= 10 and not self._quiet:
            self._said = now
            left = (now - self._began[0]) / (self._done - self._began[1]) * (self._total - self._done)
            text = f"; {self._text}" if self._text else ""
            print(f"{self._name}: {self._done}/{self._total} steps, {left:.0f} s left{text}", flush=True)
        self._began = self._began or (now, self._done)

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._live:
            self._live.console.print(f"{self._name}, {text}", highlight=False, soft_wrap=True)
        elif not self._quiet:
            print(f"{self._name}, {text}", flush=True)

    def show(self, epoch: int, rows: list[dict]) -> None:
        """The latest epoch's training loss and test accuracy, mean over the replicas."""
        self._text = f"epoch {epoch}"
        for split, name in (("train", "loss"), ("test", "accuracy")):
            values = [row[name] for row in rows if row["split"] == split and row[name] is not None]
            if values:
                self._text += f", {split} {name} {sum(values) / len(values):.4f}"
        if self._live:
            self._live.update(self._task, text=self._text)


def _estimate(seconds_per_step: float, images_per_step: int, steps: int) -> str:
    left = seconds_per_step * steps
    size, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if left >= 2 * s or s == 1)
    return f"{images_per_step / seconds_per_step:,.0f} images/s, about {left / size:.0f} {unit} left"
