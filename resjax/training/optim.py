"""Learning-rate schedules and optimisers, from optax."""

from collections.abc import Callable
from functools import partial

import jax
import optax
from ml_collections import ConfigDict

from resjax.models.merges import MERGES
from resjax.models.parameters import is_gate, is_gate_bias, is_kernel


def schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """Learning rate at each step (0 is the first), for `total_steps` steps in all."""
    s, peak = config.schedule, config.optimizer.learning_rate
    warmup = round(s.warmup * total_steps)
    if s.name == "onecycle":  # Smith & Topin 2019; the warm-up share is its rising part
        total = max(total_steps, 2)
        rise = (
            s.warmup if int(s.warmup * total) else (1 + 1e-6) / total
        )  # at least a step, or it would start at the peak
        return optax.cosine_onecycle_schedule(total, peak, pct_start=rise)
    steps = max(total_steps - warmup, 1)
    if s.name == "constant":
        after = optax.constant_schedule(peak)
    elif s.name == "step":
        steps_of = [round(m * total_steps) - warmup for m in s.milestones]
        after = optax.piecewise_constant_schedule(peak, {at: s.factor ** steps_of.count(at) for at in steps_of})
    elif s.name == "cosine":
        after = optax.cosine_decay_schedule(peak, steps)
    else:  # restarts: equal cosine cycles (SGDR, Loshchilov & Hutter 2017)
        length = -(-steps // s.cycles)
        after = optax.join_schedules(
            [optax.cosine_decay_schedule(peak, length)] * s.cycles, [length * i for i in range(1, s.cycles)]
        )
    # The first warm-up step is above zero, the step after the last one at the peak.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([rise, after], [warmup])


def optimizer(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """The optimiser of `config`; weight decay is coupled (added to the gradient) except for adamw."""
    o, merge = config.optimizer, MERGES[config.model.merge]
    target = {"none": None, "to0": 0.0, "to1": 1.0}[o.gate_bias_decay]
    decay = optax.chain(
        optax.add_decayed_weights(o.weight_decay, mask=_where(is_kernel)) if o.weight_decay else optax.identity(),
        optax.identity() if target is None else _pull(o.weight_decay, target, partial(is_gate_bias, merge)),
    )
    gate = optax.masked(optax.scale(o.gate_lr), _where(partial(is_gate, merge)))
    decoupled = o.name == "adamw"
    return optax.chain(
        optax.clip_by_global_norm(o.clip_norm) if o.clip_norm else optax.identity(),
        optax.identity() if decoupled else decay,
        _direction(o),
        decay if decoupled else optax.identity(),
        optax.identity() if o.gate_lr == 1 else gate,
        optax.scale_by_learning_rate(schedule(config, total_steps)),
    )


def _direction(o: ConfigDict) -> optax.GradientTransformation:
    return {
        "sgd": optax.identity,
        "momentum": lambda: optax.trace(o.momentum),
        "nesterov": lambda: optax.trace(o.momentum, nesterov=True),
        "adagrad": optax.scale_by_rss,
        "rmsprop": lambda: optax.scale_by_rms(o.momentum),
        "adadelta": lambda: optax.scale_by_adadelta(o.momentum),
        "adam": optax.scale_by_adam,
        "adamw": optax.scale_by_adam,
        "radam": optax.scale_by_radam,
    }[o.name]()


def _where(rule: Callable[[tuple[str, ...]], bool]) -> Callable:
    """The mask of the parameters whose path satisfies `rule`."""
    return lambda params: jax.tree_util.tree_map_with_path(lambda path, _: rule(tuple(k.key for k in path)), params)


def _pull(rate: float, target: float, rule: Callable) -> optax.GradientTransformation:
    """Adds `rate * (parameter - target)` where `rule` holds: decay to any point."""
    pull = optax.stateless(lambda updates, params: jax.tree.map(lambda u, p: u + rate * (p - target), updates, params))
    return optax.masked(pull, _where(rule))
