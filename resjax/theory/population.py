"""Signal and gradients at initialisation where blocks read earlier outputs or streams: a population of units.

Maps that a net carries on depend on each other, so that a law of each is not enough. Here N units of a wide net are
drawn. The declared `read`, `combine` and `write` act on them as they are, and a layer of random weights gives
N(bias, g^2) forwards and noise of the power that `mean_field.block` states backwards. The assumptions are those of
`resjax.theory.mean_field`, except that gradients may depend on values. A mean has the error of N draws: .3 % of the
power of a Gaussian.

Danger: the moments of products that stay in a stream (`hc_mul`) are those of a few units after some 20 blocks: powers
of 2^16 units differ by half between seeds after 27 blocks, and by a factor of 4 after 54.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import relu

from resjax.config import ConfigError
from resjax.theory.laws import Law
from resjax.theory.mean_field import branch_constant, normaliser, third_map

UNITS = 1 << 18
_PER_UNIT = 1 << 10  # numbers that a parameter may have for each unit; more are a matrix between units

Map = jax.Array  # [1, N], a sample of N units
Backward = Callable[[Map], Map]


@dataclass(frozen=True)
class UnitSignal:
    """What is predicted for z, the output of a block's merge.

    Attributes:
      z: its law.
      gain: gradient power at the z of the block before over that at this one, both summed over the units of a sample;
        nan of the first block.
    """

    z: Law
    gain: float


class _At(NamedTuple):
    """The place of a block's parameters, as `resjax.models.streams.Place`."""

    index: int
    channels: int
    features: int
    carried: int


def stages(
    merge: Any,
    depths: Sequence[int],
    *,
    norm: str = "bn",
    activation: Callable = relu,
    units: int = UNITS,
    seed: int = 0,
) -> list[UnitSignal]:
    """A net of stages of so many blocks, [sum of depths], after a ReLU stem, as `mean_field.stages`.

    The gradient is that of a random projection of the last z, as in `resjax.probes.blocks.propagation`.

    Args:
      merge: a `resjax.models.merges.Merge` at its init, with a connection.
      depths: blocks of each stage.
      norm: "bn" or "ln", of branch and shortcut.
      activation: inside the branch.
      units: N.
      seed: of the draws.

    Raises:
      ConfigError: another norm, a branch that is not Gaussian, a map m that is neither elementwise nor constant, or a
        connection whose parameters are a matrix between units, unless it is declared `linear`.
    """
    net = _Net(merge, norm, 2.0 if merge.branch == "glu" else branch_constant(norm, activation), units, seed)
    h = relu(net.noise())
    carried, laws, blocks = merge.connection.start(h), [], []
    for i, depth in enumerate(depths):
        for j in range(depth):
            h, carried, z, backward = net.block(len(blocks), h, carried, changes=i > 0 and j == 0)
            laws.append(_law(z))
            blocks.append(backward)
    powers, after = [], None
    for backward in reversed(blocks):
        gradient, after = backward(after)
        powers.append(float(jnp.mean(jnp.square(gradient))))
    powers.reverse()
    gains = [math.nan, *(before / at if at else math.nan for before, at in zip(powers, powers[1:], strict=False))]
    return [UnitSignal(z, gain) for z, gain in zip(laws, gains, strict=True)]


@dataclass
class _Net:
    merge: Any
    norm: str
    branch_constant: float
    units: int
    seed: int

    def __post_init__(self):
        if self.merge.branch == "pure":
            raise ConfigError(f"merge {self.merge.name!r}: the theory does not cover its branch, which is not Gaussian")
        self._draws = np.random.default_rng(self.seed)
        self._declared_read, self._write = jax.jit(self.merge.connection.read), jax.jit(self.merge.connection.write)

    def noise(self) -> Map:
        return jnp.asarray(self._draws.standard_normal((1, self.units), np.float32))

    def layer(self, gain: float) -> Backward:
        """Through random weights backwards: noise of `gain` times the power."""
        return lambda gradient: self.noise() * jnp.sqrt(gain * jnp.mean(jnp.square(gradient)))

    def block(self, index: int, h: Map, carried: tuple, *, changes: bool) -> tuple[Map, tuple, Map, Callable]:
        """The next h and carried, z, and the way back: (gradients there, None at the end) -> that at z, those here.

        `changes` says that shapes do, so that shortcut and carried maps are projected.
        """
        merge = self.merge
        p = self._parameters(_At(index, self.units, self.units, len(carried)))
        x, back_read = self._read(h, carried, p)
        v = self._normaliser(x, carried)
        s, back_s = self._shortcut(x, v, changes)
        f = merge.branch_bias + merge.branch_scale * self.noise()
        more = merge.inits(index) | ({"t": 0.0} if merge.scheduled else {})
        third = third_map(merge, more, _law(s), _law(x), v)

        def merged(s: Map, f: Map, u: Map) -> Map:
            return merge.combine(s, f, **more, **({"m": third.of(s, f, u)} if merge.extra else {}))

        z, back_merge = jax.vjp(merged, s, f, third.mean + third.std * self.noise())
        arriving, back_carried = self._carried(carried, changes)
        handed_on, back_write = jax.vjp(lambda *maps: self._write(*maps, p), arriving, s, f, z)

        def backward(after: tuple | None) -> tuple[Map, tuple]:
            if after is None:
                gradient, past = self.noise(), jax.tree.map(jnp.zeros_like, (arriving, s, f))
            else:
                *past, gradient = back_write(after)
            of_carried, *past = past
            of_s, of_f, of_u = back_merge(gradient)
            of_s, of_f = of_s + past[0], of_f + past[1]
            branch = self.layer(merge.branch_scale**2 * self.branch_constant / v)
            of_h, more = back_read(back_s(of_s) + branch(of_f) + self.layer(third.gain)(of_u))
            return gradient, (of_h, jax.tree.map(jnp.add, more, back_carried(of_carried)))

        return *handed_on, z, backward

    def _parameters(self, at: _At) -> dict[str, jax.Array]:
        connection, key = self.merge.connection, jax.random.fold_in(jax.random.key(self.seed), at.index)
        if connection.linear:
            return {}
        for name, init in connection.params.items():
            if jax.eval_shape(partial(init, place=at), key).size > _PER_UNIT * self.units:
                raise ConfigError(
                    f"merge {self.merge.name!r}: the theory does not cover {name!r} of its connection, a matrix between"
                    " units; a linear layer is declared by linear=True"
                )
        keys = jax.random.split(key, max(1, len(connection.params)))
        return {name: init(k, at) for k, (name, init) in zip(keys, connection.params.items(), strict=False)}

    def _normaliser(self, x: Map, carried: tuple) -> float:
        """As `normaliser`; BatchNorm takes away the channel means of a mixture, which are those of what is mixed."""
        if not self.merge.connection.linear:
            return normaliser(self.norm, _law(x))
        return float(np.mean([normaliser(self.norm, _law(c)) for c in carried]))

    def _read(self, h: Map, carried: tuple, p: dict) -> tuple[Map, Callable]:
        connection = self.merge.connection
        if not connection.linear:
            return jax.vjp(lambda *maps: self._declared_read(*maps, p), h, carried)
        share = self.layer(1 / len(carried))
        x = self.noise() * jnp.sqrt(jnp.mean(jnp.square(jnp.stack(carried))))
        return x, lambda gradient: (jnp.zeros_like(h), tuple(share(gradient) for _ in carried))

    def _shortcut(self, x: Map, v: float, changes: bool) -> tuple[Map, Backward]:
        merge = self.merge
        scale, bias = (merge.branch_scale, merge.shortcut_bias) if merge.shortcut_norm else (1.0, 0.0)
        if changes:
            return bias + scale * self.noise(), self.layer(scale**2 / v)
        if not merge.shortcut_norm:
            return x, lambda gradient: gradient
        a = scale / jnp.std(x)
        return bias + a * (x - jnp.mean(x)), lambda gradient: a * gradient

    def _carried(self, carried: tuple, changes: bool) -> tuple[tuple, Callable]:
        if not changes:
            return carried, lambda gradients: gradients
        if self.merge.connection.per_stage:
            return (), lambda gradients: tuple(jnp.zeros_like(c) for c in carried)
        layers = [self.layer(1 / normaliser(self.norm, _law(c))) for c in carried]
        return tuple(self.noise() for _ in carried), lambda gradients: tuple(
            layer(gradient) for layer, gradient in zip(layers, gradients, strict=True)
        )


def _law(x: Map) -> Law:
    atoms = np.asarray(x, np.float64).ravel()
    return Law(atoms, np.full(atoms.size, 1 / atoms.size))
