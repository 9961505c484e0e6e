"""The neural tangent kernel of infinitely wide residual nets, one merge per net: in closed form, and by `stax`.

A fully connected net treats all inputs of one norm alike, so its kernel is a function of the cosine
r = x.x' / (|x| |x'|). Every layer maps a state (S, T): S is the second moment of its units over random weights, T the
NTK of what is below (Jacot et al. 2018, 1806.07572). With the arc-cosine kernels k0, k1 (Cho & Saul 2009):

    stem, linear + ReLU         S = k1(r), T = r k0(r)
    branch o = W2 relu(W1 h)    So = k1(S), To = So + (S + T) k0(S)
    merge                       below
    linear readout              S + T

Given the weights below, o is Gaussian with unit variance, and independent of s. So a merge z = a(f) s + b(f), with f an
affine function of o, needs s only by its second moment S and its mean m, and a, b only by three functions of So,

    A(So) = E a(f) a(f'),  C(So) = E a(f) b(f'),  B(So) = E b(f) b(f'),

    S <- S A + 2 m C + B,    T <- T A + To (S A' + 2 m C' + B'),    m <- m E a + E b.

The sum is (a, b) = (1, f), the product (f, 0), a gate (sig(f), 0). m is not zero: the stem ends in a ReLU. If a has the
coefficients a_k in normalised Hermite polynomials (Mehler), A = sum a_k^2 So^k: exact, and fast for arrays of cosines.

Only matrices are differentiated. The norms are those of layers (LayerNorm) or none: what BatchNorm subtracts depends
on the distribution of the inputs.
"""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial.polynomial import polyder, polyval

from resjax.config import ConfigError
from resjax.models.merges import MERGES, Merge

# A merge registered later is covered, too, if it is elementwise, affine in s and smooth in f.
COVERED = (
    "add", "add_bn", "add_zero", "laurel_rw", "homotopy",
    "mul", "mul_bn", "mul_bn1", "mul_res", "mul_rezero",
    "gate_sig", "gate_sig_bn", "gate_2sig", "gate_alpha", "gate_tanh", "gate_exp", "iand", "arl", "nal",
    "se",
)  # fmt: skip
NORMS = ("none", "ln")


def merge_kernel(merge: str, depth: int, *, norm: str = "none") -> Callable[[np.ndarray], np.ndarray]:
    """The NTK of a stem, `depth` residual blocks and a linear readout, as a function of the cosine of two inputs.

    The scale is such that the readout's input has second moment 1. Taken at init, with these exceptions: a branch that
    starts at zero (branch_scale or alpha 0: `mul_res`, `mul_rezero`, `add_zero`) has gain 1, else it would be absent.
    `homotopy` is at t = 0, the sum. The gate of `se` is a two-layer net of f as in `resjax.models.gates`,
    whose width / 16 hidden units are slow to become infinite.

    Args:
      merge: a name of COVERED, or any registered merge that can be.
      depth: number of residual blocks, >= 1.
      norm: "none": every block's output is rescaled to second moment 1, and so is its branch's. For sums that is the
        net without norms whose layers keep the second moment (He's init for all but a branch's last matrix, which
        has variance 1/fan_in). "ln": as `resjax.models` builds it with norm="ln": branches have unit variance, the
        shortcut starts at 1/2 and grows. Products and gates have the same kernel by both, unless b(f) is not zero.

    Returns:
      A function of cosines, any shape, to float64 of the same shape. It raises ConfigError where |r| > 1 + 1e-6.
      Danger: its slope at r = 1 is infinite. A cosine that misses 1 by e costs about sqrt(2e) / pi: 1e-8 in double
      precision, 1e-4 in single. Set the cosine of an input with itself to 1.

    Raises:
      ConfigError: a merge that isn't covered, a depth below 1, an unknown norm.
    """
    join = _join(merge)
    _check_depth(depth)
    if norm not in NORMS:
        raise ConfigError(f"norm={norm!r}: choose from {', '.join(NORMS)}")

    def kernel(r: np.ndarray) -> np.ndarray:
        r = np.asarray(r, np.float64)
        if not (abs(r) <= 1 + 1e-6).all():
            raise ConfigError("merge_kernel takes cosines in [-1, 1]")
        r_N = np.append(np.clip(r, -1, 1).ravel(), 1.0)  # the last entry: the value for equal inputs
        scale = 0.5 if norm == "ln" else 1.0
        S_N, T_N, mean = scale * _k1(r_N), scale * r_N * _k0(r_N), math.sqrt(scale / math.pi)
        for _ in range(depth):
            q = S_N[-1]
            S_N, T_N, mean = join(S_N, T_N, mean, *_branch(S_N / q, T_N / q))
            if norm == "none":
                q = S_N[-1]
                S_N, T_N, mean = S_N / q, T_N / q, mean / math.sqrt(q)
        return ((S_N + T_N) / S_N[-1])[:-1].reshape(r.shape)

    return kernel


def _k0(r: np.ndarray) -> np.ndarray:
    """2 E step(u) step(v) of standard Gaussians with correlation r."""
    return 1 - np.arccos(np.clip(r, -1, 1)) / np.pi


def _k1(r: np.ndarray) -> np.ndarray:
    """2 E relu(u) relu(v); its derivative is k0."""
    r = np.clip(r, -1, 1)  # rounding may end above 1
    return np.sqrt(1 - r * r) / np.pi + r * _k0(r)


def _branch(S: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(So, To) of W2 relu(W1 h), S = 1 for equal inputs."""
    So = _k1(S)
    return So, So + (S + T) * _k0(S)


# --- Merges as functions of states --------------------------------------------------------------------------------


class _Affine(NamedTuple):
    """`a s + b`, a and b functions of o = u ~ N(0, 1) with Hermite coefficients `a_K`, `b_K`; `gate` is a.

    `norm` is the (scale, bias) of the norm on the shortcut, or None.
    """

    gate: Callable[[jax.Array], jax.Array]
    a_K: np.ndarray
    b_K: np.ndarray
    norm: tuple[float, float] | None

    def __call__(self, S, T, mean, So, To):
        """(S, T, m) after the merge; the last entry of S is the value for equal inputs."""
        if self.norm:
            (scale, bias), variance = self.norm, S[-1] - mean**2
            S, T = scale**2 * (S - mean**2) / variance + bias**2, scale**2 * T / variance
            mean = bias
        A, C, B = (_trim(c) for c in (self.a_K * self.a_K, 2 * mean * self.a_K * self.b_K, self.b_K * self.b_K))
        a = polyval(So, A)
        slope = S * polyval(So, polyder(A)) + polyval(So, polyder(C)) + polyval(So, polyder(B))
        return S * a + polyval(So, C) + polyval(So, B), T * a + To * slope, mean * self.a_K[0] + self.b_K[0]


class _Attention(NamedTuple):
    """`s + o gate(g)` with g a second branch, of o: no mean of s enters, because o has mean 0."""

    gate: Callable[[jax.Array], jax.Array]
    gate_K: np.ndarray

    def __call__(self, S, T, mean, So, To):
        Sg, Tg = _branch(So, To)
        G = _trim(self.gate_K**2)
        gate = polyval(Sg, G)
        return S + So * gate, T + To * gate + So * Tg * polyval(Sg, polyder(G)), mean


def _trim(coefficients_K: np.ndarray) -> np.ndarray:
    """Without the trailing coefficients that double precision can't see."""
    seen = np.nonzero(abs(coefficients_K) > 1e-18 * abs(coefficients_K).sum())[0]
    return coefficients_K[: seen[-1] + 1] if seen.size else np.zeros(1)


def _join(name: str) -> _Affine | _Attention:
    merge = MERGES.get(name)
    if merge is None or (merge.extra and name != "se"):
        raise _not_covered(name, "it is not registered" if merge is None else "its third map has no closed form here")
    if merge.branch != "conv" or merge.connection:
        raise _not_covered(name, "only merges of two operands with the usual branch are")
    with jax.enable_x64():
        if merge.extra:
            # The variance of g is 1/2: LeCun's init twice, with a ReLU between.
            gate = lambda u: jax.nn.sigmoid(u / math.sqrt(2))  # noqa: E731
            return _Attention(gate, _hermite(gate, name))
        phi, scale = _combine(merge), merge.branch_scale or 1.0
        _check_affine(merge, phi)

        def b(u):
            return phi(0 * u, scale * u + merge.branch_bias)

        def a(u):
            return phi(0 * u + 1, scale * u + merge.branch_bias) - b(u)

        norm = (scale, merge.shortcut_bias) if merge.shortcut_norm else None
        return _Affine(a, _hermite(a, name), _hermite(b, name), norm)


def _combine(merge: Merge) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`combine` of s and f alone, at the gain of `merge_kernel`."""
    more = {name: value or 1.0 for name, value in merge.inits().items()} | ({"t": 0.0} if merge.scheduled else {})
    return lambda s, f: merge.combine(s, f, **more)


def _check_affine(merge: Merge, phi: Callable) -> None:
    """Raises unless phi is affine in s and has its own gradient (not a swapped or a stopped one)."""
    s, f = (jnp.asarray(x.ravel()) for x in np.meshgrid([-1.7, -0.4, 0.3, 2.1], [-1.9, -0.6, 0.2, 1.3]))
    z, pullback = jax.vjp(phi, s, f)
    zero, one = phi(0 * s, f), phi(0 * s + 1, f)
    if not jnp.allclose(z, zero + (one - zero) * s, 1e-9, 1e-9):
        raise _not_covered(merge.name, "it is not affine in s")
    step = 1e-5
    numerical = [phi(s + step, f) - phi(s - step, f), phi(s, f + step) - phi(s, f - step)]
    for exact, difference in zip(pullback(jnp.ones_like(z)), numerical, strict=True):
        if not jnp.allclose(exact, difference / (2 * step), 1e-6, 1e-6):
            raise _not_covered(merge.name, "its gradient is not that of its formula")


def _not_covered(name: str, reason: str) -> ConfigError:
    return ConfigError(f"merge {name!r} has no kernel at infinite width, {reason}; covered: {', '.join(COVERED)}")


def _check_depth(depth: int) -> None:
    if not isinstance(depth, int | np.integer) or depth < 1:
        raise ConfigError(f"depth={depth!r}: residual blocks are an integer of at least 1")


# --- Hermite coefficients -----------------------------------------------------------------------------------------

TERMS = 256  # tanh, whose pole is the nearest, needs 140


@lru_cache
def _hermite_table() -> tuple[np.ndarray, np.ndarray]:
    """Nodes [U], and [TERMS, U] with c_k = table @ g(nodes) for g = sum c_k h_k, E h_j h_k = delta_jk.

    The trapezoidal rule: for analytic functions under a Gaussian its error falls exponentially in 1/step, and unlike
    Gauss-Hermite rules it has no trouble with many nodes.
    """
    step = 1 / 16
    u_U = np.arange(-24, 24 + step, step)
    weight = np.exp(-(u_U**2) / 4) / (2 * np.pi) ** 0.25  # half of the Gaussian's to each factor, against overflow
    table = [weight, u_U * weight]
    for k in range(1, TERMS - 1):
        table.append((u_U * table[k] - math.sqrt(k) * table[k - 1]) / math.sqrt(k + 1))
    return u_U, np.array(table) * weight * step


def _hermite(g: Callable, name: str) -> np.ndarray:
    """c_k, k < TERMS, of g(u), u ~ N(0, 1); needs 64-bit JAX."""
    u_U, table_KxU = _hermite_table()
    c_K = table_KxU @ np.asarray(g(jnp.asarray(u_U)))
    # The slope sum k c_k^2 So^(k-1) near So = 1 converges last.
    if not (np.arange(TERMS) * c_K**2)[-16:].sum() <= 1e-13 * (c_K**2).sum():
        raise _not_covered(name, "it is not smooth enough in f")
    return c_K


# --- The same nets by neural-tangents -----------------------------------------------------------------------------


def stax_net(
    merge: str, depth: int, *, conv: bool = False, width: int = 512, filter_size: int = 3, nodes: int = 40
) -> tuple[Callable, Callable, Callable]:
    """(init_fn, apply_fn, kernel_fn) by `stax` of the net of `merge_kernel(merge, depth)`, or of a convolutional one.

    Inputs must have mean square 1 over their features (of every pixel): then the fully connected kernel equals
    `merge_kernel`. A convolutional net has SAME zero padding (units at the border are smaller) and global average
    pooling; memory grows as (samples * pixels)^2.

    Args:
      merge: sums s + c f (`add`), gates a(f) s (`mul`, `mul_res`, `gate_sig`, ...) and `se`.
      depth: number of residual blocks, >= 1.
      conv: inputs [n, H, W, C] instead of [n, d].
      width: units or channels of `apply_fn`; `kernel_fn` is that of infinite width.
      filter_size: pixels, of a convolution.
      nodes: of the Gauss-Hermite rule per dimension, of gates but `mul`; time and memory grow as nodes^2. With 40 the
        logistic gate is exact to 1e-10.

    Raises:
      ConfigError: what `merge_kernel` refuses, and merges that stax has no layers for.
    """
    from resjax.ntk.neural_tangents import stax  # seconds to import, and needed here only

    join = _join(merge)
    _check_depth(depth)
    gain = _gain(join)

    def linear(variance):
        if conv:
            return stax.Conv(width, (filter_size, filter_size), padding="SAME", W_std=math.sqrt(variance))
        return stax.Dense(width, W_std=math.sqrt(variance))

    def branch(q, variance=1.0):
        """W2 relu(W1 h) of h with second moment q."""
        return stax.serial(linear(2 / q), stax.Relu(), linear(variance))

    def identity():
        # FanInSum asks for Gaussian paths because it leaves out the products of their means. One mean of 0 suffices,
        # and W2, with its own weights, gives the branch that: so the paths are declared Gaussian.
        init_fn, apply_fn, kernel_fn = stax.Identity()
        marked = wraps(kernel_fn)(lambda k, **kwargs: kernel_fn(k, **kwargs).replace(is_gaussian=True))
        return init_fn, apply_fn, marked

    def joined(branch, how):
        return stax.serial(stax.FanOut(2), stax.parallel(identity(), branch), how)

    def gate(of):
        return stax.serial(of, stax.ElementwiseNumerical(join.gate, nodes))

    def block(q):
        """Of s with second moment q, which changes by the factor `gain`."""
        if isinstance(join, _Attention):
            attended = joined(gate(branch(q)), stax.FanInProd())
            return joined(stax.serial(branch(q, q), attended, identity()), stax.FanInSum())
        if join.norm is None and _is(join.a_K, 0, 1.0) and _is(join.b_K, 1, join.b_K[1]):
            return joined(branch(q, q * join.b_K[1] ** 2), stax.FanInSum())
        if join.norm is None and not join.b_K.any():
            gated = branch(q, join.a_K[1] ** 2) if _is(join.a_K, 1, join.a_K[1]) else gate(branch(q))
            return joined(gated, stax.FanInProd())
        raise ConfigError(f"merge {merge!r}: stax has layers for s + c f, a(f) s and se only")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quadrature and autodiff are meant
        layers = [linear(2), stax.Relu(), *(block(gain**i) for i in range(depth))]
        pool = [stax.GlobalAvgPool()] if conv else []
        init_fn, apply_fn, kernel_fn = stax.serial(*layers, *pool, stax.Dense(1, W_std=gain ** (-depth / 2)))

    @wraps(kernel_fn)
    def quiet_kernel_fn(*args, **kwargs):
        with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
            warnings.filterwarnings("ignore", "`FanIn` layers assume independent inputs")  # the branch ends in weights
            return kernel_fn(*args, **kwargs)

    return init_fn, apply_fn, quiet_kernel_fn


def _gain(join: _Affine | _Attention) -> float:
    """The factor of the second moment over a block whose branch has the shortcut's."""
    one = np.ones(1)
    return float(join(one, one, 0.0, one, one)[0][0])


def _is(coefficients_K: np.ndarray, k: int, value: float) -> bool:
    """Whether a function is `value` times the Hermite polynomial of degree k."""
    return np.allclose(coefficients_K, value * (np.arange(TERMS) == k), atol=1e-12)
