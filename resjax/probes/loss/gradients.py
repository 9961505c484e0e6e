"""What the gradients of the loss are like: their size and noise layer by layer, and which way they take at each merge.

The net is looked at as a function of one image, with its statistics frozen (evaluation mode): in training mode
BatchNorm couples the samples of a batch, and no sample has a gradient of its own. So these gradients lack what a
training step sends back through the batch's statistics, and know no dropout.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax.traverse_util import flatten_dict
from jax import lax

from resjax.probes.blocks.merge_points import apply_with_points
from resjax.probes.loss.noise import gsnr, noise_scale
from resjax.probes.subject import Subject

SAMPLES = 32  # whose gradients are taken one by one: as many backward passes with batches of one


def gradients(subjects: Mapping[int, Subject], samples: int = SAMPLES) -> pd.DataFrame:
    """A row per layer, one for the whole net, and one per merge point, of every replica.

    G is the gradient of the mean loss over the N images, Sigma the covariance of the gradients of single images.

    Columns:
      seed: of the replica.
      kind: "layer" (the kernel of a module), "net" (all parameters, norms and biases too), or "point" (a merge).
      path: of the module or the point; "all" of the net.
    Of layers and nets:
      norm, weight_norm: |G|, and the norm of the parameters.
      variance: tr Sigma, unbiased, from `samples` of the images, spread evenly.
      gsnr: mean of g_j^2 / Sigma_jj over the parameters j (Liu et al. 2020, 2001.07384), both of the `samples` alone,
        with g the mean of their gradients; parameters without variance on them are left out. Noise alone gives about
        1/samples.
      noise_scale: tr Sigma / |G|^2, in images, where |G|^2 is unbiased: tr Sigma / N is taken off (McCandlish et al.
        2018, 1812.06162, appendix A.1). inf if nothing is left of it.
      update_ratio: norm of what the optimiser would now add, over weight_norm; nan without `Subject.update`.
      cosine: between G and that of another replica, mean over the others; nan where there is none, or G is 0.
    Of points:
      power_s, power_f, power_z: mean square, over units and images, of the gradient of an image's own loss at the
        shortcut, the branch and the output, by any way: a gate made of f counts for f.
      shortcut_share: power_s / (power_s + power_f).

    Args:
      subjects: seed -> replica, of one and the same net.
      samples: at most all images.

    Raises:
      ConfigError: the net has no merge points.
    """
    layers, points = {}, []
    for seed, at in subjects.items():
        measured = jax.device_get(_measure(at.net, at.loss, samples, at.variables, at.x_BxHxWxC, at.targets_BxK))
        *moments, powers = measured
        mean, *_ = moments
        names = "mean", "variance", "own_mean", "own_variance"
        trees = {"weights": at.variables["params"]} | dict(zip(names, moments, strict=True))
        if at.update:
            trees["update"] = at.update(mean)
        layers[seed] = _by_layer(trees)
        points += [{"seed": seed, "kind": "point", "path": name} | _point(*power) for name, power in powers.items()]
    rows = []
    for seed, own in layers.items():
        for path, vectors in own.items():
            others = [of[path]["mean"] for other, of in layers.items() if other != seed]
            about = {"seed": seed, "kind": "net" if path == "all" else "layer", "path": path}
            n = len(subjects[seed].x_BxHxWxC)
            rows.append(about | _layer(**vectors, n=n) | {"cosine": _mean_cosine(vectors["mean"], others)})
    return pd.DataFrame(rows + points)


@partial(jax.jit, static_argnames=("net", "loss", "samples"))
def _measure(net, loss, samples, variables, x, targets) -> tuple[Any, Any, Any, Any, OrderedDict[str, list[jax.Array]]]:
    """G, the diagonal of Sigma, the same two of the `samples` alone, and the powers at s, f and z of each merge point.

    The first four are as the parameters are.
    """
    frozen = {name: collection for name, collection in variables.items() if name != "params"}

    def mean_loss(params, shifts, x, targets):
        def edit(call):
            at_s, at_f, at_z = shifts[call.name] if shifts else (0, 0, 0)
            return call.merge(call.s + at_s, call.f + at_f) + at_z

        logits, points = apply_with_points(net, {"params": params, **frozen}, x, edit)
        return jnp.mean(loss(logits, targets)), points

    params, n = variables["params"], len(x)
    points = jax.eval_shape(mean_loss, params, None, x, targets)[1]
    zeros = {name: [jnp.zeros(a.shape, a.dtype) for a in point] for name, point in points.items()}
    (mean, at_points), _ = jax.grad(mean_loss, (0, 1), has_aux=True)(params, zeros, x, targets)
    powers = [(name, [jnp.mean(jnp.square(n * a)) for a in at_points[name]]) for name in points]

    def add(sums, index):  # one by one: batched over samples, a convolution's kernel gradients are slow on a CPU
        own, _ = jax.grad(mean_loss, has_aux=True)(params, None, x[index][None], targets[index][None])
        off = jax.tree.map(jnp.subtract, own, mean)
        return jax.tree.map(jnp.add, sums, (off, jax.tree.map(jnp.square, off))), None

    chosen = np.linspace(0, n - 1, min(samples, n)).round().astype(int)
    m = len(chosen)
    zeros = jax.tree.map(jnp.zeros_like, params)
    (sums, squares), _ = lax.scan(add, (zeros, zeros), jnp.asarray(chosen))

    # A sample differs from a mean that it is part of by (1 - 1/n) of the variance: unbiased for any number of them.
    variance = jax.tree.map(lambda square: square / (m * (1 - 1 / n)), squares)
    own_mean = jax.tree.map(lambda g, total: g + total / m, mean, sums)
    own_variance = jax.tree.map(lambda total, square: (square - jnp.square(total) / m) / max(m - 1, 1), sums, squares)
    return mean, variance, own_mean, own_variance, OrderedDict(powers)


def _by_layer(trees: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Path -> name of the tree -> its leaves there as one vector; "all" has all of them."""
    leaves = {name: flatten_dict(jax.device_get(tree)) for name, tree in trees.items()}
    parts = list(leaves["weights"])
    groups = {"all": parts} | {"/".join(part[:-1]): [part] for part in parts if part[-1] == "kernel"}

    def vector(of, members):
        return np.concatenate([np.ravel(of[part]).astype(np.float64) for part in members])

    return {path: {name: vector(of, members) for name, of in leaves.items()} for path, members in groups.items()}


def _layer(weights, mean, variance, own_mean, own_variance, n: int, update=None) -> dict[str, float]:
    weight_norm = np.linalg.norm(weights)
    return {
        "norm": np.linalg.norm(mean),
        "weight_norm": weight_norm,
        "variance": variance.sum(),
        "gsnr": gsnr(own_mean, own_variance),
        "noise_scale": noise_scale(mean, variance, n),
        "update_ratio": math.nan if update is None else np.linalg.norm(update) / weight_norm,
    }


def _mean_cosine(own: np.ndarray, others: list[np.ndarray]) -> float:
    norms = [np.linalg.norm(own) * np.linalg.norm(other) for other in others]
    cosines = [own @ other / norm for other, norm in zip(others, norms, strict=True) if norm > 0]
    return float(np.mean(cosines)) if cosines else math.nan


def _point(s: float, f: float, z: float) -> dict[str, float]:
    powers = {"power_s": float(s), "power_f": float(f), "power_z": float(z)}
    return powers | {"shortcut_share": float(s / (s + f)) if s + f else math.nan}
