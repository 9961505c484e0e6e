"""Being told to stop: the first signal asks a run to save and end, the second one ends the process at once.

A SIGUSR2 never does the latter: submitit sends it after a SIGTERM.
"""

import contextlib
import os
import signal
import threading

# SIGUSR2 is what SLURM (--signal) and submitit send ahead of a time limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Interrupted(KeyboardInterrupt):
    """A run was told to stop by signal `signum`. What it had done is saved: the same command continues."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def exit_code(error: KeyboardInterrupt) -> int:
    """128 + the signal, as shells have it."""
    return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)


class StopSignals:
    """While it is open (a context manager), signals are noted instead of ending the process.

    Attributes:
      received: the first signal that came, or 0. Outside the main thread none is seen: Python allows no handler there.
    """

    def __init__(self):
        self.received = 0
        self._before = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(self, *_):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _frame) -> None:
        if self.received:
            if signum != signal.SIGUSR2:
                os._exit(128 + signum)
            return
        self.received = signum
        name = signal.Signals(signum).name
        with contextlib.suppress(OSError):  # who read this may be gone, as `tee` is after Ctrl-C
            os.write(2, f"{name}: stops after this step and saves; once more: at once, without saving\n".encode())
