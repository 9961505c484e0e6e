"""What the kernel of a block of samples is the product of: Jacobians, and for linear layers much less.

The weights of a linear layer y = W x have the Jacobian delta x', where delta = dlogit/dy. Their part of the kernel is
thus (x_i . x_j) (delta_ic . delta_jd), summed over pairs of positions where the layer is a convolution: fewer numbers
to hold, and far fewer products for dense layers and small maps (the structure of Novak et al. 2022, 2206.08720).
Layers are found in functions that call Flax modules, as resjax's nets do; any other function has its plain Jacobian.
"""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from resjax.models.conv import patches
from resjax.models.layers import Linear

SMALL = 4096  # parameters: arrays below this size are multiplied together
SUMMATION = 8  # products of a matrix multiplication that cost as much as one term of a sum in memory


class Factors(NamedTuple):
    """Of B samples with R rows each (logits, or 1 for the shortcuts).

    Attributes:
      jacobians: matrices [B * R, entries], whose columns together are the parameters outside `layers`.
      layers: per linear layer its inputs [B, positions, in] and deltas [B, R, positions, out].
    """

    jacobians: list[jax.Array]
    layers: list[tuple[jax.Array, jax.Array]]


class Layer(NamedTuple):
    """A linear layer: the place of its weights among the leaves of params, its path, its output's shape and dtype."""

    leaf: int
    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: jnp.dtype


def linear_layers(f: Callable, params: Any, x: jax.Array) -> list[Layer]:
    """The layers whose weights reach them unchanged and once, and whose structure saves work.

    `x` is one sample with its batch axis, or its shape and dtype.
    """
    found, calls = [], Counter()

    def visit(params, x):
        leaves = jax.tree.leaves(params)

        def note(call, args, kwargs, context):
            y = call(*args, **kwargs)
            module = context.module
            if type(module) not in (Linear, nn.Dense) or context.method_name != "__call__":  # not what derives of them
                return y
            calls[module.path] += 1
            weights = module.get_variable("params", "kernel")
            places = [i for i, leaf in enumerate(leaves) if leaf is weights]
            found.extend(Layer(i, module.path, y.shape, y.dtype) for i in places)
            return jnp.zeros_like(y) if places else y  # cuts the weights off: whatever else uses them shows

        with nn.intercept_methods(note):
            return f(params, x)

    flat, treedef = jax.tree.flatten(params)
    jaxpr = jax.make_jaxpr(lambda *leaves: visit(jax.tree.unflatten(treedef, leaves), x))(*flat).jaxpr
    elsewhere = _used(jaxpr)
    uses = Counter(layer.leaf for layer in found)
    return [
        layer
        for layer in found
        if calls[layer.path] == uses[layer.leaf] == 1
        and jaxpr.invars[layer.leaf] not in elsewhere
        and _pays(layer.shape, flat[layer.leaf].size)
    ]


def _used(jaxpr) -> set:
    """The variables that the outputs depend on, as far as the outermost equations show."""
    used = {v for v in jaxpr.outvars if not hasattr(v, "val")}  # a literal has one
    for equation in reversed(jaxpr.eqns):
        if any(v in used for v in equation.outvars):
            used.update(v for v in equation.invars if not hasattr(v, "val"))
    return used


def _pays(shape: tuple[int, ...], weights: int) -> bool:
    """Whether products over pairs of positions are fewer than over the weights."""
    positions, out = math.prod(shape[1:-1]), shape[-1]
    return positions**2 * (out + SUMMATION * (positions > 1)) < weights


def _inputs(module: nn.Module, x: jax.Array | None = None, inputs: jax.Array | None = None) -> jax.Array:
    """[positions, in]: what the weights are multiplied with, for one sample. `nn.Dense` calls it inputs."""
    x = inputs if x is None else x
    if isinstance(module, Linear) and x.ndim == 4:
        x = patches(x, module.stride) if module.kernel == 3 else x[:, :: module.stride, :: module.stride]
    return x.reshape(-1, x.shape[-1])


@partial(jax.jit, static_argnames="mode")
def factors(f: Partial, params: Any, x_Bx: jax.Array, mode: str) -> Factors:
    """The factors of a block of samples [B, ...]; `mode` as in `resjax.ntk.empirical`."""
    layers = linear_layers(f, params, x_Bx[:1])
    by_path = {layer.path: layer for layer in layers}
    leaves, treedef = jax.tree.flatten(params)
    others = [i for i in range(len(leaves)) if i not in {layer.leaf for layer in layers}]

    def outputs(own, shifts, x):
        """Logits [C] as a function of the other parameters and of what is added to the layers' outputs."""
        inputs = {}

        def shift(call, args, kwargs, context):
            y, layer = call(*args, **kwargs), by_path.get(context.module.path)
            if layer is None or context.method_name != "__call__":
                return y
            inputs[layer.leaf] = _inputs(context.module, *args, **kwargs)
            return y + shifts[layer.leaf]

        mixed = [own.get(i, leaf) for i, leaf in enumerate(leaves)]
        with nn.intercept_methods(shift):
            logits_C = f(jax.tree.unflatten(treedef, mixed), x[None])[0]
        if mode == "pseudo":
            logits_C = jnp.sum(logits_C, keepdims=True) / math.sqrt(logits_C.size)
        return logits_C, inputs

    own = {i: leaves[i] for i in others}
    shifts = {layer.leaf: jnp.zeros(layer.shape, layer.dtype) for layer in layers}
    jacobian = jax.vmap(jax.jacrev(outputs, argnums=(0, 1), has_aux=True), (None, None, 0))
    (of_own, deltas), inputs = jacobian(own, shifts, x_Bx)
    matrices = [leaf.reshape(*leaf.shape[:2], -1) for leaf in of_own.values()]  # [B, C, size]
    large, small = ([m for m in matrices if (m.shape[2] > SMALL) == is_large] for is_large in (True, False))
    joined = large + ([jnp.concatenate(small, 2)] if small else [])
    pairs = [(inputs[i], d.reshape(*d.shape[:2], -1, d.shape[-1])) for i, d in deltas.items()]  # d [B, C, p, out]
    if mode == "trace":  # the sum over logits joins that over entries
        C = jax.eval_shape(f, params, x_Bx[:1]).shape[1]
        joined = [m.reshape(m.shape[0], 1, -1) / math.sqrt(C) for m in joined]
        pairs = [(x, d.transpose(0, 2, 1, 3).reshape(d.shape[0], 1, d.shape[2], -1) / math.sqrt(C)) for x, d in pairs]
    return Factors([m.reshape(-1, m.shape[2]) for m in joined], pairs)


@jax.jit
def product(rows: Factors, columns: Factors) -> jax.Array:
    """The kernel [B1 * R, B2 * R] of two blocks."""
    parts = [a @ b.T for a, b in zip(rows.jacobians, columns.jacobians, strict=True)]
    layers = [_of_layer(*a, *b) for a, b in zip(rows.layers, columns.layers, strict=True)]
    if layers:
        R, n1, _, n2 = layers[0].shape
        parts.append(sum(layers[1:], layers[0]).transpose(1, 0, 3, 2).reshape(n1 * R, n2 * R))
    return sum(parts[1:], parts[0])


def _of_layer(x1: jax.Array, d1: jax.Array, x2: jax.Array, d2: jax.Array) -> jax.Array:
    """[R, B1, R, B2] of one layer's factors. Samples come last, for long loops over contiguous memory."""
    (n1, R, p, out), n2 = d1.shape, len(x2)
    deltas = d1.transpose(2, 1, 0, 3).reshape(-1, out) @ d2.transpose(2, 1, 0, 3).reshape(-1, out).T
    inputs = x1.swapaxes(0, 1).reshape(p * n1, -1) @ x2.swapaxes(0, 1).reshape(p * n2, -1).T
    deltas, inputs = deltas.reshape(p, R, n1, p, R, n2), inputs.reshape(p, 1, n1, p, 1, n2)
    return sum(inputs[a, :, :, b] * deltas[a, :, :, b] for a in range(p) for b in range(p))
