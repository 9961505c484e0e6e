"""Connections: what a block reads and writes, where that is more than the output of the block before.

A merge joins two maps, shortcut `s` and branch `f`. A connection decides which earlier outputs the block's input is
made of, and what the net carries on beside the block's output. It is pure functions of arrays plus, declared as data,
parameters and their inits, and belongs to an entry of the registry of merges, which says how `s` and `f` are joined:

    register("x0_mul", lambda s, f: s * f, "r*s*f + c*v0", identity="no", connection=X0)

Per block: `x = read(h, carried, p)` is the input of branch and shortcut, `z = combine(s, f)`, and
`h, carried = write(carried, s, f, z, p)`. The head gets `last(h, carried, p)`. All maps are [B, H, W, C] or [B, C].

At a change of shape every carried map passes a projection of its own, of the kind that the shortcut has there
(config.model.shortcut), with a norm of its own, before `write`; a connection that is `per_stage` carries nothing over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

EPS = 1e-6  # under the root of a mean square
STREAMS = 4  # of hyper-connections: n
SINKHORN = 20  # rounds: columns of e^H then sum to 1, and rows within 1e-5 where logits differ by a unit or two
DYNAMIC = 0.01  # init of the factor of what depends on the input (Hyper-Connections, section 2.3; mHC, section 4.1)


class Place(NamedTuple):
    """Where parameters are needed.

    Attributes:
      index: of the block, from 0; the head's is the number of blocks.
      channels: of the block's input, which `read` sees.
      features: of its output, which `write` sees.
      carried: how many maps are.
    """

    index: int
    channels: int
    features: int
    carried: int


Maps = tuple[jax.Array, ...]
Parameters = Mapping[str, jax.Array]
Init = Callable[[jax.Array, Place], jax.Array]  # (random key, place) -> initial value


@dataclass(frozen=True)
class Connection:
    """One connection.

    Attributes:
      read: (h, carried, p) -> the block's input, of the shape of h, the output of the block before.
      write: (carried, s, f, z, p) -> the block's output and what is carried on.
      start: the stem's output -> what is carried from it.
      last: (h, carried, p) -> the head's input.
      params: name -> init. Every block has parameters of its own.
      last_params: of `last`.
      per_stage: whether a stage's first block begins a new list.
      linear: whether `read` is a linear layer of all that is carried, of weights with the variance 1/fan_in.
    """

    read: Callable[[jax.Array, Maps, Parameters], jax.Array]
    write: Callable[[Maps, jax.Array, jax.Array, jax.Array, Parameters], tuple[jax.Array, Maps]]
    start: Callable[[jax.Array], Maps]
    last: Callable[[jax.Array, Maps, Parameters], jax.Array] = lambda h, carried, p: h
    params: Mapping[str, Init] = field(default_factory=dict, hash=False)
    last_params: Mapping[str, Init] = field(default_factory=dict, hash=False)
    per_stage: bool = False
    linear: bool = False


class Declared(nn.Module):
    """The parameters of a connection at one place, in the type of the computation."""

    inits: Mapping[str, Init]
    place: Place
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> Parameters:
        """Name -> value."""
        return {name: self.param(name, init, self.place).astype(self.dtype) for name, init in self.inits.items()}


def constant(value: float) -> Init:
    """A scalar."""
    return lambda key, place: jnp.full((), value, jnp.float32)


def _append(carried: Maps, s: jax.Array, f: jax.Array, z: jax.Array, p: Parameters) -> tuple[jax.Array, Maps]:
    return z, (*carried, z)


def rms_normalised(x: jax.Array) -> jax.Array:
    """X over its root mean square over channels."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + EPS)


# --- The stem's output in every block -------------------------------------------------------------------------------
X0 = Connection(  # modded-nanogpt: r*s + f + c*v0, written so that r = 1 and c = 0 give z bit for bit
    read=lambda h, carried, p: h,
    write=lambda carried, s, f, z, p: (z + (p["r"] - 1) * s + p["c"] * carried[0], carried),
    start=lambda v0: (v0,),
    params={"r": constant(1.0), "c": constant(0.0)},
)


# --- All earlier outputs --------------------------------------------------------------------------------------------
def attention(carried: Maps, query_C: jax.Array) -> jax.Array:
    """Weights [i, B, ..., 1] of the earlier outputs: softmax over i of w . rms(v_i), at each position."""
    scores = jnp.stack([rms_normalised(v) @ query_C for v in carried])
    return jax.nn.softmax(scores, 0)[..., None]


def _attend(h: jax.Array, carried: Maps, p: Parameters) -> jax.Array:
    return jnp.sum(attention(carried, p["query"]) * jnp.stack(carried), 0)


def _zero_query(key: jax.Array, place: Place) -> jax.Array:
    return jnp.zeros(place.channels)


# Attention Residuals (2603.15031): a learned query per block, and one for the head; 0 gives the mean.
ATTENTION = Connection(
    _attend, _append, lambda v0: (v0,), _attend, {"query": _zero_query}, {"query": _zero_query}
)  # fmt: skip


def _mixed(h: jax.Array, carried: Maps, p: Parameters) -> jax.Array:
    return jnp.concatenate(carried, -1) @ p["kernel"]


def _mixing(key: jax.Array, place: Place) -> jax.Array:
    """[carried C, C], variance 1/fan_in: it is linear, so that power is kept without the 2 of a ReLU."""
    fan_in = place.carried * place.channels
    return jax.random.normal(key, (fan_in, place.channels)) / jnp.sqrt(fan_in)


# Dense (Huang et al. 2017, 1608.06993): a 1x1 convolution of all outputs of the stage.
DENSE = Connection(
    _mixed, _append, lambda v0: (v0,), _mixed, {"kernel": _mixing}, {"kernel": _mixing}, per_stage=True,
    linear=True,
)  # fmt: skip


# --- Two earlier outputs --------------------------------------------------------------------------------------------
def _layer_normalised(x: jax.Array) -> jax.Array:
    """Over all units of a sample, without scale and bias."""
    return jax.nn.standardize(x, axis=tuple(range(1, x.ndim)), epsilon=EPS)


# PolyNeXt (2605.20839): norm(p0*h_{l-2} + p1*h_{l-1}), both of them carried.
TWO_CELLS = Connection(
    read=lambda h, carried, p: _layer_normalised(p["p0"] * carried[0] + p["p1"] * carried[1]),
    write=lambda carried, s, f, z, p: (z, (carried[1], z)),
    start=lambda v0: (v0, v0),
    params={"p0": constant(0.5), "p1": constant(0.5)},
)


# --- Streams --------------------------------------------------------------------------------------------------------
def _dynamic(carried: Maps, factor: jax.Array, kernel: jax.Array) -> jax.Array:
    """[n, B, ..., m]: factor * tanh(rms(X_i) W), what each stream asks for at each position; 0 at init."""
    return factor * jnp.tanh(rms_normalised(jnp.stack(carried)) @ kernel)


def _static(weights: jax.Array, carried: Maps) -> jax.Array:
    """[n, 1, ..., m] from [n, m]."""
    return weights.reshape(len(weights), *(1,) * (carried[0].ndim - 1), -1)


def hc_mixing(carried: Maps, p: Parameters) -> jax.Array:
    """[n, B, ..., n]: entry (i, j) is the weight of stream i in the next stream j."""
    return _static(p["res"], carried) + _dynamic(carried, p["factor_res"], p["kernel_res"])


def _hc_read(h: jax.Array, carried: Maps, p: Parameters) -> jax.Array:
    weights = _static(p["pre"][:, None], carried) + _dynamic(carried, p["factor_pre"], p["kernel_pre"])
    return jnp.sum(weights * jnp.stack(carried), 0)


def _hc_write(carried: Maps, s: jax.Array, f: jax.Array, z: jax.Array, p: Parameters) -> tuple[jax.Array, Maps]:
    post = _static(p["post"][:, None], carried) + _dynamic(carried, p["factor_post"], p["kernel_post"])
    return _mixed_streams(carried, hc_mixing(carried, p), post, z)


def _mixed_streams(carried: Maps, mixing: jax.Array, post: jax.Array, z: jax.Array) -> tuple[jax.Array, Maps]:
    """X_j <- sum_i mixing_ij X_i + post_j z."""
    streams = jnp.stack(carried)
    after = [jnp.sum(mixing[..., j, None] * streams, 0) + post[j] * z for j in range(len(carried))]
    return z, tuple(after)


def _sum(h: jax.Array, carried: Maps, p: Parameters) -> jax.Array:
    return sum(carried[1:], carried[0])


def copies(n: int) -> Callable[[jax.Array], Maps]:
    """N streams that are the stem's output."""
    return lambda v0: (v0,) * n


def hyper_connections(n: int) -> Connection:
    """Hyper-Connections with static and dynamic parts (2409.19606, equations 1-13).

    For n = 1 it is at init the plain sum, up to the weights of projections where shapes change.

    `combine` gives what the block adds to the streams: f, or a product s*f of what it read.
    """

    def zeros(size: Callable[[Place], int], m: int) -> Init:
        return lambda key, place: jnp.zeros((size(place), m))

    params = {
        "pre": lambda key, place: jnp.eye(n)[place.index % n],
        "res": lambda key, place: jnp.eye(n),
        "post": lambda key, place: jnp.ones(n),
        "kernel_pre": zeros(lambda place: place.channels, 1),
        "kernel_res": zeros(lambda place: place.features, n),
        "kernel_post": zeros(lambda place: place.features, 1),
    }
    params |= {f"factor_{name}": constant(DYNAMIC) for name in ("pre", "res", "post")}
    return Connection(_hc_read, _hc_write, copies(n), _sum, params)


def doubly_stochastic(logits: jax.Array) -> jax.Array:
    """Sinkhorn's algorithm on e^logits [n, B, ..., n]: rows (last axis) and columns (first) sum to 1."""
    log = logits
    for _ in range(SINKHORN):
        log = log - jax.nn.logsumexp(log, -1, keepdims=True)
        log = log - jax.nn.logsumexp(log, 0, keepdims=True)
    return jnp.exp(log)


def _asked(carried: Maps, p: Parameters, name: str) -> jax.Array:
    """[B, ..., m]: bias + factor * (rms(vec X) W), from all streams together."""
    dynamic = p[f"factor_{name}"] * (rms_normalised(jnp.concatenate(carried, -1)) @ p[f"kernel_{name}"])
    return p[name].reshape((1,) * (dynamic.ndim - 1) + (-1,)) + dynamic


def mhc_mixing(carried: Maps, p: Parameters) -> jax.Array:
    """[n, B, ..., n], doubly stochastic: as `hc_mixing`."""
    n, asked = len(carried), _asked(carried, p, "res")
    return doubly_stochastic(jnp.moveaxis(asked.reshape(*asked.shape[:-1], n, n), -2, 0))


def _by_stream(weights: jax.Array) -> jax.Array:
    """[n, B, ..., 1] from [B, ..., n]."""
    return jnp.moveaxis(weights, -1, 0)[..., None]


def _mhc_read(h: jax.Array, carried: Maps, p: Parameters) -> jax.Array:
    pre = jax.nn.sigmoid(_asked(carried, p, "pre"))
    return jnp.sum(_by_stream(pre) * jnp.stack(carried), 0)


def _mhc_write(carried: Maps, s: jax.Array, f: jax.Array, z: jax.Array, p: Parameters) -> tuple[jax.Array, Maps]:
    post = 2 * jax.nn.sigmoid(_asked(carried, p, "post"))
    return _mixed_streams(carried, mhc_mixing(carried, p), _by_stream(post), z)


def manifold_hyper_connections(n: int) -> Connection:
    """MHC (2512.24880, equations 7-9): positive reads and writes, and a doubly stochastic mixing matrix.

    Init here: what is read is the mean of the streams, 1 is the weight of what is written, and the mixing is within
    .003 of the identity.
    """

    def zeros(size: Callable[[Place], int], m: int) -> Init:
        return lambda key, place: jnp.zeros((n * size(place), m))

    params = {
        "pre": lambda key, place: jnp.full(n, -jnp.log(n - 1.0)),  # sigmoid gives 1/n
        "res": lambda key, place: 7.0 * jnp.eye(n),
        "post": lambda key, place: jnp.zeros(n),
        "kernel_pre": zeros(lambda place: place.channels, n),
        "kernel_res": zeros(lambda place: place.features, n * n),
        "kernel_post": zeros(lambda place: place.features, n),
    }
    params |= {f"factor_{name}": constant(DYNAMIC) for name in ("pre", "res", "post")}
    return Connection(_mhc_read, _mhc_write, copies(n), _sum, params)


HC, MHC = hyper_connections(STREAMS), manifold_hyper_connections(STREAMS)
