"""Small nets and kernels for the tests of the predictors. Module-level functions: their compilations are shared."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from resjax.predictors.evaluate import Evidence


def _linear(params, x):
    return x @ params["kernel"]


def _two_layers(params, x):
    return jnp.tanh(x @ params["one"]["kernel"]) @ params["two"]["kernel"] + params["two"]["bias"][None]


def conv_maps(params, x):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=dims)


def conv_head(params, maps):
    pooled = jax.nn.relu(maps).mean((1, 2))
    return pooled @ params["head"]["kernel"] + params["head"]["bias"][None]


def _conv(params, x):
    return conv_head(params, conv_maps(params, x))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


LINEAR, TWO_LAYERS, CONV = (Partial(f) for f in (_linear, _two_layers, _conv))
TWO_LAYERS_PARAMS = {"one": {"kernel": normal(1, 3, 4)}, "two": {"bias": normal(2, 3), "kernel": normal(3, 4, 3)}}
CONV_PARAMS = {"conv": {"kernel": normal(4, 3, 3, 1, 2)}, "head": {"bias": normal(5, 3), "kernel": normal(6, 2, 3)}}


def labels_of(M, C, seed=0):
    """Every class occurs among the first C."""
    return np.concatenate([np.arange(C), np.random.default_rng(seed).integers(0, C, M - C)])


def four_axes(matrix, C):
    """[M C, M C] -> [M, M, C, C]."""
    M = len(matrix) // C
    return np.asarray(matrix, float).reshape(M, C, M, C).transpose(0, 2, 1, 3)


def kernel_case(matrix, labels, n, C, **more):
    """Evidence of a kernel alone: the net beside it is linear, and means nothing."""
    params = {"kernel": jnp.zeros((2, C))}
    x = jnp.asarray(normal(0, len(labels), 2))
    return Evidence(LINEAR, params, params, x, np.asarray(labels), n, four_axes(matrix, C), 1.0, **more)


def net_case(apply_fn, params, x, labels, n=None, initial=None, kernel=None):
    """Evidence of a net alone: the kernel beside it is the identity unless given."""
    C = apply_fn(params, x[:1]).shape[1]
    kernel = four_axes(np.eye(len(x) * C), C) if kernel is None else kernel
    return Evidence(apply_fn, params, initial or params, jnp.asarray(x), labels, n or len(x), kernel, 1.0)


def random_psd(seed, size, rank=None):
    """With a diagonal that is not constant."""
    root = np.random.default_rng(seed).normal(size=(size, rank or 2 * size))
    return root @ root.T / size
