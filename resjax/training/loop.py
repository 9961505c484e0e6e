"""The only epoch loop: config -> run directory.

Order within an epoch: steps -> finite? -> metrics -> checkpoint. A step whose loss or gradient is not finite leaves
its replica as it was (training.step), so that no unchecked state is ever saved.
"""

import os
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.data import batches
from resjax.data.dataset import Dataset, Split, load
from resjax.models import build
from resjax.training import history, optim, rundir, step
from resjax.training.checkpoint import Checkpoints
from resjax.training.mesh import Replicas
from resjax.training.progress import TrainingProgress
from resjax.training.scores import over_replicas, scores

CHUNK_SECONDS = 2.0  # of one compiled call: how often progress shows


def train(config: ConfigDict, workdir: str | os.PathLike) -> Path:
    """Trains all replicas of `config`, or continues, or does nothing if they are trained already.

    Returns:
      The run directory; its status.json says "done", or "diverged" if any replica did.

    Raises:
      ConfigError: a config, data set or directory that can't work, before anything is written.
    """
    config_lib.check(config)
    build.check(config.model)
    path = rundir.path_of(config, workdir)
    if rundir.read_status(path).get("status") in rundir.FINISHED:
        return path
    dataset = load(config.dataset)
    task = make_task(config, dataset)
    replicas = Replicas(config)
    with (
        rundir.RunDir(config, workdir) as run,
        Checkpoints(path / "checkpoints", config.checkpoint_keep) as checkpoints,
    ):
        this = _Run(task, dataset, replicas, run, checkpoints)
        try:
            this.train()
        except KeyboardInterrupt:
            run.write_status("interrupted", this.rows[-1]["epoch"] if this.rows else 0)
            raise
    return path


def make_task(config: ConfigDict, dataset: Dataset) -> step.Task:
    """What stays fixed during the run. Raises ConfigError if batch or crop are too large for the data."""
    size, pixels = len(dataset.train.labels_N), min(dataset.train.images_NxHxWxC.shape[1:3])
    if config.dataset.crop_padding >= pixels:
        raise ConfigError(f"config.dataset.crop_padding={config.dataset.crop_padding}: the images have {pixels} pixels")
    steps = config.epochs * batches.steps_per_epoch(size, config.batch_size)
    axis_name = "batch" if config.parallel == "pmap" else None
    return step.Task(
        config=config,
        net=build.build(config.model, dataset.num_classes, dtype=config.dtype, axis_name=axis_name),
        optimizer=optim.optimizer(config, steps),
        schedule=optim.schedule(config, steps),
        num_classes=dataset.num_classes,
        train_size=size,
        total_steps=steps,
        mean_C=dataset.mean_C,
        std_C=dataset.std_C,
    )


class _Run:
    """One call of `train`: the compiled programs, the data on the devices, and the rows so far."""

    def __init__(
        self, task: step.Task, dataset: Dataset, replicas: Replicas, run: rundir.RunDir, checkpoints: Checkpoints
    ):
        self.task, self.config, self.replicas = task, task.config, replicas
        self.run, self.checkpoints = run, checkpoints
        self.seeds = [self.config.seed + i for i in range(self.config.seeds)]
        splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
        self.splits = {name: split for name, split in splits.items() if split is not None}
        self.examples = {name: replicas.copy(_examples(split)) for name, split in self.splits.items()}
        self.init = replicas.compile(partial(step.init, task))
        self.train_steps = replicas.compile_training(partial(step.train_steps, task))
        self.evaluate = replicas.compile(partial(step.evaluate, task))
        self.rows: list[dict] = []
        self.chunk: int | None = None  # steps of one compiled call

    def train(self) -> None:
        """Trains from the newest checkpoint, or from the start, to the end."""
        config, per_epoch = self.config, self.task.steps_per_epoch
        epoch, states = self._begin()
        self.run.write_env(jax.devices()[0].device_kind, self.replicas.device_count)
        self.run.write_status("running", epoch)
        saved = time.monotonic()
        label = f"{config.name} on {config.dataset.name}"
        with TrainingProgress(label, config.epochs * per_epoch, epoch * per_epoch) as progress:
            while epoch < config.epochs and self._training():
                epoch += 1
                states = self._epoch(epoch, states, progress)
                if time.monotonic() - saved >= config.checkpoint_seconds:
                    self.checkpoints.save(epoch, states)
                    saved = time.monotonic()
        self.checkpoints.save(epoch, states)
        self._summarize(states)
        self.checkpoints.wait()
        diverged = history.diverged(self.rows)
        self.run.write_status("diverged" if diverged else "done", epoch, diverged)

    def _begin(self) -> tuple[int, step.State]:
        """The number of epochs done already, and the states after them."""
        x_1xHxWxC = jnp.zeros((1, *self.splits["train"].images_NxHxWxC.shape[1:]), jnp.float32)
        seeds = self.replicas.spread(jnp.array(self.seeds, jnp.int32))
        states = self.init(self.replicas.copy(x_1xHxWxC), seeds)
        epoch, states = self.checkpoints.restore(states) or (0, states)
        self.rows = self.run.keep_metrics_until(epoch)
        return epoch, states

    def _training(self) -> list[int]:
        """The seeds that still train."""
        ended = history.diverged(self.rows) | history.stopped(self.rows, self.config.early_stopping)
        return [seed for seed in self.seeds if seed not in ended]

    def _epoch(self, epoch: int, states: step.State, progress: TrainingProgress) -> step.State:
        """Trains and evaluates one epoch, and records its rows."""
        states, sums, seconds = self._steps(epoch, states, progress)
        steps, seeds = self.task.steps_per_epoch, self._training()
        speed = steps * self.config.batch_size * len(self.seeds) / seconds
        rows = []
        for i, seed in enumerate(self.seeds):
            means = {name: getattr(sums, name)[i] / steps for name in ("loss", "accuracy", "grad_norm")}
            if seed in seeds:
                rate = sums.learning_rate[i]
                rows.append(history.row(epoch, seed, "train", **means, learning_rate=rate, images_per_s=speed))
        ended = history.diverged(rows)
        if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
            for name in [name for name in self.splits if name != "train"]:
                loss, accuracy, _ = self._scores(name, states)
                for i, seed in enumerate(self.seeds):
                    if seed in seeds and seed not in ended:
                        rows.append(history.row(epoch, seed, name, loss=loss[i], accuracy=accuracy[i]))
        self.rows += rows
        self.run.append_metrics(rows)
        progress.show(epoch, rows)
        if self.config.early_stopping:
            still = np.isin(self.seeds, self._training())
            states = states.replace(active=self.replicas.spread(jnp.array(still)))
        return states

    def _steps(self, epoch: int, states: step.State, progress: TrainingProgress) -> tuple[step.State, step.Sums, float]:
        """The steps of one epoch in compiled chunks: new states, sums on the host, seconds."""
        first = (epoch - 1) * self.task.steps_per_epoch
        stop = first + self.task.steps_per_epoch
        sums = self.replicas.spread(jax.tree.map(lambda zero: jnp.stack([zero] * len(self.seeds)), step.Sums.zeros()))
        own = (states, sums)
        if self.chunk is None:  # compiles, with no step to do
            own = self._call(own, first, first)
            self.chunk = 1
        began = time.monotonic()
        while first < stop:
            last, called = min(first + self.chunk, stop), time.monotonic()
            own = self._call(own, first, last)
            progress.advance(last - first)
            took = max(time.monotonic() - called, 1e-6)
            self.chunk = max(1, min(4 * self.chunk, round((last - first) * CHUNK_SECONDS / took)))
            first = last
        states, sums = own
        return states, jax.tree.map(np.asarray, sums), time.monotonic() - began

    def _call(self, own: tuple[step.State, step.Sums], first: int, last: int) -> tuple[step.State, step.Sums]:
        bounds = self.replicas.copy((jnp.int32(first), jnp.int32(last)))
        return jax.block_until_ready(self.train_steps((self.examples["train"], *bounds), own))

    def _scores(self, split: str, states: step.State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss [S], accuracy [S] and predictions [S, N] of a split."""
        loss_S, predictions_SxN = jax.tree.map(np.asarray, self.evaluate(self.examples[split], states))
        return loss_S, np.mean(predictions_SxN == self.splits[split].labels_N, -1), predictions_SxN

    def _summarize(self, states: step.State) -> None:
        """Writes summary.json from the final states; a diverged replica has no scores."""
        diverged = history.diverged(self.rows)
        stopped = history.stopped(self.rows, self.config.early_stopping)
        measured = {name: self._scores(name, states) for name in self.splits}
        per_seed = []
        for i, seed in enumerate(self.seeds):
            values = {
                f"{name}_{what}": history.finite(measured[name][k][i]) for name in measured for k, what in _SCORES
            }
            found = scores(self.splits["test"].labels_N, measured["test"][2][i])
            values |= {name: history.finite(value) for name, value in found.items()}
            values["generalization_gap"] = values["train_accuracy"] - values.pop("test_accuracy")
            if seed in diverged:
                values = dict.fromkeys(values)
            last = (diverged | stopped).get(seed, self.config.epochs)
            per_seed.append(
                {"seed": seed, "status": "diverged" if seed in diverged else "done", "epoch": last} | values
            )
        self.run.write_summary(
            parameters=sum(leaf[0].size for leaf in jax.tree.leaves(states.params)),
            num_classes=self.task.num_classes,
            per_seed=per_seed,
            statistics=over_replicas(per_seed),
        )


_SCORES = ((0, "loss"), (1, "accuracy"))


def _examples(split: Split) -> step.Examples:
    return step.Examples(jnp.asarray(split.images_NxHxWxC), jnp.asarray(split.labels_N))
