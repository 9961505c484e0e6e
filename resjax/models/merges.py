"""The merges: how a residual block joins its shortcut `s` and its branch output `f`. The registry of the project.

A merge is a function of two arrays plus, declared as data, the norms and inits around it, so that the net, the
theory at initialisation and the tests share one definition. To add one, call `register` (here, or in your config file):

    register("mul_half", lambda s, f: s * (0.5 + f), "s*(1/2 + f)", identity="affine")

Notation: `bn(x)` is the norm of the branch (BatchNorm unless config.model.norm says otherwise) with scale g and bias
b; `bn1` has b = 1 at init; `sig` is the logistic function. "F = 0" is a branch whose last layer gives zero, so that
f equals its norm's bias.

Danger: with a ReLU after the merge, s >= 0 and relu(s*f) halves the live units in every block, and zero is absorbing
(0*f = 0 with gradient 0). Hence post_activation="none" and shortcut="B" are the defaults.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import relu, sigmoid

from resjax.models.streams import ATTENTION, DENSE, HC, MHC, TWO_CELLS, X0, Connection


@dataclass(frozen=True)
class Gate:
    """A factor of a merge that opens and closes.

    Attributes:
      of: the array that it is made of: "s", "f", or "m", which is the output of a logistic.
      value: elementwise function of that array.
      low, high: between which its values lie.
      asymptotes: the ends that it nears but does not reach, and where it stops to learn.
      factors: names of the logistics whose product `m` is, if it is one; the module that computes it sows them. Such
        a gate is near 0 where none of them is near an asymptote: judge each.
    """

    of: Literal["s", "f", "m"]
    value: Callable[[jax.Array], jax.Array]
    low: float = 0.0
    high: float = 1.0
    asymptotes: tuple[Literal["low", "high"], ...] = ("low", "high")
    factors: tuple[str, ...] = ()


Identity = Literal["exact", "affine", "near", "no"]


@dataclass(frozen=True)
class Merge:
    """One merge, `z = combine(s, f, **more)`; all arrays are [B, ..., C].

    Attributes:
      name: the config word.
      combine: elementwise function of `s` and `f`, and by keyword of every name in `params`, of `m` if `extra` is set,
        and of `t` if `scheduled`.
      formula: the same in the notation of this module's docstring.
      identity: what F = 0 gives at init: "exact" (z is s, bit for bit), "affine" (an affine map of s or of its norm,
        such as s/2), "near" (s up to a small term), or "no".
      branch_scale, branch_bias: init of the branch's last norm.
      shortcut_norm: whether `s` is normalised; always true of a 1x1-convolution shortcut.
      shortcut_bias: init of that norm's bias; its scale is the branch's.
      params: learned scalars and their inits: numbers, or functions of the block's index from 0.
      extra: name of the module (`resjax.models.gates.MAPS`) that computes the third map `m`.
      extra_bias: init of that module's bias, where it has one.
      scheduled: whether combine takes `t`, which goes from 0 to 1 over the first half of training.
      gates: of the merge.
      core: whether the merge belongs to the core comparison.
      recent: whether it belongs to the comparison of merges over depth and streams.
      branch: kind of the branch, of `resjax.models.resnet.Branch`.
      connection: what the block reads and writes beside the output of the block before; None: nothing.
    """

    name: str
    combine: Callable[..., jax.Array]
    formula: str
    identity: Identity
    branch_scale: float = 1.0
    branch_bias: float = 0.0
    shortcut_norm: bool = False
    shortcut_bias: float = 0.0
    params: Mapping[str, float | Callable[[int], float]] = field(
        default_factory=dict, hash=False
    )  # a net that has a Merge needs its hash
    extra: str = ""
    extra_bias: float = 0.0
    scheduled: bool = False
    gates: tuple[Gate, ...] = ()
    core: bool = False
    recent: bool = False
    branch: Literal["conv", "glu", "pure"] = "conv"
    connection: Connection | None = None

    def inits(self, index: int = 0) -> dict[str, float]:
        """The inits of `params` in the block with this index."""
        return {name: init(index) if callable(init) else init for name, init in self.params.items()}


MERGES: dict[str, Merge] = {}


def register(name: str, combine: Callable[..., jax.Array], formula: str, **declared) -> Merge:
    """Adds a merge under the config word `name`; `declared` are the other attributes of `Merge`.

    Raises:
      ValueError: the name is taken, `identity` is none of its words, or `combine` takes other arguments than declared.
    """
    if name in MERGES:
        raise ValueError(f"merge {name!r} is registered already")
    if (said := declared.get("identity")) not in get_args(Identity):
        raise ValueError(f"merge {name!r}: identity={said!r}; choose from {', '.join(get_args(Identity))}")
    merge = Merge(name, combine, formula, **declared)
    more = [*merge.params, *["m"] * bool(merge.extra), *["t"] * merge.scheduled]
    try:
        inspect.signature(combine).bind(None, None, **dict.fromkeys(more))
    except TypeError as error:
        given = ", ".join(["s", "f", *more])
        raise ValueError(f"merge {name!r}: combine gets {given} by what is declared: {error}") from None
    MERGES[name] = merge
    return merge


# --- Sums -------------------------------------------------------------------------------------------------------
register("add", lambda s, f: s + f, "s + f", identity="exact", core=True)
register("add_bn", lambda s, f: s + f, "bn(s) + bn(f)", identity="affine", shortcut_norm=True)
# ReZero (Bachlechner et al. 2020), SkipInit (De & Smith 2020)
register("add_zero", lambda s, f, alpha: s + alpha * f, "s + alpha*f", identity="exact", params={"alpha": 0.0})

# --- Products ---------------------------------------------------------------------------------------------------
register("mul", lambda s, f: s * f, "s*f", identity="no", core=True)
register("mul_bn", lambda s, f: s * f, "bn(s)*bn(f)", identity="no", shortcut_norm=True, core=True)
# (1 + g a)(1 + g b) = 1 + g(a + b) + g^2 ab: the additive net plus a second-order term, with g the dial.
register(
    "mul_bn1", lambda s, f: s * f, "bn1(s)*bn1(f)",
    identity="affine", shortcut_norm=True, shortcut_bias=1.0, branch_bias=1.0, core=True,
)  # fmt: skip
# The rule SEW-ResNet (Fang et al. 2021) uses for its product.
register("mul_res", lambda s, f: s * f, "s*bn1(f), g=0", identity="exact", branch_bias=1.0, branch_scale=0.0)
register(
    "mul_rezero", lambda s, f, alpha: s * (1 + alpha * f), "s*(1 + alpha*f)", identity="exact", params={"alpha": 0.0}
)


# --- Gates on the shortcut --------------------------------------------------------------------------------------
def _register_gate(name: str, value: Callable, formula: str, low: float = 0.0, high: float = 1.0, **declared) -> None:
    """The merge `s * value(f)`, with values in (low, high)."""
    asymptotes = ("low", "high") if math.isfinite(high) else ("low",)
    gate = Gate("f", value, low, high, asymptotes)
    register(name, lambda s, f: s * value(f), formula, gates=(gate,), **declared)


CRITICAL_ALPHA = 1.475886  # E[(alpha sig(f - ln(alpha - 1)))^2] = 1 for f ~ N(0, 1)


def _critical_gate(f: jax.Array) -> jax.Array:
    # alpha*sig(f - ln(alpha-1)) rewritten with h = tanh(f/2): exactly 1 at f = 0, and no overflow in its gradient.
    h = jnp.tanh(f / 2)
    return CRITICAL_ALPHA * (1 + h) / (CRITICAL_ALPHA + (2 - CRITICAL_ALPHA) * h)


_register_gate("gate_sig", sigmoid, "s*sig(f)", identity="affine", core=True)
_register_gate("gate_sig_bn", sigmoid, "bn(s)*sig(f)", identity="affine", shortcut_norm=True, core=True)
_register_gate("gate_2sig", lambda f: 2 * sigmoid(f), "s*2sig(f)", high=2.0, identity="exact")
_register_gate("gate_alpha", _critical_gate, "s*alpha*sig(f - ln(alpha-1))", high=CRITICAL_ALPHA, identity="exact")
_register_gate("gate_tanh", lambda f: 1 + jnp.tanh(f), "s*(1 + tanh(f))", high=2.0, identity="exact")
_register_gate("gate_exp", jnp.exp, "s*exp(f), g=.3", high=math.inf, identity="exact", branch_scale=0.3)
register(
    "sig_sig", lambda s, f: sigmoid(s) * sigmoid(f), "sig(bn(s))*sig(f)",
    identity="no", shortcut_norm=True, gates=(Gate("s", sigmoid), Gate("f", sigmoid)), core=True,
)  # fmt: skip
_register_gate("iand", lambda f: 1 - sigmoid(f), "s*(1 - sig(f))", identity="affine")
# Residual Attention Network (Wang et al. 2017), the shortcut as its trunk and the branch as its mask: with attention
# residual learning, and naively (the formula of gate_sig, kept under its own name).
_register_gate("arl", lambda f: 1 + sigmoid(f), "(1 + sig(m))*t", low=1.0, high=2.0, identity="affine")
_register_gate("nal", sigmoid, "sig(m)*t", identity="affine")


def _as_it_is(m: jax.Array) -> jax.Array:
    return m


MAP_GATE = Gate("m", _as_it_is)  # the third map is the gate
# Is saturation a matter of the mask's dimension? The sigmoid's input is pooled to config.model.granularity.
register(
    "gate_granularity", lambda s, f, m: s * m, "s*sig(pool(f))",
    identity="affine", extra="pooled_sigmoid", gates=(MAP_GATE,),
)  # fmt: skip

# --- Second order beside the sum --------------------------------------------------------------------------------
register("pi", lambda s, f, m: s + f + m, "s + f + bn(s*f)", identity="exact", extra="norm_product")  # Pi-nets
register(  # R-PolyNets (Chrysos et al. 2023)
    "pi_alpha", lambda s, f, m, alpha: s + f + alpha * m, "s + f + alpha*bn(conv1x1(s*f))",
    identity="exact", extra="norm_projected_product", params={"alpha": 0.0},
)  # fmt: skip
EPS = 1e-3  # under the square roots: their gradient power diverges like log(1/eps)
register(  # SORT (Wang et al. 2017, 1703.06993)
    "sort", lambda s, f: s + f + jnp.sqrt(relu(s) * relu(f) + EPS), "s + f + sqrt(relu(s)*relu(f) + eps)",
    identity="near",
)  # fmt: skip

# --- Controls: not additive, of degree one ----------------------------------------------------------------------
register(
    "geo", lambda s, f: jnp.sign(s * f) * jnp.sqrt(jnp.abs(s * f) + EPS), "sign(s*f)*sqrt(|s*f| + eps)", identity="no"
)
register("max", lambda s, f: jnp.maximum(s, f), "max(s, f)", identity="no")

# --- Gates computed from the block's input ----------------------------------------------------------------------
# Highway networks (Srivastava et al. 2015); shortcut-only gating (He et al. 2016, 1603.05027, section 3.1).
register(
    "highway", lambda s, f, m: (1 - m) * s + m * f, "(1 - t)*s + t*f, t = sig(bn(conv(x)))",
    identity="near", extra="transform_gate", extra_bias=-6.0, gates=(MAP_GATE,),
)  # fmt: skip
register(
    "shortcut_gate", lambda s, f, m: (1 - m) * s + f, "(1 - g)*s + f, g = sig(conv1x1(x))",
    identity="near", extra="shortcut_gate", extra_bias=-6.0, gates=(MAP_GATE,),
)  # fmt: skip

# --- Attention on the branch ------------------------------------------------------------------------------------
# SimAM's lowest value is no asymptote: the units at their channel's mean have it.
_SIMAM = Gate("m", _as_it_is, low=1 / (1 + math.exp(-0.5)), asymptotes=("high",))
_CBAM = Gate("m", _as_it_is, factors=("channel_gate", "spatial_gate"))
for _name, _gate in {"se": MAP_GATE, "cbam": _CBAM, "eca": MAP_GATE, "simam": _SIMAM}.items():
    register(
        _name, lambda s, f, m: s + f * m, f"s + f*{_name}(f)",
        identity="exact", extra=_name, gates=(_gate,), core=_name == "se",
    )  # fmt: skip

# --- Products and gates of 2024 to 2026 -------------------------------------------------------------------------
_recent = partial(register, recent=True)
# LAuReL (2411.07501): learned weights of both, or a low-rank map of the shortcut.
_recent("laurel_rw", lambda s, f, a, b: a * f + b * s, "b*s + a*f", identity="exact", params={"a": 1.0, "b": 1.0})
_recent(
    "laurel_lr", lambda s, f, m, a: a * f + s + m, "s + a*f + A(B s)",
    identity="exact", params={"a": 1.0}, extra="low_rank",
)  # fmt: skip
# Deep Delta Learning (2601.00417): along the unit vector k the shortcut's part is replaced by v, as far as beta says.
_recent(
    "delta", lambda s, f, m: s + m, "s + beta*(v - k.s)*k, k = f/|f|, beta = 2sig(b)",
    identity="exact", extra="delta_update", extra_bias=0.0,
)  # fmt: skip
# Gated attention's winner (2505.06708): the branch times a gate of the block's input, each unit or a group of channels.
_GATED = {"extra": "branch_gate", "identity": "exact", "gates": (MAP_GATE,)}
_recent("branch_gate", lambda s, f, m: s + f * m, "s + f*sig(W h)", **_GATED)
_recent(
    "branch_gate_group", lambda s, f, m: s + f * m, "s + f*sig(W h), one gate for eight channels",
    **_GATED | {"extra": "branch_gate_group"},
)  # fmt: skip
# PolyNeXt (2605.20839): a normalised product, scaled by sig(a), which is 1/2, 1/3, 1/4, ... over the depth.
_SCALED = {"a": lambda index: -math.log(index + 1)}
_recent(
    "pi_sigmoid", lambda s, f, m, a: s + sigmoid(a) * m, "s + sig(a)*norm(s*f)",
    identity="exact", extra="norm_product", params=_SCALED,
)  # fmt: skip
_recent(
    "pi_sigmoid_f", lambda s, f, m, a: s + f + sigmoid(a) * m, "s + f + sig(a)*norm(s*f)",
    identity="exact", extra="norm_product", params=_SCALED,
)  # fmt: skip
_recent("glu", lambda s, f: s + f, "s + W3 (W1 h * W2 h)", identity="exact", branch="glu")
_recent("pure", lambda s, f: s + f, "s + sign(W y)*exp(W log|y|)", identity="exact", branch="pure")

# --- Connections: over depth and over streams (resjax/models/streams.py) --------------------------------------------
_recent("x0", lambda s, f: s + f, "r*s + f + c*v_0", identity="exact", connection=X0)
_recent("two_cells", lambda s, f: s + f, "s + f of norm(p*h[l-2] + q*h[l-1])", identity="no", connection=TWO_CELLS)
for _name in ("mul", "mul_bn1", "pi_sigmoid"):
    _own = {f.name: getattr(MERGES[_name], f.name) for f in fields(Merge) if f.name not in ("name", "core", "recent")}
    _own |= {"formula": f"{_own['formula']} of norm(p*h[l-2] + q*h[l-1])", "identity": "no", "connection": TWO_CELLS}
    _recent(f"{_name}_two_cells", **_own)
for _name, _connection, _formula in (
    ("attnres", ATTENTION, "{} of sum_i softmax_i(w.rms(v_i))*v_i"),
    ("dense", DENSE, "{} of W [v_0, ..., v_l]"),
    ("hc", HC, "X <- H_res X + H_post {}, of H_pre X"),
    ("mhc", MHC, "X <- H_res X + H_post {}, of H_pre X; H_res doubly stochastic"),
):
    _declared = {"identity": "no", "connection": _connection}
    _recent(_name, lambda s, f: f, _formula.format("f"), **_declared)
    _recent(f"{_name}_mul", lambda s, f: s * f, _formula.format("s*f"), **_declared)

# --- Interventions: what a merge can express against how it trains ----------------------------------------------
register(
    "homotopy",
    lambda s, f, t: (1 - t) * (s + f) + t * s * f,
    "(1 - t)*(s + f) + t*s*f",
    identity="exact",
    scheduled=True,
)


def with_backward_of(forward: Callable, backward: Callable) -> Callable:
    """`forward(s, f)` whose reverse-mode derivative is `backward`'s (so no forward-mode derivative exists)."""
    swapped = jax.custom_vjp(forward)
    swapped.defvjp(
        lambda s, f: (forward(s, f), (s, f)),
        lambda residuals, cotangent: jax.vjp(backward, *residuals)[1](cotangent),
    )
    return swapped


_add, _mul = MERGES["add"].combine, MERGES["mul"].combine
register("swap_fwdmul_bwdadd", with_backward_of(_mul, _add), "s*f forwards, s + f backwards", identity="no")
register("swap_fwdadd_bwdmul", with_backward_of(_add, _mul), "s + f forwards, s*f backwards", identity="exact")
register("stopgrad_s", lambda s, f: lax.stop_gradient(s) * f, "sg(s)*f", identity="no")
register("stopgrad_f", lambda s, f: s * lax.stop_gradient(f), "s*sg(f)", identity="no")
