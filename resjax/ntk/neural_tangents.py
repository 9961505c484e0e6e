"""The one door to neural-tangents: `from resjax.ntk.neural_tangents import nt, stax`, never the library itself.

neural-tangents 0.6.5, its last release, was written for JAX 0.4 (Novak et al. 2020, 1912.02803). To import on today's
JAX it needs names that JAX has removed, and its subpackage `experimental` imports TensorFlow. So this module
1. puts the missing names back while neural_tangents is imported, and takes them away again: afterwards `jax` is as it
   was, and no other code can come to depend on them;
2. puts an empty module in the place of `neural_tangents.experimental`, for good: TensorFlow is never imported;
3. rebinds, in the one module `neural_tangents._src.empirical`, what some implementations of the empirical kernel
   look up while they run: STRUCTURED_DERIVATIVES and AUTO fail without, NTK_VECTOR_PRODUCTS warns.
Steps 1 and 2 suffice for everything else: stax kernels, JACOBIAN_CONTRACTION, predict, batch, linearize.

Danger: stax kernels are float32 unless the inputs are float64 (`jax.enable_x64`), and every FanIn layer warns that its
branches must be independent. STRUCTURED_DERIVATIVES warns of an operation on parameters that it has no rule for (slice,
our conv2d) and is slow there; it must be jitted: resjax's conv2d calls jit, which that implementation disables.

Raises ImportError if neural_tangents is missing, or was imported before this module.
"""

import contextlib
import importlib.util
import math
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
from jax.interpreters import ad

_EXPERIMENTAL = "neural_tangents.experimental"

if "neural_tangents" in sys.modules:
    raise ImportError("import neural_tangents only by resjax.ntk.neural_tangents: something imported it before")
if importlib.util.find_spec("neural_tangents") is None:
    raise ImportError("neural_tangents is missing: `make setup`, or `pip install --no-deps 'neural-tangents==0.6.5'`")


# --- 1. Names that must exist while neural_tangents is imported ---------------------------------------------------


def _jax_util() -> ModuleType:
    """A `jax.util` (removed in 0.10) with what `empirical` imports from it as `map` and `zip`: strict, into lists."""
    util = ModuleType("jax.util")
    util.safe_zip = lambda *args: list(zip(*args, strict=True))
    util.safe_map = lambda f, *args: [f(*values) for values in zip(*args, strict=True)]
    return util


# jax.core's (removed in 0.6): types in annotations and isinstance checks, bound by `from jax.core import ...`. The
# same classes live on in jax.extend.core.
_REMOVED = [
    (jax.core, name, getattr(jax.extend.core, name)) for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
]
# The key of two tables of rules. JAX no longer emits this primitive, so any key does.
_REMOVED.append((ad, "zeros_like_p", jax.extend.core.Primitive("zeros_like")))


@contextlib.contextmanager
def _removed_names() -> Iterator[None]:
    """Puts back what this JAX lacks, and takes exactly that away again."""
    missing = [entry for entry in _REMOVED if entry[1] not in vars(entry[0])]
    lacks_util = importlib.util.find_spec("jax.util") is None
    if lacks_util:
        sys.modules["jax.util"] = _jax_util()
    for module, name, value in missing:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, _ in missing:
            delattr(module, name)
        if lacks_util:
            del sys.modules["jax.util"]


# --- 2. The import ------------------------------------------------------------------------------------------------

sys.modules[_EXPERIMENTAL] = ModuleType(_EXPERIMENTAL, "Left out by resjax.ntk.neural_tangents: it needs TensorFlow.")
with _removed_names(), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its escapes such as "\d" are a SyntaxWarning from Python 3.12 on
    import neural_tangents as nt
    from neural_tangents import stax
    from neural_tangents._src import empirical as _empirical


# --- 3. What some implementations of the empirical kernel look up at run time -------------------------------------


def _primals_out_and_pullback(function, mode, j_rules, s_rules, forward, *primals):
    """Outputs of `function`, and the pullback that `mode` asks for.

    The original needs `ad.linearize` with the arguments and results it had before JAX 0.8. Jit is disabled because
    the library's own backward pass knows no calls: so they are inlined.
    """
    with jax.disable_jit():
        outputs, linear = jax.linearize(function, *primals)
        closed = jax.make_jaxpr(linear)(*primals)
    operands, tree = jax.tree.flatten(primals)

    def pullback(*cotangents):
        unknown = [ad.UndefinedPrimal(variable.aval) for variable in closed.jaxpr.invars]
        found = _empirical._backward_pass(
            closed.jaxpr,
            mode=mode,
            consts=closed.consts,
            primals_in=unknown,
            cotangents_in=tuple(jax.tree.leaves(cotangents)),
            _j_rules=j_rules,
            _s_rules=s_rules,
            _fwd=forward,
        )
        return tree.unflatten(found)

    return outputs, pullback


def _transpose_equation(equation, cotangent, *values):
    """Cotangents of an equation's operands, None of those that are known.

    The original asks for attributes of primitives and tables of rules that are gone, and misses the transposition
    rules that JAX now keeps elsewhere (slice). Its other cases, calls and collectives, cannot occur.
    """
    if equation is None:  # the identity
        return (cotangent,)
    linear = [i for i, value in enumerate(values) if ad.is_undefined_primal(value)]
    avals = [values[i].aval for i in linear]
    if isinstance(cotangent, ad.Zero):
        found = [ad.Zero(aval) for aval in avals]
    else:

        def apply(*operands):
            known = dict(enumerate(values)) | dict(zip(linear, operands, strict=True))
            return equation.primitive.bind(*known.values(), **equation.params)

        found = jax.linear_transpose(apply, *(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals))(
            cotangent
        )
    by_operand = dict(zip(linear, found, strict=True))
    return [by_operand.get(i) for i in range(len(values))]


def _flops(function, optimize, *args, **kwargs):
    """Operations of the compiled (`optimize`) or lowered function; the analysis was a list of dicts before JAX 0.5."""
    lowered = jax.jit(function).lower(*args, **kwargs)
    return (lowered.compile() if optimize else lowered).cost_analysis()["flops"]


_empirical._get_primals_out_and_pullback = _primals_out_and_pullback
_empirical._eqn_vjp_fn = _transpose_equation
_empirical._get_flops = _flops
_empirical.print = lambda *_: None  # AUTO prints a line for every implementation it tries


def _overlay(module, **names):
    return SimpleNamespace(**vars(module) | names)


# Gone from `ad`: the first only names operations for profilers, the second guards checks by other lost names.
_empirical.ad = _overlay(
    ad,
    source_info_util=SimpleNamespace(transform_name_stack=contextlib.nullcontext),
    config=SimpleNamespace(jax_enable_checks=False),
)
# `type(aval) is core.DShapedArray` asks for a dynamic shape. JAX has none any more: nothing is of this type.
_empirical.core = _overlay(jax.core, DShapedArray=type("DShapedArray", (), {}))
# The size of a shape and the dtype of an array, for which jnp's own functions are deprecated.
_empirical.jnp = _overlay(jnp, size=lambda x: math.prod(x.shape), dtype=lambda x: x.dtype)

__all__ = ["nt", "stax"]
