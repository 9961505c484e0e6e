"""Probes on a finished run: what they say of its nets before and after training."""

import os

from ml_collections import ConfigDict

from resjax.probes.registry import PROBES
from resjax.training.probing import subjects
from resjax.training.trained import reopen


def measure(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    probe: str,
    images: int,
    split: str = "train",
    moments: str = "init,trained",
    **options,
) -> dict[str, list[dict]]:
    """{"rows": the probe's table of the finished run of `config`}, with columns seed and moment ("init", "trained").

    Of several probes, which opens the run once: {name: its table}.

    Args:
      config: of the run.
      workdir: root of the run directories.
      probe: its name in `PROBES`, or several with commas between.
      images: how many of the split, spread evenly over it; all if there are fewer.
      split: "train", "validation" or "test".
      moments: which of the two.
      options: of the probe or probes.

    Raises:
      ConfigError: the run is not finished, or has no checkpoint.
    """
    run = reopen(config, workdir)
    variables, rows = {"init": run.initial, "trained": run.final}, {name: [] for name in probe.split(",")}
    for moment in moments.split(","):
        own = {seed: variables[moment][seed] for seed in run.seeds}
        seen = subjects(run.task, getattr(run.dataset, split), images, own, moment)
        for name in rows if seen else ():
            rows[name] += PROBES[name](seen, **options).assign(moment=moment).to_dict("records")
    return rows if len(rows) > 1 else {"rows": rows[probe]}
