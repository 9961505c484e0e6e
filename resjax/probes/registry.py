"""The probes by name: during training (config.probes), and on finished runs (`resjax.probes.of_run`).

A probe of your own that looks at one replica at a time is one line, and an entry in config.probes:

    PROBES["mine"] = each(lambda at: pd.DataFrame({"norm": [float(optax.tree.norm(at.variables["params"]))]}))
"""

from collections.abc import Callable, Mapping

import pandas as pd

from resjax.probes.propagation import propagation
from resjax.probes.subject import Subject

# (seed -> replica, options of the probe) -> a tidy table with the column `seed`.
Probe = Callable[..., pd.DataFrame]


def each(look: Callable[..., pd.DataFrame]) -> Probe:
    """The probe that looks at one replica after the other."""

    def probe(subjects: Mapping[int, Subject], **options) -> pd.DataFrame:
        tables = {seed: look(subject, **options) for seed, subject in subjects.items()}
        return pd.concat(tables, names=["seed", None]).reset_index("seed").reset_index(drop=True)

    return probe


PROBES: dict[str, Probe] = {
    "signal": each(lambda at: propagation(at.net, at.variables, at.x_BxHxWxC, at.key)),
}
