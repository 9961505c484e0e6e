"""The standard recipe on a regression task: the steps of `resjax.training.step` on arrays, one replica at a time."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from resjax.data import batches
from resjax.models import build
from resjax.training import optim, step


class Fitted(NamedTuple):
    """What a replica has learned; nan throughout if it diverged.

    Attributes:
      train: outputs at the training samples, [n, C].
      test: outputs at the test samples, [m, C].
      course: mean squared error over the batches of each epoch, [epochs].
    """

    train: np.ndarray
    test: np.ndarray
    course: np.ndarray


def regression_task(config: ConfigDict, n: int, outputs: int) -> step.Task:
    """The task of `config` (whose loss must be "mse") for n training samples and so many outputs."""
    steps = config.epochs * batches.steps_per_epoch(n, config.batch_size)
    return step.Task(
        config=config,
        net=build.build(config.model, outputs, dtype=config.dtype),
        optimizer=optim.optimizer(config, steps),
        schedule=optim.schedule(config, steps),
        num_classes=outputs,
        train_size=n,
        total_steps=steps,
        mean_C=np.zeros(1, np.float32),
        std_C=np.ones(1, np.float32),
    )


class Fit:
    """Trains replicas of one task; they share one compilation, whatever their rate.

    Seeds are paired over merges: parameters of equal path and shape, and all batches, agree.
    """

    def __init__(self, config: ConfigDict, n: int, outputs: int):
        """Raises ConfigError if a batch is larger than n."""
        self.task = regression_task(config, n, outputs)
        self._run = jax.jit(partial(_run, self.task))

    def __call__(
        self, x: jax.Array, y_NxC: jax.Array, test_x: jax.Array, seed: int, rate: float | None = None
    ) -> Fitted:
        """The replica of `seed` on training samples x [n, ...] and y, and its outputs at test_x [m, ...].

        `rate` is the peak of the learning rate; None: the config's.
        """
        peak = self.task.config.optimizer.learning_rate
        factor = 1.0 if rate is None else rate / peak
        data = (jnp.asarray(a, jnp.float32) for a in (x, y_NxC, test_x))
        active, *found = self._run(*data, seed, factor)
        lost = 1.0 if active else np.nan
        return Fitted(*(lost * np.asarray(a) for a in found))


def _run(task: step.Task, x: jax.Array, y_NxC: jax.Array, test_x: jax.Array, seed: jax.Array, factor: jax.Array):
    # The learning rate is the last factor of an update, so that another one multiplies it.
    task = task._replace(optimizer=optax.chain(task.optimizer, optax.scale(factor)))
    data_key, size = step.keys(seed)[1], task.config.batch_size

    def epoch(state, number):
        order_N = batches.epoch_order(data_key, number, task.train_size)

        def one(i, own):
            state, loss = own
            index_B = lax.dynamic_slice_in_dim(order_N, i * size, size)
            state, sums = step.train_step(task, state, x[index_B], y_NxC[index_B])
            return state, loss + 2 * sums.loss / task.num_classes

        state, loss = lax.fori_loop(0, task.steps_per_epoch, one, (state, jnp.zeros((), jnp.float32)))
        return state, loss / task.steps_per_epoch

    state, course = lax.scan(epoch, step.init(task, x[:1], seed), jnp.arange(task.config.epochs))
    variables = {"params": state.params, **state.stats}
    return state.active, task.net.apply(variables, x), task.net.apply(variables, test_x), course
