"""Of what degree is the function that a net has learned, and how fast does it learn one of a given degree?

Degree along lines: between two training points x_a, x_b the net's output is a function of t in [-1, 1], and its energy
on the Chebyshev polynomial T_k says how much of it is of degree k. A sum of affine branches has degree 1, a product of
L residual blocks without activations 2^L.

Speed: the training error over the course of the standard recipe, with one learning rate for all merges, and with one
that is the same share of each net's stability limit. The claim that products learn high degrees faster (Wu et al. 2022,
2209.07736) must hold for the second as well: a larger kernel is a larger rate.
"""

import os

import numpy as np
from ml_collections import ConfigDict

from resjax.config import ConfigError
from resjax.data.subsets import stream
from resjax.models.frozen import frozen
from resjax.ntk.empirical import empirical_ntk
from resjax.ntk.infinite import merge_kernel
from resjax.probes.functions.degree import chebyshev_energy, chebyshev_nodes
from resjax.regression import tasks as regression
from resjax.regression.fit import Fit
from resjax.regression.tasks import Regression
from resjax.theory.domains import hypercube
from resjax.theory.eigenlearning import off_train, predict
from resjax.training import step

NODES = 64  # of a line: polynomials below this degree are resolved exactly
DEGREES = 16  # whose energy is told one by one; beyond them, together


def measure(
    config: ConfigDict, workdir: str | os.PathLike, *, test: int, lines: int, rate: float, share: float
) -> dict[str, list[dict]]:
    """Speed and degrees of `config.seeds` replicas, one per split.

    Args:
      config: an mlp without batch statistics, and its recipe; dataset.name is a teacher of `resjax.regression.tasks`.
        optimizer.learning_rate is the one rate for all.
      workdir: not used: nothing is trained beforehand.
      test: test points.
      lines: through pairs of training points, per split.
      rate: that suits this merge; the degrees are those of the net it trains.
      share: of the stability limit 2 n / (largest eigenvalue of the net's kernel at initialisation) of plain gradient
        descent, for the rate that is normalised.

    Returns:
      {"speed": split, rule ("one", "kernel", "tuned"), rate, area (training error, mean over epochs), half (first epoch
      whose error is below 1/2; inf: none), train_error, error; "energy": split, moment ("init", "trained"), k (of T_k,
      from 1; `DEGREES` + 1: all beyond), energy (share)}. Errors are over the target's mean square, and inf where
      the replica diverged; it has no energies after training.

    Raises:
      ConfigError: model.norm is "bn", or no such teacher.
    """
    if config.model.norm == "bn":
        raise ConfigError("config.model.norm='bn': frozen statistics have another kernel than the training; use ln")
    n = config.dataset.train_size
    fit = Fit(config, n, 1)
    out: dict[str, list[dict]] = {"speed": [], "energy": []}
    for split in range(config.seed, config.seed + config.seeds):
        task = regression.draw(config.dataset.name, n, test=test, seed=split)
        state = step.init(fit.task, np.asarray(task.x_NxD[:1], np.float32), split)
        points = _on_lines(task.x_NxD, lines, split)
        rates = {"one": config.optimizer.learning_rate, "kernel": share * _limit(fit, state, task), "tuned": rate}
        for rule, own in rates.items():
            found = fit(task.x_NxD, task.y_N[:, None], np.concatenate([task.test_x_MxD, points]), split, own)
            out["speed"].append({"split": split, "rule": rule, "rate": own} | _speed(found, task))
        energies = {"init": fit.task.net.apply({"params": state.params, **state.stats}, np.float32(points))}
        if np.isfinite(found.test).all():  # of the last rule
            energies["trained"] = found.test[test:]
        for moment, values in energies.items():
            of_degree = told(chebyshev_energy(np.asarray(values, float).reshape(lines, NODES)))
            out["energy"] += [
                {"split": split, "moment": moment, "k": k, "energy": e} for k, e in enumerate(of_degree, 1)
            ]
    return out


def told(energy_K: np.ndarray) -> np.ndarray:
    """Share of the energy in degree 1, ..., `DEGREES`, and beyond, [DEGREES + 1]."""
    return np.append(energy_K[:DEGREES], energy_K[DEGREES:].sum())


def predicted(merge: str, blocks: int, norm: str, d: int, degree: int, sizes: list[int]) -> np.ndarray:
    """Errors [sizes] of the infinitely wide net's kernel on parities of the d-cube, by eigenlearning, off training."""
    levels = hypercube(merge_kernel(merge, blocks, norm=norm), d)
    target = np.eye(d + 1)[degree]
    found = predict(levels.eigenvalues, target, np.array(sizes), multiplicities=levels.multiplicities)
    return off_train(found.test_mse, found.train_mse, np.array(sizes), 2**d)


def _on_lines(x_NxD: np.ndarray, lines: int, seed: int) -> np.ndarray:
    """Chebyshev nodes between pairs of points, [lines * NODES, D]."""
    rng = stream(seed, "lines")
    a, b = np.stack([rng.permutation(len(x_NxD))[:2] for _ in range(lines)], 1)
    t_M = chebyshev_nodes(NODES)[:, None]
    middle_LxD, half_LxD = (x_NxD[a] + x_NxD[b]) / 2, (x_NxD[b] - x_NxD[a]) / 2
    return (middle_LxD[:, None] + t_M * half_LxD[:, None]).reshape(-1, x_NxD.shape[1])


def _limit(fit: Fit, state: step.State, task: Regression) -> float:
    """2 n over the largest eigenvalue: the rate beyond which gradient descent on half the mean square diverges."""
    apply_fn, params = frozen(fit.task.net, {"params": state.params, **state.stats})
    kernel = empirical_ntk(apply_fn, params, np.asarray(task.x_NxD, np.float32), mode="trace")
    return 2 * len(kernel) / np.linalg.eigvalsh(kernel)[-1]


def _speed(found, task: Regression) -> dict[str, float]:
    power = np.mean(task.y_N**2)
    if not np.isfinite(found.course).all():
        return dict.fromkeys(("area", "half", "train_error", "error"), np.inf)
    course = found.course / power
    below = np.flatnonzero(course < 0.5)
    test = found.test[: len(task.test_y_M), 0]
    return {
        "area": np.mean(course),
        "half": below[0] + 1 if len(below) else np.inf,
        "train_error": np.mean((found.train[:, 0] - task.y_N) ** 2) / power,
        "error": np.mean((test - task.test_y_M) ** 2) / np.mean(task.test_y_M**2),
    }
