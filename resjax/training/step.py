"""One training step and the evaluation of one replica: pure functions of its state and the data."""

from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from resjax.data import batches
from resjax.training.mesh import BatchSplit

DATA, LOSS, OPTIMISER = "data", "loss", "optimiser"  # parts of a step, as a profile names them


class Examples(NamedTuple):
    """A split on the device: images uint8 [N, H, W, C], labels int32 [N]."""

    images: jax.Array
    labels: jax.Array


class State(flax.struct.PyTreeNode):
    """What one replica is after `step` steps.

    Attributes:
      seed: int32; every random number of the replica derives from it.
      step: int32, number of steps done.
      params: the parameters.
      stats: the other collections, batch_stats and schedule.
      opt_state: of the optax optimiser.
      active: False once the replica diverged or stopped early; it then stays as it is.
    """

    seed: jax.Array
    step: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    active: jax.Array


class Sums(NamedTuple):
    """Float32 sums over the steps of an epoch, and the last learning rate."""

    loss: jax.Array
    accuracy: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array

    @classmethod
    def zeros(cls) -> "Sums":
        """Nothing summed yet."""
        return cls(*[jnp.zeros((), jnp.float32)] * 4)


class Task(NamedTuple):
    """What stays fixed during a run, all of it static.

    Attributes:
      config: the whole config.
      net: the model.
      optimizer: its optimiser.
      schedule: step -> learning rate.
      num_classes: K.
      train_size: N of the training split.
      total_steps: of the whole run.
      mean_C, std_C: of images in [0, 1].
    """

    config: ConfigDict
    net: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    num_classes: int
    train_size: int
    total_steps: int
    mean_C: np.ndarray
    std_C: np.ndarray

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training split; each epoch leaves out another remainder."""
        return batches.steps_per_epoch(self.train_size, self.config.batch_size)


def keys(seed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The replica's random keys: for the inits, for the batches, for dropout, for probes."""
    key = jax.random.key(seed)
    return tuple(jax.random.fold_in(key, i) for i in range(4))


def init(task: Task, x_BxHxWxC: jax.Array, seed: jax.Array) -> State:
    """The state before the first step. Parameters of equal path and shape agree over merges: seeds are paired."""
    variables = task.net.init(keys(seed)[0], x_BxHxWxC)
    stats = {name: collection for name, collection in variables.items() if name != "params"}
    params = variables["params"]
    zero = jnp.zeros((), jnp.int32)
    return State(seed, zero, params, stats, task.optimizer.init(params), jnp.ones((), bool))


def half_squared_error(logits_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    """[B]: half the squared distance to the targets, summed over classes."""
    return jnp.sum(optax.l2_loss(logits_BxK, targets_BxK), -1)


LOSSES = {"ce": optax.softmax_cross_entropy, "mse": half_squared_error}  # (logits, targets) -> [B]


def train_step(
    task: Task, state: State, x_BxHxWxC: jax.Array, targets_BxK: jax.Array, *, axis_name: str | None = None
) -> tuple[State, Sums]:
    """One step. If loss, gradient or result is not finite, or the replica is not active, its state stays as it was.

    Under pmap, `axis_name` is the axis over which the batch is split.
    """
    dropout = jax.random.fold_in(keys(state.seed)[2], state.step)
    if axis_name:
        dropout = jax.random.fold_in(dropout, lax.axis_index(axis_name))
    progress = state.step / task.total_steps
    stats = state.stats
    if "schedule" in stats:  # t of a scheduled merge rises linearly over the first half of training
        t = jnp.minimum(2 * progress, 1.0)
        stats = stats | {"schedule": jax.tree.map(lambda old: t.astype(old.dtype), stats["schedule"])}

    def objective(params):
        logits_BxK, new_stats = task.net.apply(
            {"params": params, **stats}, x_BxHxWxC, train=True, mutable=["batch_stats"], rngs={"dropout": dropout}
        )
        with jax.named_scope(LOSS):
            smooth_BxK = optax.smooth_labels(targets_BxK, task.config.loss.label_smoothing)
            return jnp.mean(LOSSES[task.config.loss.name](logits_BxK, smooth_BxK)), (logits_BxK, new_stats)

    (loss, (logits_BxK, new_stats)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    hits = jnp.argmax(logits_BxK, -1) == jnp.argmax(targets_BxK, -1)
    accuracy = jnp.mean(hits, dtype=jnp.float32)
    if axis_name:
        loss, accuracy, grads = lax.pmean((loss, accuracy, grads), axis_name)
    with jax.named_scope(OPTIMISER):
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            stats=stats | new_stats,
            opt_state=opt_state,
            active=jnp.isfinite(loss) & jnp.isfinite(grad_norm),
        )
        # Element by element: the square of a product's running variance may overflow where the variance does not.
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((new.params, new.stats))]
        new = new.replace(active=new.active & jnp.stack(finite).all())
        diverged = state.replace(active=jnp.zeros((), bool))
        new = jax.tree.map(lambda a, b: jnp.where(new.active, a, b), new, diverged)
        new = jax.tree.map(lambda a, b: jnp.where(state.active, a, b), new, state)
    loss = jnp.where(new.active | ~state.active, loss, jnp.nan)  # the epoch's mean then shows the divergence
    return new, Sums(loss, accuracy, grad_norm, task.schedule(state.step).astype(jnp.float32))


def train_steps(
    task: Task, fixed: tuple[Examples, jax.Array, jax.Array], own: tuple[State, Sums], *, split: BatchSplit
) -> tuple[State, Sums]:
    """Steps `start` to `stop` (of the run, within one epoch) of one replica, compiled as one loop.

    The loop's bounds are arrays, so that chunks of any length share one compilation.

    Args:
      task: the run.
      fixed: training examples, start, stop.
      own: state, and the sums since the epoch began.
      split: how each batch lies on the devices.
    """
    examples, start, stop = fixed
    config, data_key = task.config, keys(own[0].seed)[1]
    with jax.named_scope(DATA):
        order_N = batches.epoch_order(data_key, start // task.steps_per_epoch, task.train_size)

    def body(step, own):
        state, sums = own
        with jax.named_scope(DATA):
            plan = batches.plan(data_key, step, order_N, config.batch_size, config.dataset)
            if split.axis_name:
                plan = batches.shard(plan, lax.axis_index(split.axis_name), split.parts)
            x, targets = batches.materialize(
                plan, *examples, task.num_classes, task.mean_C, task.std_C, config.dataset, config.dtype
            )
        state, new = train_step(task, state, *split.place((x, targets)), axis_name=split.axis_name)
        return state, Sums(*(a + b for a, b in zip(sums[:3], new[:3], strict=True)), new.learning_rate)

    return lax.fori_loop(start, stop, body, own)


class Scored(NamedTuple):
    """What was found so far on a split: the sum of losses [], and, in whole batches, predicted classes, int32, and
    their softmax probabilities, float32.
    """

    loss: jax.Array
    predictions: jax.Array
    confidences: jax.Array

    @classmethod
    def nothing(cls, size: int, batch_size: int) -> "Scored":
        """Before the first batch of a split of `size` examples."""
        whole = -(-size // batch_size) * batch_size
        return cls(jnp.zeros((), jnp.float32), jnp.zeros(whole, jnp.int32), jnp.zeros(whole, jnp.float32))


def evaluate(
    task: Task, fixed: tuple[Examples, jax.Array, jax.Array], own: tuple[State, Scored], *, batch_size: int
) -> Scored:
    """Batches `start` to `stop` of a split for one replica, without augmentation, with running statistics.

    Args:
      task: the run.
      fixed: the split's examples, start, stop.
      own: state, and what was found in the batches before.
      batch_size: B.
    """
    examples, start, stop = fixed
    state, scored = own
    n = examples.labels.shape[0]
    variables = {"params": state.params, **state.stats}

    def body(batch, scored):
        index_B = batch * batch_size + jnp.arange(batch_size)
        valid_B, index_B = index_B < n, jnp.minimum(index_B, n - 1)
        x = batches.normalize(examples.images[index_B], task.mean_C, task.std_C, task.config.dtype)
        logits_BxK = task.net.apply(variables, x)
        targets_BxK = jax.nn.one_hot(examples.labels[index_B], task.num_classes)
        loss_B = LOSSES[task.config.loss.name](logits_BxK, targets_BxK)
        found_B = jnp.argmax(logits_BxK, -1).astype(jnp.int32)
        confidence_B = jnp.max(nn.softmax(logits_BxK.astype(jnp.float32)), -1)
        return Scored(
            scored.loss + jnp.sum(jnp.where(valid_B, loss_B, 0)),
            lax.dynamic_update_slice_in_dim(scored.predictions, found_B, batch * batch_size, 0),
            lax.dynamic_update_slice_in_dim(scored.confidences, confidence_B, batch * batch_size, 0),
        )

    return lax.fori_loop(start, stop, body, scored)
