"""Residual networks of feature maps or vectors, whose blocks join their two paths by a merge.

Parameters are named transformer (where there is one), stem, stage{i}_block{j}/{branch, shortcut, merge}, head. A norm
called `out_norm` feeds the merge. A merge with a connection has its parameters in stage{i}_block{j}/connection and
last_connection, and projections of what it carries in stage{i}_block{j}/carry{k}.
"""

from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from resjax.models.gates import MAPS, spatial_axes
from resjax.models.layers import ACTIVATIONS
from resjax.models.merges import Merge
from resjax.models.streams import Connection, Declared, Maps, Place
from resjax.models.transformer import SpatialTransformer

LOG_EPS = 0.1  # of "pure": log(|y| + eps) is bounded below, as the derivative is


class Branch(nn.Module):
    """The branch of `h`, [B, H, W, C] -> [B, H/stride, W/stride, features], normalised at its end.

    `kind` is "conv": `norm(W2 act(norm(W1 h)))`; "glu": `norm(W3 (norm(W1 h) * norm(W2 h)))`, without an activation
    (PolyNeXt, 2605.20839); "pure": `norm(sign(W2 y) exp(W2 log(|y| + eps)))` of the same y = act(norm(W1 h)), with
    one W2: a product of powers (PURe, 2505.04397).
    """

    kind: str
    features: int
    stride: int
    activation: str
    dropout: float
    scale: float
    bias: float
    linear: partial
    norm: partial

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        y = self.norm(name="norm1")(self.linear(self.features, 3, self.stride, name="linear1")(h), train)
        if self.kind == "glu":
            gate = self.linear(self.features, 3, self.stride, name="linear3")(h)
            y = y * self.norm(name="norm3")(gate, train)
        else:
            y = ACTIVATIONS[self.activation](y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        second = self.linear(self.features, 3, 1, name="linear2")
        f = jnp.sign(second(y)) * jnp.exp(second(jnp.log(jnp.abs(y) + LOG_EPS))) if self.kind == "pure" else second(y)
        return self.norm(scale=self.scale, bias=self.bias, name="out_norm")(f, train)


class Shortcut(nn.Module):
    """The identity where shapes agree, else zero-padded subsampling (A) or a normalised 1x1 convolution (B).

    `norm_inits` are the scale and bias of the norm that the merge asks for, or None.
    """

    features: int
    stride: int
    option: str
    norm_inits: tuple[float, float] | None
    linear: partial
    norm: partial

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        inits = self.norm_inits
        if h.shape[-1] != self.features or self.stride != 1:
            if self.option == "A":
                h = h[:, :: self.stride, :: self.stride] if spatial_axes(h) else h
                h = jnp.pad(h, [(0, 0)] * (h.ndim - 1) + [(0, self.features - h.shape[-1])])
            else:
                h = self.linear(self.features, 1, self.stride, name="linear")(h)
                inits = inits or (1.0, 0.0)
        if inits is None:
            return h
        return self.norm(scale=inits[0], bias=inits[1], name="out_norm")(h, train)


class MergePoint(nn.Module):
    """`z = merge.combine(s, f, ...)` with the merge's learned scalars, third map and schedule."""

    merge: Merge
    stride: int
    gate_bias: float
    granularity: str
    norm: partial
    dtype: jnp.dtype
    index: int = 0

    @nn.compact
    def __call__(self, h: jax.Array, s: jax.Array, f: jax.Array, train: bool) -> jax.Array:
        more = {
            name: self.param(name, nn.initializers.constant(value), ()).astype(self.dtype)
            for name, value in self.merge.inits(self.index).items()
        }
        if self.merge.extra:
            module = MAPS[self.merge.extra]
            third = module(self.norm, self.dtype, self.gate_bias, self.granularity, self.stride, name=self.merge.extra)
            more["m"] = third(h, s, f, train)
        if self.merge.scheduled:  # not trained: the training step sets it
            more["t"] = self.variable("schedule", "t", jnp.zeros, ()).value.astype(self.dtype)
        return self.merge.combine(s, f, **more)


class Block(nn.Module):
    """Shortcut and branch of `h`, merged: [B, H, W, C] -> [B, H/stride, W/stride, features].

    With a connection the block also takes, and returns beside its output, what is carried.

    Attributes:
      index: of the block in the net, from 0.
      scale: init g of the norms that feed the merge.
      gate_bias: init of the bias of a gate computed from the block's input.
      The others are the words of config.model.
    """

    features: int
    stride: int
    merge: Merge
    scale: float
    gate_bias: float
    granularity: str
    shortcut: str
    activation: str
    post_activation: str
    dropout: float
    linear: partial
    norm: partial
    dtype: jnp.dtype
    index: int = 0

    @nn.compact
    def __call__(self, h: jax.Array, train: bool, carried: Maps = ()) -> jax.Array | tuple[jax.Array, Maps]:
        merge, layers = self.merge, {"linear": self.linear, "norm": self.norm}
        branch = Branch(
            merge.branch,
            self.features,
            self.stride,
            self.activation,
            self.dropout,
            self.scale,
            merge.branch_bias,
            **layers,
            name="branch",
        )
        norm_inits = (self.scale, merge.shortcut_bias) if merge.shortcut_norm else None
        shortcut = partial(Shortcut, self.features, self.stride, self.shortcut, **layers)
        point = MergePoint(
            merge, self.stride, self.gate_bias, self.granularity, self.norm, self.dtype, self.index, name="merge"
        )
        connection, p = merge.connection, {}
        if connection:
            place = Place(self.index, h.shape[-1], self.features, len(carried))
            p = Declared(connection.params, place, self.dtype, name="connection")()
            h = connection.read(h, carried, p)
        f, s = branch(h, train), shortcut(norm_inits=norm_inits, name="shortcut")(h, train)
        z = ACTIVATIONS[self.post_activation](point(h, s, f, train))
        if not connection:
            return z
        if z.shape != h.shape:
            new = [] if connection.per_stage else enumerate(carried)
            carried = tuple(shortcut(norm_inits=None, name=f"carry{i}")(v, train) for i, v in new)
        return connection.write(carried, s, f, z, p)


class ResNet(nn.Module):
    """A stem, stages of residual blocks, and a linear head: images [B, H, W, C] -> logits [B, K], float32 or wider.

    Attributes:
      stages: (number of blocks, features, stride of the first block) of each stage.
      num_classes: K.
      block: `Block` with all but features, stride and index filled in.
      other: the same of the blocks that don't have the merge.
      merge_blocks: how many have it, spread evenly; 0: all.
      connection: of the merge, or None.
      vectors: flatten the input, and use dense layers throughout.
      front: "stn": a spatial transformer of the images comes before all else; "none": nothing does.
    """

    stages: tuple[tuple[int, int, int], ...]
    num_classes: int
    block: partial
    other: partial
    merge_blocks: int
    connection: Connection | None
    linear: partial
    norm: partial
    activation: str
    head: str
    vectors: bool
    front: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.front == "stn":
            x = SpatialTransformer(self.dtype, name="transformer")(x)
        h = x.reshape(x.shape[0], -1) if self.vectors else x
        h = self.linear(self.stages[0][1], name="stem")(h)
        h = ACTIVATIONS[self.activation](self.norm(name="stem_norm")(h, train))
        kinds, connection = enumerate(self._kinds()), self.connection
        carried = connection.start(h) if connection else ()
        for i, (blocks, features, stride) in enumerate(self.stages, 1):
            for j in range(1, blocks + 1):
                index, block = next(kinds)
                block = block(features, stride if j == 1 else 1, index=index, name=f"stage{i}_block{j}")
                h, carried = block(h, train, carried) if connection else (block(h, train), ())
        if connection:
            place = Place(index + 1, h.shape[-1], h.shape[-1], len(carried))
            h = connection.last(
                h, carried, Declared(connection.last_params, place, self.dtype, name="last_connection")()
            )
        h = jnp.mean(h, spatial_axes(h)) if self.head == "gap" else h.reshape(h.shape[0], -1)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(h).astype(
            jnp.promote_types(self.dtype, jnp.float32)
        )

    def _kinds(self) -> Iterator[partial]:
        """`block` or `other`, block by block: every (depth / merge_blocks)-th has the merge, the last one always."""
        depth = sum(blocks for blocks, _, _ in self.stages)
        count = self.merge_blocks or depth
        return (self.block if (k + 1) * count // depth > k * count // depth else self.other for k in range(depth))
