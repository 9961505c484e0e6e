"""Do gates saturate, and what do they let through? Where their values lie, their slopes, and the gradient behind them.

Which gates a merge has is said where it is declared (`resjax.models.merges.Gate`), so that one of your own is seen as
well. The place of a gate's value in its range is p = (value - low)/(high - low); of a range without upper end it is
p = v/(1 + v) with v = value - low, which makes sig(f) of exp(f). An end of the range is an asymptote or not.
"""

import math
from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax.traverse_util import flatten_dict

from resjax.models.merges import Gate, Merge
from resjax.models.parameters import is_gate
from resjax.probes.blocks.merge_points import Call
from resjax.probes.gates.gate_points import Around, apply_with_gates
from resjax.probes.subject import Subject

SATURATED = 0.05  # of the range; of a logistic: |logit| > 2.94
BINS = tuple(f"bin_{i}" for i in range(16))
OF_GATE = ("mean", "std", "distance", "saturated", "slope_rms", "slope_max", "stuck", *BINS)
OF_BLOCK = ("grad_ratio", "zeros", "dead_units", "update_ratio")


def saturation(at: Subject) -> pd.DataFrame:
    """A row per gate, in the order of execution; for a merge point without gates one row, with nan for the gate.

    BatchNorm takes the statistics of the images and dropout drops, as in training. A unit is one entry of a sample's
    gate: one channel at one position, or fewer where the gate is shared.

    Columns:
      block: name of the merge point (`resjax.probes.blocks.merge_points`).
      gate: what it is made of, "s", "f" or "m", or the name of a factor: a gate that is a product of logistics has a
        row for each of these instead of its own, for it is near 0 where none of them is; "" if the merge has none.
      mean, std: of its values, over units and samples.
      distance: mean of |p - asymptote|, to the nearer one if there are two: at most .5 then.
      saturated: share of units and samples at which this is less than .05.
      slope_rms: root of the mean square of d gate / d f (or s). Of "m", the output m of a logistic, the slope is the
        derivative by the logistic's input, m (1 - m).
      slope_max: the largest possible slope; infinite where the range is.
      stuck: share of the units that are saturated on all samples.
      bin_0 ... bin_15: shares of p in 16 equal parts of [0, 1].
      grad_ratio: rms of the loss's gradient at f over that at z: the attenuation of what lies behind the gate.
      zeros: share of 0 among what leaves the block, after the activation that may follow the merge.
      dead_units: share of the units of this that are 0 on all samples.
      update_ratio: norm of the optimiser's update over that of the weights, for the block's parameters behind the
        gate (`resjax.models.parameters.is_gate`; the branch if the gate has none of its own). nan without an optimiser.

    The last four are of the block: the same in all its rows.

    Args:
      at: a net whose merge points' modules may say what they are by an attribute `merge`, a
        `resjax.models.merges.Merge`; without it they have no gates.

    Raises:
      ConfigError: the net has no merge points.
    """
    gradients, blocks = jax.device_get(_measured(at.net, at.loss, at.variables, at.x_BxHxWxC, at.targets_BxK, at.key))
    updates = flatten_dict(at.update(gradients), sep="/") if at.update else None
    rows = []
    for name, (gates, block, weights) in blocks.items():
        if updates is not None and weights:
            norm = math.hypot(*(np.linalg.norm(updates[path]) for path in weights))
            block |= {"update_ratio": norm / math.hypot(*weights.values())}
        rows += [{"block": name, "gate": of} | own | block for gate in gates or [{"": {}}] for of, own in gate.items()]
    table = pd.DataFrame(rows, columns=["block", "gate", *OF_GATE, *OF_BLOCK])
    return table.astype(dict.fromkeys([*OF_GATE, *OF_BLOCK], float))


@partial(jax.jit, static_argnames=("net", "loss"))
def _measured(net, loss, variables, x, targets, key):
    """The loss's gradient by the parameters, and of every merge point its gates', block's and weights' numbers."""
    merges: dict[str, Merge | None] = {}

    def forward(params, shifts):
        def edit(call: Call) -> jax.Array:
            at_f, at_z = shifts[call.name] if shifts else (0, 0)
            return call.merge(call.s, call.f + at_f) + at_z

        kwargs = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
        logits, points, declared = apply_with_gates(net, variables | {"params": params}, x, edit, **kwargs)
        merges.update(declared)
        return jnp.mean(loss(logits, targets)), points

    shapes = jax.eval_shape(partial(forward, shifts=None), variables["params"])[1]
    zeros = {name: [jnp.zeros(a.shape, a.dtype) for a in (point.f, point.z)] for name, point in shapes.items()}
    (by_params, by_shifts), points = jax.grad(forward, (0, 1), has_aux=True)(variables["params"], zeros)
    found = OrderedDict()
    for name, point in points.items():
        merge, (at_f, at_z) = merges[name], by_shifts[name]
        found[name] = (
            [_of_gates(gate, point) for gate in (merge.gates if merge else ())],
            {
                "grad_ratio": _rms(at_f) / _rms(at_z),
                "zeros": jnp.mean(point.out == 0),
                "dead_units": jnp.mean(jnp.all(point.out == 0, 0)),
            },
            {path: jnp.linalg.norm(w) for path, w in _behind(variables["params"], name, merge).items()},
        )
    return by_params, found


def _behind(params: dict[str, Any], name: str, merge: Merge | None) -> dict[str, jax.Array]:
    """The parameters, by path, that the gate of a block is computed from."""
    block = tuple(filter(None, name.partition("#")[0].split("/")))
    own = {path: w for path, w in flatten_dict(params).items() if path[: len(block)] == block}
    chosen = [path for path in own if merge and is_gate(merge, path)] or [path for path in own if "branch" in path]
    return {"/".join(path): own[path] for path in chosen}


def _of_gates(gate: Gate, point: Around) -> dict[str, dict[str, jax.Array]]:
    """The columns of a gate by what it is made of, or of each of its factors by their names."""
    own = {name: point.factors[name] for name in gate.factors if name in point.factors}
    return {name: _of_gate(gate, x) for name, x in (own or {gate.of: getattr(point, gate.of)}).items()}


def _of_gate(gate: Gate, x: jax.Array) -> dict[str, jax.Array]:
    """The columns of one gate of `x`, [B, ...]."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    value = gate.value(x)
    place = position(gate, value)
    distance = jnp.stack([jnp.abs(place - float(end == "high")) for end in gate.asymptotes]).min(0)
    saturated = distance < SATURATED
    shares = jnp.histogram(place, len(BINS), (0.0, 1.0))[0] / place.size
    grid = jnp.linspace(gate.low, gate.high, 4001) if gate.of == "m" else jnp.linspace(-20, 20, 4001)
    return dict(zip(BINS, shares, strict=True)) | {
        "mean": jnp.mean(value),
        "std": jnp.std(value),
        "distance": jnp.mean(distance),
        "saturated": jnp.mean(saturated),
        "slope_rms": _rms(_slope(gate, x)),
        "slope_max": jnp.max(jnp.abs(_slope(gate, grid))) if math.isfinite(gate.high) else jnp.inf,
        "stuck": jnp.mean(jnp.all(saturated, 0)),
    }


def position(gate: Gate, value: jax.Array) -> jax.Array:
    """P in [0, 1] of values of the gate (docs of this module)."""
    above = value - gate.low
    # An infinite value is at the upper end, which inf/inf would not say.
    place = above / (gate.high - gate.low) if math.isfinite(gate.high) else 1 - 1 / (1 + above)
    return jnp.clip(place, 0.0, 1.0)


def _slope(gate: Gate, x: jax.Array) -> jax.Array:
    slope = jax.jvp(gate.value, (x,), (jnp.ones_like(x),))[1]
    return slope * x * (1 - x) if gate.of == "m" else slope


def _rms(a: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(a.astype(jnp.promote_types(a.dtype, jnp.float32)))))
