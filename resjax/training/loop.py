"""The only epoch loop: config -> run directory.

Order within an epoch: steps -> finite? -> metrics -> checkpoint. A step whose loss or gradient is not finite leaves
its replica as it was (training.step), so that no unchecked state is ever saved.

A run may end at any moment and goes on with the same bits: whatever it has reached lies in `Position`, a batch is a
function of (seed, step), and what metrics.jsonl says beyond the position is forgotten.
"""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from operator import itemgetter
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from resjax import config as config_lib
from resjax import records
from resjax.config import ConfigError
from resjax.data import batches
from resjax.data.dataset import Dataset, Split, digest, load
from resjax.models import build
from resjax.models.transformer import check_images
from resjax.runtime import hosts, memory, startup
from resjax.runtime.interrupt import Interrupted, StopSignals
from resjax.runtime.pace import Pace
from resjax.runtime.progress import TrainingProgress
from resjax.training import history, optim, rundir, step
from resjax.training.checkpoint import Checkpoints
from resjax.training.mesh import BATCH_AXIS, Replicas
from resjax.training.probing import Probing
from resjax.training.profiling import WARM, Profile, affordable
from resjax.training.scores import over_replicas, scores


def train(config: ConfigDict, workdir: str | os.PathLike, *, profile: bool = False) -> Path:
    """Trains all replicas of `config`, or continues, or does nothing if they are trained already.

    With `profile`, the run directory also gets a trace of some steps and a table of where their time goes; numbers
    stay as they are.

    Returns:
      The run directory; its status.json says "done", or "diverged" if any replica did.

    Raises:
      ConfigError: a config, data set or directory that can't work, before anything is written.
      Interrupted: SIGTERM, SIGINT or SIGUSR2 came; all that was done is saved.
      OSError: the directory can't be written any more (a full disk); the last good checkpoint is kept.
    """
    config_lib.check(config)
    build.check(config.model)
    path = rundir.path_of(config, workdir)
    if hosts.run_on_first(lambda: rundir.read_status(path).get("status")) in rundir.FINISHED:
        hosts.run_on_first(lambda: rundir.check_finished(path, config))
        return path
    dataset, task, replicas = hosts.together(lambda: _prepare(config))
    run = rundir.RunDir(config, workdir)
    with (
        StopSignals() as signals,
        ExitStack() as opened,
        Checkpoints(path / "checkpoints", config.checkpoint_keep) as checkpoints,
    ):
        hosts.run_on_first(lambda: _enter(opened, run))
        startup.keep_compiled_programs(config.compilation_cache)  # first now: a refused run writes nothing
        _Run(task, dataset, replicas, run, checkpoints, signals).train(profile)
    return path


def _enter(opened: ExitStack, run: rundir.RunDir) -> None:
    opened.enter_context(run)


def _prepare(config: ConfigDict) -> tuple[Dataset, step.Task, Replicas]:
    dataset = load(config.dataset)
    axis_name = BATCH_AXIS if config.parallel == "pmap" else None
    return dataset, make_task(config, dataset, axis_name), Replicas(config)


def make_task(config: ConfigDict, dataset: Dataset, axis_name: str | None = None) -> step.Task:
    """What stays fixed during the run. Raises ConfigError if batch, crop or net don't fit the data.

    `axis_name` is that of the axis over which pmap splits a batch; the net works nowhere else then.
    """
    images_NxHxWxC = dataset.train.images_NxHxWxC
    size, pixels = len(images_NxHxWxC), min(images_NxHxWxC.shape[1:3])
    if config.model.front == "stn":
        check_images("config.model.front='stn'", images_NxHxWxC.shape)
    if config.dataset.crop_padding >= pixels:
        raise ConfigError(f"config.dataset.crop_padding={config.dataset.crop_padding}: the images have {pixels} pixels")
    steps = config.epochs * batches.steps_per_epoch(size, config.batch_size)
    if steps >= 2**31:
        raise ConfigError(f"config.epochs={config.epochs}: {steps} steps in all; at most {2**31 - 1} can be counted")
    net = build.build(config.model, dataset.num_classes, dtype=config.dtype, axis_name=axis_name)
    if config.batch_size == 1:  # which BatchNorm may refuse, where it is traced
        x_1xHxWxC = np.zeros((1, *images_NxHxWxC.shape[1:]), np.float32)
        jax.eval_shape(
            partial(net.init_with_output, train=True),
            {"params": jax.random.key(0), "dropout": jax.random.key(1)},
            x_1xHxWxC,
        )
    return step.Task(
        config=config,
        net=net,
        optimizer=optim.optimizer(config, steps),
        schedule=optim.schedule(config, steps),
        num_classes=dataset.num_classes,
        train_size=size,
        total_steps=steps,
        mean_C=dataset.mean_C,
        std_C=dataset.std_C,
    )


class _Run:
    """One call of `train`: the compiled programs, the data on the devices, and what the run has reached.

    Attributes:
      data: their digest.
      rows: of metrics.jsonl.
      epoch: how many epochs they hold.
      step: steps done, those of the epoch under way included.
      states, sums: of all replicas after these steps.
      seconds_per_step: of the latest call.
      profile: where the time of a step goes, if that was asked for.
    """

    def __init__(
        self,
        task: step.Task,
        dataset: Dataset,
        replicas: Replicas,
        run: rundir.RunDir,
        checkpoints: Checkpoints,
        signals: StopSignals,
    ):
        self.task, self.config, self.replicas = task, task.config, replicas
        self.run, self.checkpoints, self.signals = run, checkpoints, signals
        self.seeds = [self.config.seed + i for i in range(self.config.seeds)]
        self.data = digest(dataset)
        splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
        self.splits = {name: split for name, split in splits.items() if split is not None}
        self.examples = {name: replicas.copy(_examples(split)) for name, split in self.splits.items()}
        self.init = replicas.compile(partial(step.init, task))
        self.train_steps = replicas.compile_training(partial(step.train_steps, task))
        self.at_once = batches.at_once(dataset.train.images_NxHxWxC.shape[1:])
        self.evaluate = replicas.compile(partial(step.evaluate, task, batch_size=self.at_once))
        self.probing = Probing(make_task(self.config, dataset), dataset.train)
        self.training_pace, self.evaluation_pace = Pace(), Pace()
        self.rows: list[dict] = []
        self.epoch = self.step = 0
        self.seconds_per_step = 0.0
        self.profile: Profile | None = None
        self.saved_at = time.monotonic()

    def train(self, profile: bool) -> None:
        """Trains from the newest checkpoint, or from the start, to the end."""
        config, total = self.config, self.config.epochs * self.task.steps_per_epoch
        self._begin()
        self._write_status("running")
        label = f"{config.name} on {config.dataset.name}"
        with TrainingProgress(label, total, self.step, quiet=not hosts.is_first()) as self.progress:
            try:
                if not self.step:
                    self._probe(0, self.seeds)
                if self.epoch < config.epochs and (seeds := self._training()):
                    self._compile(len(seeds), profile)
                while self.epoch < config.epochs and self._training():
                    self._train_epoch()
                self._save()
                self._summarize()
            except Interrupted:
                self._save()
                self.checkpoints.wait()
                self._write_status("interrupted")
                raise
        self.checkpoints.wait()
        diverged = history.diverged(self.rows)
        self._write_status("diverged" if diverged else "done", diverged)

    def _compile(self, training: int, profiled: bool) -> None:
        """Compiles the training steps before the first of them, and says what memory they take."""
        with startup.own_names() if profiled else nullcontext():
            compiled = self.train_steps.lower(*self._arguments(self.step, self.step)).compile()
        devices = jax.local_devices()[: self.replicas.device_count // jax.process_count()]
        said, warning = memory.estimate(compiled, devices)
        if warning and hosts.is_first():
            print(f"warning: {warning}", file=sys.stderr)
        what = f"{_counted(training, 'replica')} on {_counted(self.replicas.device_count, 'device')}"
        self.progress.expect(f"{what}: {said}", training * self.config.batch_size)
        if profiled:
            own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.states.params)
            start = min(self.step + WARM, self.config.epochs * self.task.steps_per_epoch - 1)
            at_once = self.config.seeds // self.replicas.device_count if self.config.replicas == "vmap" else 1
            self.profile = Profile(self.run.path / records.PROFILE, start, compiled, own, at_once, len(devices))

    def _write_status(self, status: str, diverged: dict[int, int] | None = None) -> None:
        hosts.run_on_first(lambda: self.run.write_status(status, self.epoch, diverged))

    def _begin(self) -> None:
        """Takes up what was reached before; says what differs from then. Raises ConfigError for other data."""
        hosts.run_on_first(lambda: rundir.check_data(self.run.path, self.data))
        x_1xHxWxC = self.replicas.copy(np.zeros((1, *self.splits["train"].images_NxHxWxC.shape[1:]), np.float32))
        own_seeds = self.replicas.spread(np.array(self.seeds, np.int32))
        shapes = jax.eval_shape(self.init, x_1xHxWxC, own_seeds)
        self.sums = self._zeros(step.Sums.zeros())
        saved = self.checkpoints.restore({"states": shapes, "sums": self.sums})
        if saved:
            self.step, self.epoch = saved.step, saved.epoch
            self.states, self.sums = self.replicas.spread((saved.tree["states"], saved.tree["sums"]))
        else:
            self.states = self.init(x_1xHxWxC, own_seeds)
        # Who starts over looks before training again.
        kept = self.epoch if saved else -1
        self.rows, forgotten = hosts.run_on_first(lambda: self.run.keep_metrics_until(kept))
        if gap := history.gap(self.rows, self.seeds, self.epoch, self.config.early_stopping):
            raise ConfigError(f"{self.run.path}/metrics.jsonl lacks {gap}: to start over, delete {self.run.path}")
        where = {
            "data": self.data,
            "jax": startup.settings(),
            "device": jax.devices()[0].device_kind,
            "device_count": self.replicas.device_count,
            "processes": jax.process_count(),
            "cores": startup.cores(),
        }
        changed = hosts.run_on_first(lambda: self.run.write_env(continued=bool(saved), **where))
        if hosts.is_first() and changed:
            print(
                f"note: the bits of this run may differ from an unbroken one's: now {', '.join(changed)}",
                file=sys.stderr,
            )
        if hosts.is_first() and forgotten and not saved:
            print(
                f"note: no checkpoint: {forgotten} rows of metrics are dropped, training starts over", file=sys.stderr
            )

    def _zeros(self, one) -> step.Sums | step.Scored:
        """`one`, of one replica, for each of them."""
        return self.replicas.spread(jax.tree.map(lambda leaf: np.stack([leaf] * len(self.seeds)), one))

    def _training(self) -> list[int]:
        """The seeds that still train."""
        ended = history.diverged(self.rows) | history.stopped(self.rows, self.config.early_stopping)
        return [seed for seed in self.seeds if seed not in ended]

    def _poll(self) -> None:
        """Between two compiled calls: stops if told to, saves if it is time. All processes do the same."""
        due = hosts.is_first() and time.monotonic() - self.saved_at >= self.config.checkpoint_seconds
        received, due = hosts.agree((self.signals.received, due))
        if received:
            raise Interrupted(int(received))
        if due:
            self._save()

    def _save(self) -> None:
        if self.step:
            self.checkpoints.save(self.step, self.epoch, {"states": self.states, "sums": self.sums})
        self.saved_at = time.monotonic()

    def _train_epoch(self) -> None:
        """Trains, evaluates and records an epoch, or what was left of it."""
        epoch, steps, seeds = self.epoch + 1, self.task.steps_per_epoch, self._training()
        before, seconds = self.step, self._steps_until(epoch * steps)
        speed = (self.step - before) * self.config.batch_size * len(seeds) / seconds if seconds else np.nan
        sums, rows = hosts.fetch(self.sums), []
        for i, seed in enumerate(self.seeds):
            means = {name: getattr(sums, name)[i] / steps for name in ("loss", "accuracy", "grad_norm")}
            if seed in seeds:
                rate = sums.learning_rate[i]
                rows.append(history.row(epoch, seed, "train", **means, learning_rate=rate, images_per_s=speed))
        ended = history.diverged(rows)
        if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
            for name in [name for name in self.splits if name != "train"]:
                loss, accuracy, *_ = self._scores(name)
                for i, seed in enumerate(self.seeds):
                    if seed in seeds and seed not in ended:
                        rows.append(history.row(epoch, seed, name, loss=loss[i], accuracy=accuracy[i]))
        stopped = history.stopped(self.rows + rows, self.config.early_stopping)
        kept = [seed for seed in seeds if seed not in ended]
        self._probe(epoch, kept, last=[seed for seed in kept if stopped.get(seed) == epoch])
        hosts.run_on_first(lambda: self.run.append_metrics(rows))
        self.progress.show(epoch, rows)
        self.rows += rows
        self.epoch, self.sums = epoch, self._zeros(step.Sums.zeros())
        if self.config.early_stopping:
            still = np.isin(self.seeds, self._training())
            self.states = self.states.replace(active=self.replicas.spread(still))

    def _probe(self, epoch: int, seeds: list[int], last: Sequence[int] = ()) -> None:
        """Lets the probes that are due look at these replicas, and all at those for which this epoch is the last."""
        due = self.probing.due(epoch)
        others = [name for name in self.probing.periods if name not in due]
        for names, chosen in ((due, seeds), (others, last)):
            if names and chosen:
                states = hosts.fetch(self.states)
                own = {seed: jax.tree.map(itemgetter(self.seeds.index(seed)), states) for seed in chosen}
                hosts.run_on_first(partial(self._look, names, epoch, own))

    def _look(self, names: list[str], epoch: int, own: dict[int, step.State]) -> None:
        for name, rows in self.probing.look(names, epoch, own).items():
            self.run.append_probed(name, rows)

    def _steps_until(self, stop: int) -> float:
        """Trains up to step `stop`; returns the seconds that it took, compilation left out."""
        seconds = 0.0
        if self.profile and self.step <= self.profile.start < stop:
            seconds = self._calls_until(self.profile.start)
            last = min(self.step + affordable(self.seconds_per_step), stop)
            with self.profile.traced(last - self.step):
                took = self._call(self.step, last)
            self.progress.say(f"profiled: {_counted(last - self.profile.start, 'step')} in {took:.2f} s")
            seconds += took
            self._poll()
        return seconds + self._calls_until(stop)

    def _calls_until(self, stop: int) -> float:
        seconds = 0.0
        for first, last in self.training_pace.calls(self.step, stop):
            seconds += self._call(first, last)
            self._poll()
        return seconds

    def _call(self, first: int, last: int) -> float:
        """Trains these steps; returns the seconds that it took, 0 for no step."""
        began, arguments = time.monotonic(), self._arguments(first, last)
        self.states, self.sums = jax.block_until_ready(self.train_steps(*arguments))
        self.step, seconds = last, time.monotonic() - began if last > first else 0.0
        self.seconds_per_step = seconds / (last - first) if last > first else self.seconds_per_step
        self.progress.advance(last - first, seconds)
        return seconds

    def _arguments(self, first: int, last: int) -> tuple:
        bounds = self.replicas.copy((np.int32(first), np.int32(last)))
        return (self.examples["train"], *bounds), (self.states, self.sums)

    def _scores(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Loss [S], accuracy [S], predictions [S, N] and their probabilities [S, N] of a split."""
        labels_N = self.splits[split].labels_N
        scored = self._zeros(step.Scored.nothing(len(labels_N), self.at_once))
        for first, last in self.evaluation_pace.calls(0, -(-len(labels_N) // self.at_once)):
            bounds = self.replicas.copy((np.int32(first), np.int32(last)))
            scored = jax.block_until_ready(self.evaluate((self.examples[split], *bounds), (self.states, scored)))
            self._poll()
        scored = hosts.fetch(scored)
        predictions_SxN, confidences_SxN = (of[:, : len(labels_N)] for of in (scored.predictions, scored.confidences))
        accuracy_S = np.mean(predictions_SxN == labels_N, -1)
        return scored.loss / len(labels_N), accuracy_S, predictions_SxN, confidences_SxN

    def _summarize(self) -> None:
        """Writes summary.json from the final states; a diverged replica has no scores."""
        diverged = history.diverged(self.rows)
        stopped = history.stopped(self.rows, self.config.early_stopping)
        measured = {name: self._scores(name) for name in self.splits}
        per_seed = []
        for i, seed in enumerate(self.seeds):
            values = {
                f"{name}_{what}": history.finite(measured[name][k][i]) for name in measured for k, what in _SCORES
            }
            found = scores(self.splits["test"].labels_N, *(of[i] for of in measured["test"][2:]))
            values |= {name: history.finite(value) for name, value in found.items()}
            values["generalization_gap"] = values["train_accuracy"] - values.pop("test_accuracy")
            if seed in diverged:
                values = dict.fromkeys(values)
            last = (diverged | stopped).get(seed, self.config.epochs)
            per_seed.append(
                {"seed": seed, "status": "diverged" if seed in diverged else "done", "epoch": last} | values
            )
        summary = {
            "parameters": sum(leaf[0].size for leaf in jax.tree.leaves(self.states.params)),
            "num_classes": self.task.num_classes,
            "per_seed": per_seed,
            "statistics": over_replicas(per_seed),
        }
        hosts.run_on_first(lambda: self.run.write_summary(summary))


_SCORES = ((0, "loss"), (1, "accuracy"))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _examples(split: Split) -> step.Examples:
    return step.Examples(split.images_NxHxWxC, split.labels_N)
