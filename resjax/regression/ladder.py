"""The rungs between a merge's kernel at initialisation and its trained net, on one task: where does a difference arise?

  R0  regression with the infinitely wide net's kernel     inductive bias at initialisation
  R1  regression with the net's own kernel                 + finite width
  R2  the linearised net after the steps that R3 took      + conditioning
  R3  the net itself, to the same training loss            + feature learning; lazier for larger alpha
  R4  the net by the standard recipe                       + optimisation trouble

How lazy a net is goes by alpha sqrt(K), K the mean of its kernel's K(x, x), which differs over merges by a factor of
150. So R3 is matched: each replica's alpha is that of the sum times sqrt(K_add / K_merge) (`resjax.fair.scale`).
Unmatched, at equal alpha, it is the control R3u. Below alpha = 1/2 the kernel grows about as 1 / alpha^2 while features
are learned, and R3's rate falls as (2 alpha)^2, for all merges alike, so that steps stay small. R4 takes a rate inside
its grid (`resjax.fair.tuning`).

Errors are mean squared ones at test points, over the target's mean square there. Replicas are paired over merges: equal
points, equal weights where shapes agree, equal batches. Beside the rate and the batches, R4 differs from R3 by weight
decay, its budget of epochs, and training what a norm scales by; splits of one set of images overlap.
"""

import os
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resjax.fair import scale
from resjax.fair.compare import settle
from resjax.fair.tuning import NoStableRate, Trial, tune
from resjax.models import build
from resjax.ntk.empirical import empirical_ntk
from resjax.ntk.infinite import merge_kernel
from resjax.regression import lazy
from resjax.regression import tasks as regression
from resjax.regression.fit import Fit
from resjax.regression.splits import TEACHER, TUNING_SEED, blocks, cosines, replica_seed, task_of
from resjax.regression.tasks import OWN, Regression, Target
from resjax.training import step

MOMENTUM = 0.9  # of R2 and R3
THRESHOLD = 0.01  # training error at which R3 ends, and so R2, over the targets' mean square
MOST_STEPS = 1500  # of R3
RIDGE = 1e-6  # of R1, in units of the mean of K(x, x): float32 Jacobians
DIVERGED = 1e3  # an error above this is no number to average
TUNING_SPLITS = 2  # on which R4 chooses its rate
REFERENCE = "add"  # whose scale the others are matched to


def measure(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    rungs: Collection[str],
    test: int,
    inits: int,
    rates: Sequence[float],
    alphas: Sequence[float] = (),
    target: Target = OWN,
    choose: str = "error",
    unmatched: Sequence[float] = (),
    allow_edge: bool = False,
) -> dict[str, list[dict]]:
    """The errors of `config.seeds` splits x `inits` initialisations.

    Args:
      config: an mlp and its recipe; dataset.name is a teacher of `resjax.regression.tasks`, or a data set if `target`
        says what is learned of it; dataset.train_size is n.
      workdir: not used: nothing is trained beforehand.
      rungs: those wanted, of "R0" to "R4".
      test: test points.
      inits: initialisations per split.
      rates: that R4 chooses among: the lowest mean error at the test points of `TUNING_SPLITS` other splits. Where a
        reported replica is lost at that rate, all take the next lower one (`resjax.fair.compare.settle`).
      alphas: of R3 at the sum's scale.
      target: what is learned.
      choose: by what R4 chooses its rate on those splits: "error" at test points, or "train_error".
      unmatched: alphas of R3u.
      allow_edge: whether R4's rate may be at the edge of what was tried.

    Returns:
      {"rows": split, init, rung, alpha, own_alpha, kernel, error, train_error, steps, moved, rate, stable}; what does
      not apply is nan, and an error that is not finite or above `DIVERGED` is inf. kernel is the mean of K(x, x) at the
      training points, alpha that of the sum, own_alpha the net's own; stable is the largest stable rate. Rows of the
      rung "tuning" are those of R4's choice, of "retreat" those at rates that lost a replica, and those of "teacher"
      have the training error of the net that the targets are of.

    Raises:
      ConfigError: no such target, or no rate inside the grid.
    """
    splits = range(config.seed, config.seed + config.seeds)
    data = [task_of(config, target, test, split) for split in splits]
    replicas = [(s, i) for s in range(len(data)) for i in range(inits)]
    rows: list[dict] = []

    def add(where: tuple[int, int], rung: str, one: Regression, outputs: np.ndarray, **more) -> None:
        error = np.mean((outputs - one.test_y_M) ** 2) / np.mean(one.test_y_M**2)
        row = {"split": where[0], "init": where[1], "rung": rung} | dict.fromkeys(_COLUMNS, np.nan)
        rows.append(row | {"error": error if error < DIVERGED else np.inf} | more)

    if "R0" in rungs:
        kernel = merge_kernel(config.model.merge, blocks(config), norm=config.model.norm)
        for split, one in zip(splits, data, strict=True):
            found = lazy.Kernels.of(kernel(cosines(np.concatenate([one.x_NxD, one.test_x_MxD]))), len(one.x_NxD))
            outputs = lazy.regress(found, one.y_N, ridge=1e-10)
            for i in range(inits):  # no weights: the same for all
                add((split, i), "R0", one, outputs)
    if {"R1", "R2", "R3"} & set(rungs):
        _of_kernel(config, data, replicas, rungs, alphas, unmatched, add)
    if "R4" in rungs:
        tuning = range(config.seed + TUNING_SEED, config.seed + TUNING_SEED + TUNING_SPLITS)
        tasks = {split: task_of(config, target, test, split) for split in tuning}
        _standard(config, tasks, replicas, data, rates, choose, allow_edge, add)
    if target.merge:
        for split, one in zip(splits, data, strict=True):
            own = regression.draw(config.dataset.name, config.dataset.train_size, test=test, seed=split).y_N
            train_error = np.mean((one.y_N[: len(own), 0] - own) ** 2) / np.mean(own**2)
            add((split, TEACHER), "teacher", one, np.full_like(one.test_y_M, np.nan), train_error=train_error)
    return {"rows": rows}


_COLUMNS = ("alpha", "own_alpha", "kernel", "error", "train_error", "steps", "moved", "rate", "stable")


def _standard(config, tasks: dict[int, Regression], replicas, data, rates, choose: str, allow_edge: bool, add) -> None:
    """R4, with the rate that did best on splits of its own, `tasks`."""
    fit = Fit(config, *data[0].y_N.shape)

    def fitted(one: Regression, where: tuple[int, int], rate: float) -> tuple[np.ndarray, Trial]:
        found = fit(one.x_NxD, one.y_N, one.test_x_MxD, replica_seed(*where), rate)
        outputs, train = (np.nan_to_num(a, nan=np.inf) for a in (found.test, found.train))
        train_error = np.mean((train - one.y_N) ** 2) / np.mean(one.y_N**2)
        error = np.mean((outputs - one.test_y_M) ** 2) / np.mean(one.test_y_M**2)
        error = error if error < DIVERGED else np.inf
        return outputs, Trial(train_error if choose == "train_error" else error, train_error)

    def tried(rate: float) -> list[Trial]:
        trials = []
        for split, task in tasks.items():
            outputs, trial = fitted(task, (split, 0), rate)
            add((split, 0), "tuning", task, outputs, train_error=trial.train_error, rate=rate)
            trials.append(trial)
        return trials

    try:
        tuned = tune(tried, rates, allow_edge=allow_edge)
    except NoStableRate:  # no net is left to report, which is a result
        for s, i in replicas:
            add((config.seed + s, i), "R4", data[s], np.full_like(data[s].test_y_M, np.inf), train_error=np.inf)
        return
    attempts: dict[float, list[tuple[np.ndarray, Trial]]] = {}

    def reported(rate: float) -> list[tuple[np.ndarray, Trial]]:
        attempts[rate] = [fitted(data[s], (config.seed + s, i), rate) for s, i in replicas]
        return attempts[rate]

    kept, _ = settle(tuned, reported, lambda replica: replica[1].lost)
    for rate, found in attempts.items():
        for (s, i), (outputs, trial) in zip(replicas, found, strict=True):
            kwargs = {"train_error": trial.train_error, "rate": rate, "stable": tuned.largest_stable}
            add((config.seed + s, i), "R4" if rate == kept else "retreat", data[s], outputs, **kwargs)


def _of_kernel(config, data: Sequence[Regression], replicas, rungs: Collection[str], matched, unmatched, add) -> None:
    """R1, R2, R3 and R3u, which share the net's kernel at initialisation."""
    outputs = data[0].y_N.shape[1]
    net, reference = (build.build(model, outputs) for model in (config.model, _reference(config)))
    n = config.dataset.train_size
    nets, kernels, means, of_reference = [], [], [], []

    def where(s: int, i: int) -> tuple[int, int]:
        return config.seed + s, i

    init, init_reference = jax.jit(net.init), jax.jit(reference.init)
    for s, i in replicas:
        x = jnp.asarray(np.concatenate([data[s].x_NxD, data[s].test_x_MxD]), jnp.float32)
        key = step.keys(replica_seed(*where(s, i)))[0]
        nets.append(lazy.ntk_parametrised(net, init(key, x[:1])))
        kernels.append(lazy.Kernels.of(empirical_ntk(*nets[-1], x), n))
        means.append(float(np.mean(np.diag(kernels[-1].train))))
        at_reference = lazy.ntk_parametrised(reference, init_reference(key, x[:1]))
        of_reference.append(scale.mean_kernel(*at_reference, x[:n]))
        if "R1" in rungs:
            add(where(s, i), "R1", data[s], lazy.regress(kernels[-1], data[s].y_N, ridge=RIDGE), kernel=means[-1])
    apply_fn, w = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
    x, y, test_x = (
        jnp.asarray(np.stack([getattr(data[s], name) for s, _ in replicas]), jnp.float32)
        for name in ("x_NxD", "y_N", "test_x_MxD")
    )
    full = np.array([n / np.linalg.eigvalsh(kernel.train)[-1] for kernel in kernels])
    powers = np.array([np.mean(data[s].y_N ** 2) for s, _ in replicas])
    own = np.array([scale.matched(1.0, *pair) for pair in zip(means, of_reference, strict=True)])
    climbed = [("R3", alpha, alpha * own) for alpha in matched]
    climbed += [("R3u", alpha, alpha * np.ones_like(own)) for alpha in unmatched]
    for rung, alpha, alpha_S in climbed if {"R2", "R3"} & set(rungs) else []:
        rates = full * min(1.0, (2 * alpha) ** 2)
        kwargs = {"rate_S": rates, "momentum": MOMENTUM, "threshold_S": THRESHOLD * powers, "most": MOST_STEPS}
        learned = lazy.train(apply_fn, w, x, y, test_x, alpha_S=alpha_S, **kwargs)
        for r, (s, i) in enumerate(replicas):
            steps = int(learned.steps[r])
            outputs = learned.test[r] if np.isfinite(learned.train_loss[r]) else np.full_like(learned.test[r], np.inf)
            about = {"alpha": alpha, "own_alpha": alpha_S[r], "kernel": means[r], "steps": steps, "rate": rates[r]}
            about |= {"train_error": learned.train_loss[r] / powers[r], "moved": learned.moved[r]}
            add(where(s, i), rung, data[s], outputs, **about)
            if rung == "R3" and alpha == 1 and "R2" in rungs:
                kwargs = {"rate": rates[r], "momentum": MOMENTUM, "steps": steps}
                train, outputs = lazy.linearised(kernels[r], data[s].y_N, **kwargs)
                if not np.isfinite(learned.train_loss[r]):  # it took the steps until the net overflowed
                    outputs = np.full_like(outputs, np.inf)
                error = np.mean((train - data[s].y_N) ** 2) / powers[r]
                add(where(s, i), "R2", data[s], outputs, train_error=error, steps=steps, rate=rates[r])


def _reference(config: ConfigDict) -> ConfigDict:
    model = ConfigDict(config.model.to_dict())
    model.merge = REFERENCE
    return model
