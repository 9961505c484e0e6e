"""Kernels, spectra and predictors of a finished run, as rows of tables. Never looks at the test set."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resjax.config import ConfigError
from resjax.data import batches
from resjax.data.dataset import Dataset
from resjax.models.costs import costs
from resjax.models.frozen import calibrated, frozen
from resjax.ntk.empirical import empirical_ntk
from resjax.ntk.learning_curve import learning_curve
from resjax.ntk.spectrum import Spectrum
from resjax.predictors.evaluate import Evidence, evaluate
from resjax.training.trained import reopen

AFTER = "after_"  # before the name of a predictor defined at both moments: its value after training
RIDGE = 1e-4  # in units of the median of K(x, x): above the rounding of float32 Jacobians
RANKS = 24  # of a spectrum's modes are recorded, evenly spaced in log rank
SHARES = (1 / 16, 1 / 8, 1 / 4)  # of the pool: sizes of the training sets that kernel regression is measured on
TRIALS = 6  # training sets for each


class Pool(NamedTuple):
    """Labelled images: the training set, its n images first, and a part of the validation split.

    Attributes:
      x_MxHxWxC: float32, normalised.
      labels_M: integers below num_classes.
      n: of the training set.
      num_classes: C.
    """

    x_MxHxWxC: jax.Array
    labels_M: np.ndarray
    n: int
    num_classes: int


def pool_of(dataset: Dataset, size: int) -> Pool:
    """`size` labelled images. Raises ConfigError if training and validation split have fewer."""
    n = len(dataset.train.labels_N)
    available = 0 if dataset.validation is None else len(dataset.validation.labels_N)
    if not 0 < size - n <= available:
        raise ConfigError(f"a pool of {size} images: there are {n} to train and {available} to validate")
    splits = (dataset.train, dataset.validation.take(np.arange(size - n)))
    images = jnp.asarray(np.concatenate([split.images_NxHxWxC for split in splits]))
    labels = np.concatenate([split.labels_N for split in splits])
    return Pool(batches.normalize(images, dataset.mean_C, dataset.std_C), labels, n, dataset.num_classes)


def measure(config: ConfigDict, workdir: str | os.PathLike, pool: int) -> dict[str, list[dict]]:
    """All rows of the finished run of `config`.

    Returns:
      "predictors": one row per seed, every predictor by name (those of the trained net's kernel as after_<name>);
      "regression": rows of `learning_curve` per seed, moment ("init", "trained") and n;
      "spectra": rank, eigenvalue (its share of the trace), and the share of the targets' power in the modes
      up to that rank, per seed and moment; also the sum of the eigenvalues below 0 over the trace.

    Raises:
      ConfigError: the run is not finished, has no checkpoint, or fewer images than `pool`.
    """
    run = reopen(config, workdir)
    images = pool_of(run.dataset, pool)
    flops = costs(run.task.net, images.x_MxHxWxC.shape[1:])["flops"]
    rows: dict[str, list[dict]] = {"predictors": [], "regression": [], "spectra": []}
    for seed in run.seeds:
        start = calibrated(run.task.net, run.initial[seed], images.x_MxHxWxC[: images.n])
        found = {"seed": seed}
        for moment, variables in (("init", start), ("trained", run.final[seed])):
            apply_fn, params = frozen(run.task.net, variables)
            evidence = Evidence(
                apply_fn=apply_fn,
                params=params,
                initial_params=start["params"],
                x=images.x_MxHxWxC,
                labels=images.labels_M,
                n=images.n,
                kernel=empirical_ntk(apply_fn, params, images.x_MxHxWxC),
                flops=flops,
                ridge=RIDGE,
            )
            values = evaluate(evidence, moment)
            found |= {AFTER + name if name in found else name: value for name, value in values.items()}
            at, modes = {"seed": seed, "moment": moment}, _spectrum(evidence)
            rows["regression"] += [at | row for row in _curve(evidence, modes)]
            rows["spectra"] += [at | row for row in _modes(modes)]
        rows["predictors"].append(found)
    return rows


def _spectrum(evidence: Evidence) -> Spectrum:
    """Of the pool's kernel in units of the median of K(x, x)."""
    eigenvalues, coefficients = evidence.pool_modes
    trace = float(np.trace(evidence.pool_matrix)) / len(eigenvalues)
    return Spectrum(
        eigenvalues=eigenvalues,
        coefficients=coefficients,
        points=len(eigenvalues),
        samples=len(evidence.labels),
        trace=trace,
        power=np.mean(evidence.pool_targets**2),
        negative=min(trace - eigenvalues.sum(), 0.0),
    )


def _curve(evidence: Evidence, modes: Spectrum) -> Iterator[dict[str, float]]:
    """Measured and predicted errors of kernel regression on parts of the pool."""
    targets_MxC = evidence.pool_targets.reshape(modes.samples, -1)
    sizes = [round(share * modes.samples) for share in SHARES]
    with contextlib.suppress(ConfigError):  # too ill-conditioned for float64: what is left has no curve
        yield from learning_curve(
            evidence.kernel / evidence.scale, targets_MxC, modes, sizes, ridge=RIDGE, trials=TRIALS
        )


def _modes(modes: Spectrum) -> Iterator[dict[str, float]]:
    """Some modes, and the share of the targets' power in all up to each."""
    share = np.cumsum(modes.coefficients**2) / modes.power
    for rank in np.unique(np.geomspace(1, modes.points, RANKS).round().astype(int)):
        eigenvalue, power = modes.eigenvalues[rank - 1] / modes.trace, share[rank - 1]
        yield {"rank": rank, "eigenvalue": eigenvalue, "power": power, "negative": modes.negative / modes.trace}
