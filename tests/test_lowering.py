"""What runs on this machine can be lowered for CUDA and TPU too, which needs neither."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from breadth import quick
from jax import export
from jax.tree_util import Partial
from test_training import task_of, tiny

from resjax.models.merges import MERGES
from resjax.ntk import factors
from resjax.probes.loss.objective import Objective
from resjax.training import loop, step
from resjax.training.mesh import BatchSplit

PLATFORMS = ("cuda", "tpu")
RESNET = {"model.name": "resnet", "model.depth": 8}
KEPT = ("mul", "gate_sig", "cbam", "attnres")


def lowered(function, *arguments) -> str:
    """The program for all platforms, as text. Raises what JAX raises where an operation has no form on one."""
    return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).mlir_module()


def setting(**entries):
    """The task of a config, its data, and the shapes of a replica's state."""
    task, dataset = task_of(tiny(**RESNET | entries))
    x = jnp.zeros((1, *dataset.train.images_NxHxWxC.shape[1:]))
    return task, dataset, jax.eval_shape(partial(step.init, task), x, jnp.int32(0))


def check_training(**entries):
    task, dataset, state = setting(**entries)
    start, stop = jnp.int32(0), jnp.int32(3)
    text = lowered(
        partial(step.train_steps, task, split=BatchSplit()),
        (loop._examples(dataset.train), start, stop),
        (state, step.Sums.zeros()),
    )
    assert "stablehlo.while" in text and "stablehlo.convolution" in text


@pytest.mark.parametrize("merge", quick(KEPT, MERGES))
def test_training_of_every_merge(merge):
    check_training(**{"model.merge": merge})


@pytest.mark.parametrize("dtype", quick(["bfloat16"], ["bfloat16", "float32"]))
@pytest.mark.parametrize("norm", quick(["ln"], ["bn", "ln", "gn", "none"]))
def test_training_with_every_norm_in_every_type(norm, dtype):
    check_training(**{"model.norm": norm, "dtype": dtype, "model.scale": 0.5 if norm == "none" else 0.0})


OPTIONS = [
    {"dataset.augment": "crop_flip", "dataset.mixup": 0.2, "model.dropout": 0.1},
    {"model.front": "stn"},
    {"model.name": "resnet18", "model.depth": 18},
    {"optimizer.name": "adamw", "optimizer.clip_norm": 1.0, "loss.label_smoothing": 0.1},
]


@pytest.mark.parametrize("entries", [OPTIONS[0], *(pytest.param(o, marks=pytest.mark.slow) for o in OPTIONS[1:])])
def test_training_with_every_option(entries):
    check_training(**entries)


def test_evaluation():
    task, dataset, state = setting()
    examples = loop._examples(dataset.test)
    scored = step.Scored.nothing(len(dataset.test.labels_N), 64)
    evaluate = partial(step.evaluate, task, batch_size=64)
    assert "convolution" in lowered(evaluate, (examples, jnp.int32(0), jnp.int32(2)), (state, scored))


def of_variables(net, stats, params, x):
    return net.apply({"params": params, **stats}, x)


@pytest.mark.parametrize("mode", quick(["trace"], ["full", "trace", "pseudo"]))
def test_blocks_of_kernels(mode):
    task, _, state = setting(**{"model.merge": "mul_bn1"})
    x_Bx = jnp.zeros((3, 8, 8, 1))
    f = Partial(partial(of_variables, task.net), jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state.stats))

    def block(f, params, x1, x2):
        return factors.product(factors.factors(f, params, x1, mode), factors.factors(f, params, x2, mode))

    assert "dot_general" in lowered(block, f, state.params, x_Bx, x_Bx)


def test_products_with_the_hessian():
    task, _, state = setting(**{"model.merge": "mul_bn1"})
    variables = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), {"params": state.params, **state.stats})
    objective = Objective(
        task.net, step.LOSSES["ce"], variables, jnp.zeros((2, 4, 8, 8, 1)), jnp.zeros((2, 4, 10)), jnp.ones((2, 4)) / 8
    )
    w = jax.eval_shape(Objective.vector, objective)
    assert "stablehlo.while" in lowered(Objective.product, objective, w, w)
