"""What the merges of a comparison cost, and what theory says of their gradients at initialisation."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from resjax.analysis import tables
from resjax.data.dataset import load
from resjax.models.build import build
from resjax.models.costs import costs, stored_activations
from resjax.probes.blocks.predicted import predicted
from resjax.sweep import runs


def table(configs: Iterable[ConfigDict], outcomes: Iterable[runs.Outcome], registry: Mapping) -> pd.DataFrame:
    """A row per data set and merge.

    Columns: identity; parameters, flops and stored, of `resjax.models.costs`; images_per_s, the median over epochs of
    training; gain, of gradient power per block by theory, a geometric mean over the blocks after the first, or nan.
    """
    out = []
    for config, outcome in zip(configs, outcomes, strict=True):
        dataset = load(config.dataset)
        net, shape = build(config.model, dataset.num_classes), dataset.train.images_NxHxWxC.shape[1:]
        gains = [row["gain"] for row in predicted(config.model)][1:]
        out.append(
            {name: tables.config_columns(config)[name] for name in ("dataset", "merge")}
            | {"identity": registry[config.model.merge].identity}
            | costs(net, shape)
            | {"stored": stored_activations(net, shape), "images_per_s": _speed(outcome)}
            | {"gain": _geometric_mean(gains)}
        )
    return pd.DataFrame(out)


def _speed(outcome: runs.Outcome) -> float:
    return np.nan if outcome.run_dir is None else float(tables.load(outcome.run_dir)["images_per_s"].median())


def _geometric_mean(gains: list[float]) -> float:
    """Nan where one is unknown, or none is there, or one is 0."""
    known = gains and np.isfinite(gains).all() and min(gains) > 0
    return float(np.exp(np.mean(np.log(gains)))) if known else np.nan
