"""Cutting a long compiled loop into calls of about two seconds, between which a run can be told to stop."""

import time
from collections.abc import Iterator

from resjax.runtime import hosts

SECONDS = 2.0  # of one call


class Pace:
    """Learns how many iterations of a loop fill a call. Results must not depend on where the cuts lie."""

    def __init__(self):
        self._length = 0

    def calls(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yields consecutive (first, last) from `start` to `stop`, and times what is done with them.

        The very first one is empty: it is there to compile.
        """
        if not self._length and start < stop:
            yield start, start
            self._length = 1
        while start < stop:
            last, began = min(start + self._length, stop), time.monotonic()
            yield start, last
            took = max(time.monotonic() - began, 1e-6)
            length = max(1, min(4 * self._length, round((last - start) * SECONDS / took)))
            self._length = int(hosts.agree((length,))[0])
            start = last
