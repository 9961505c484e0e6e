"""One property over all rows of the catalogue: some rows in `make test`, all in `make test-all`."""

import pytest


def quick(kept, every):
    """Each of `every`, marked slow unless it is `kept`; raises ValueError where a kept one is none of them."""
    every = list(every)
    if unknown := set(kept) - set(every):
        raise ValueError(f"not among the rows: {unknown}")
    return [row if row in kept else pytest.param(row, marks=pytest.mark.slow) for row in every]
