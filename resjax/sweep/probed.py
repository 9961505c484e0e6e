"""Probes on a finished run: what they say of its nets before and after training."""

import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from resjax.probes.registry import PROBES
from resjax.training.probing import subjects
from resjax.training.trained import reopen


def measure(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    probes: Sequence[str],
    images: int,
    split: str = "train",
    moments: Sequence[str] = ("init", "trained"),
    **options,
) -> dict[str, list[dict]]:
    """Name of a probe -> its table of the finished run of `config`, with columns seed and moment ("init", "trained").

    Args:
      config: of the run.
      workdir: root of the run directories.
      probes: their names in `PROBES`.
      images: how many of the split, spread evenly over it; all if there are fewer.
      split: "train", "validation" or "test".
      moments: which of the two.
      options: of the probe or probes.

    Raises:
      ConfigError: the run is not finished, or has no checkpoint.
    """
    run = reopen(config, workdir)
    variables, rows = {"init": run.initial, "trained": run.final}, {name: [] for name in probes}
    for moment in moments:
        own = {seed: variables[moment][seed] for seed in run.seeds}
        seen = subjects(run.task, getattr(run.dataset, split), images, own, moment)
        for name in rows if seen else ():
            rows[name] += PROBES[name](seen, **options).assign(moment=moment).to_dict("records")
    return rows
