"""The nets: parameter counts, identity, degree, axes, and agreement of compiled and plain evaluation."""

import os
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import quick

from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.models import gates
from resjax.models.build import build
from resjax.models.layers import he_init
from resjax.models.merges import MERGES

# Parameters of `add`, and those of the others beyond it: ResNet-8 on digits, ResNet-20 and ResNet-18 on CIFAR-10, and
# a 6-layer mlp of width 32 on digits. If a number moves, every stored run of that merge is of another net: say so.
ADD = (77_754, 272_474, 11_173_962, 6_794)
NONE = (0, 0, 0, 0)
SHORTCUT_NORM = (32, 480, 2_048, 128)
ONE_SCALAR = (3, 9, 8, 2)
BEYOND_ADD = {
    "add": NONE,
    "add_bn": SHORTCUT_NORM,
    "add_zero": ONE_SCALAR,
    "mul": NONE,
    "mul_bn": SHORTCUT_NORM,
    "mul_bn1": SHORTCUT_NORM,
    "mul_res": NONE,
    "mul_rezero": ONE_SCALAR,
    "gate_sig": NONE,
    "gate_sig_bn": SHORTCUT_NORM,
    "gate_2sig": NONE,
    "gate_alpha": NONE,
    "gate_tanh": NONE,
    "gate_exp": NONE,
    "sig_sig": SHORTCUT_NORM,
    "iand": NONE,
    "arl": NONE,
    "nal": NONE,
    "gate_granularity": NONE,
    "pi": (224, 672, 3_840, 128),
    "pi_alpha": (5_603, 16_809, 700_168, 2_178),
    "sort": NONE,
    "geo": NONE,
    "max": NONE,
    "highway": (25_568, 122_784, 4_722_432, 2_176),
    "shortcut_gate": (2_928, 13_904, 526_208, 2_112),
    "se": (1_020, 3_060, 89_080, 584),
    "cbam": (1_314, 3_942, 89_864, 584),
    "eca": (9, 27, 36, 6),
    "simam": NONE,
    "homotopy": NONE,
    "swap_fwdmul_bwdadd": NONE,
    "swap_fwdadd_bwdmul": NONE,
    "stopgrad_s": NONE,
    "stopgrad_f": NONE,
}
# Known from other codebases: option A of He et al. 2016 (table 6), and the usual PyTorch ResNet-18 for 32x32 images.
KNOWN = {
    ("resnet", 20, "A", 16): 269_722,
    ("resnet", 32, "A", 16): 464_154,
    ("resnet", 56, "A", 16): 853_018,
    ("resnet", 110, "A", 16): 1_727_962,
    ("resnet", 20, "B", 16): 272_474,
    ("resnet18", 18, "B", 64): 11_173_962,
}


def make(image=(8, 8, 1), dtype="float32", **model):
    config = config_lib.base()
    config.model.update(model)
    config_lib.check(config)
    return build(config.model, 10, dtype=dtype), jnp.zeros((1, *image))


def normal(*shape):
    """Numbers of NumPy: JAX would compile a program for each shape."""
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def count(image=(8, 8, 1), **model):
    net, x = make(image, **model)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("net", KNOWN)
def test_parameter_counts_of_the_literature(net):
    name, depth, shortcut, width = net
    assert count((32, 32, 3), name=name, depth=depth, shortcut=shortcut, width=width) == KNOWN[net]


def test_the_parameter_table_is_complete():
    assert set(BEYOND_ADD) == {name for name, merge in MERGES.items() if not merge.recent}


@pytest.mark.parametrize(
    "number", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
@pytest.mark.parametrize("merge", BEYOND_ADD)
def test_parameter_count(merge, number):
    net = (
        {"image": (8, 8, 1)},
        {"image": (32, 32, 3), "depth": 20},
        {"image": (32, 32, 3), "name": "resnet18", "depth": 18, "width": 64},
        {"image": (8, 8, 1), "name": "mlp", "depth": 6, "width": 32},
    )[number]
    assert count(merge=merge, **net) == ADD[number] + BEYOND_ADD[merge][number]


def zero_branch(params):
    """The params with the last layer of every branch zero."""
    return {
        name: value | {"branch": value["branch"] | {"linear2": {"kernel": 0 * value["branch"]["linear2"]["kernel"]}}}
        if "branch" in value
        else value
        for name, value in params.items()
    }


@pytest.mark.usefixtures("each_key_once")
@pytest.mark.parametrize("name", quick(["mlp"], ["resnet", "mlp"]))
@pytest.mark.parametrize("merge", [name for name, merge in MERGES.items() if not merge.connection])
def test_a_block_with_a_zero_branch_is_the_identity_where_the_catalogue_says_so(merge, name):
    net, x = make(merge=merge, name=name, activation="none")  # so that the block's input has both signs
    net = net.clone(stages=net.stages[:1])
    x = normal(4, *x.shape[1:])
    variables = net.init(jax.random.key(0), x)
    variables = variables | {"params": zero_branch(variables["params"])}
    _, state = net.apply(
        variables, x, capture_intermediates=lambda module, _: module.name in ("stem_norm", "stage1_block1")
    )
    seen = state["intermediates"]
    h = np.asarray(seen["stem_norm"]["__call__"][0])  # the input of the first block, which keeps its shape
    z = np.asarray(seen["stage1_block1"]["__call__"][0])
    assert np.array_equal(z, h) == (MERGES[merge].identity == "exact")
    if MERGES[merge].identity == "near":
        assert 0 < np.mean(np.abs(z - h)) < 0.05 * np.mean(np.abs(h))


@pytest.mark.parametrize("merge", ["add_zero", "mul_res", "mul_rezero"])
def test_nets_that_start_as_the_identity(merge):
    x = normal(4, 8, 8, 1)
    outputs = []
    for depth in (4, 10):  # one block and four: the same function at init
        net, _ = make(merge=merge, name="mlp", depth=depth, width=16)
        outputs.append(net.apply(net.init(jax.random.key(0), x), x))
    np.testing.assert_array_equal(*outputs)


def degree_error(net, variables, x, degree):
    """Relative error of the best polynomial of `degree` in t for the logits at x0 + t*x1, |t| <= 1."""
    t = np.cos(np.pi * (np.arange(40) + 0.5) / 40)
    logits = np.asarray(net.apply(variables, jnp.asarray(x[0] + t[:, None, None, None] * x[1])))
    fit = np.polynomial.chebyshev.chebfit(t, logits, degree)
    return np.abs(np.polynomial.chebyshev.chebval(t, fit).T - logits).max() / np.abs(logits).max()


@pytest.mark.parametrize("name, depth, blocks", [("mlp", 4, 1), ("mlp", 6, 2), ("mlp", 8, 3), ("resnet", 8, 3)])
@pytest.mark.parametrize("merge", ["add", "mul", "mul_bn1"])
@pytest.mark.slow
def test_products_without_activations_have_degree_two_to_the_blocks(merge, name, depth, blocks):
    with jax.enable_x64(True):
        net, x = make(merge=merge, name=name, depth=depth, width=8, activation="none", norm="none", dtype="float64")
        x = np.random.default_rng(0).normal(size=(2, *x.shape[1:]))
        variables = jax.tree.map(lambda a: a.astype(jnp.float64), net.init(jax.random.key(0), x))
        degree = 1 if merge == "add" else 2**blocks
        assert degree_error(net, variables, x, degree) < 1e-11
        assert degree_error(net, variables, x, degree - 1) > 1e-5


@pytest.mark.usefixtures("each_key_once")
@pytest.mark.parametrize(
    "axis",
    [
        {"norm": "ln"},
        {"norm": "gn"},
        {"norm": "none"},
        {"post_activation": "relu"},
        {"shortcut": "A"},
        {"activation": "gelu"},
        {"activation": "square"},
        {"head": "flatten"},
        {"name": "resnet18", "depth": 18},
        {"scale": 0.1},
    ],
    ids=str,
)
def test_every_axis_gives_finite_logits_of_another_net(axis):
    outputs = train_logits(), train_logits(**axis)
    assert outputs[1].shape == (4, 10) and np.isfinite(outputs[1]).all()
    assert not np.allclose(*outputs)


@cache
def train_logits(**model):
    """[4, 10] of a fresh net on fixed images."""
    x = normal(4, 8, 8, 1)
    net, _ = make(merge="mul_bn1", **model)
    return net.apply(net.init(jax.random.key(0), x), x, train=True, mutable=["batch_stats"])[0]


def test_granularity_sets_the_shape_of_the_gate():
    f = normal(2, 4, 4, 3)
    shapes = {"scalar": (2, 1, 1, 1), "channel": (2, 1, 1, 3), "spatial": (2, 4, 4, 1), "full": (2, 4, 4, 3)}
    for granularity, shape in shapes.items():
        gate = gates.PooledSigmoid(norm=None, granularity=granularity)
        assert gate.apply({}, f, f, f, False).shape == shape


def test_simam_never_closes():
    f = normal(2, 8, 8, 3)
    gate = gates.SimAM(norm=None).apply({}, f, f, f, False)
    assert gate.min() >= 1 / (1 + np.exp(-0.5))


def test_the_highway_gate_starts_nearly_closed():
    x = normal(64, 8, 8, 1)
    net, _ = make(merge="highway", width=64)
    net = net.clone(stages=net.stages[:1])
    variables = net.init(jax.random.key(0), x)
    keep = {"capture_intermediates": lambda module, _: isinstance(module, gates.TransformGate)}
    _, state = net.apply(variables, x, train=True, mutable=["batch_stats", "intermediates"], **keep)
    t = state["intermediates"]["stage1_block1"]["merge"]["transform_gate"]["__call__"][0]
    assert np.mean(t) == pytest.approx(0.0040, rel=0.1)  # E sig(N(-6, 1))


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (12, 5)])
def test_weights_are_those_of_the_librarys_he_init(shape):
    of_library = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    drawn, expected = (init(jax.random.key(7), shape) for init in (he_init, of_library))
    np.testing.assert_array_max_ulp(drawn, expected, maxulp=4)  # another shape is vectorised otherwise


def test_paired_inits_share_every_tensor_of_equal_shape():
    params = []
    for merge in ("add", "mul_bn1"):
        net, x = make(merge=merge)
        params.append(dict(jax.tree_util.tree_leaves_with_path(net.init(jax.random.key(3), x)["params"])))
    kernels = [path for path in params[0] if path[-1].key == "kernel"]
    assert len(kernels) == 10
    for path in kernels:
        np.testing.assert_array_equal(params[0][path], params[1][path])


def test_a_compiled_block_equals_its_plain_evaluation(optimised):
    # The canary: jaxlib 0.4.30 was seen to miscompile this on the CPU.
    net, _ = make(merge="mul_bn1", name="mlp", depth=4, width=512)
    x = normal(128, 64)
    variables = net.init(jax.random.key(0), x)
    with jax.disable_jit():
        plain = net.apply(variables, x)
    options = {"xla_cpu_use_fusion_emitters": True} if "fusion_emitters" in os.environ.get("XLA_FLAGS", "") else {}
    compiled = jax.jit(net.apply, compiler_options=options)
    np.testing.assert_allclose(compiled(variables, x), plain, rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    net, x = make(dtype="bfloat16")
    variables = net.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    _, state = net.apply(variables, x, capture_intermediates=lambda module, _: module.name == "stage1_block1")
    assert state["intermediates"]["stage1_block1"]["__call__"][0].dtype == jnp.bfloat16


def test_an_unknown_merge_is_one_line_with_a_suggestion():
    with pytest.raises(ConfigError, match="mul_bnn.*did you mean mul_bn"):
        make(merge="mul_bnn")
