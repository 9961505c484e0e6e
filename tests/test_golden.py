"""The losses of the first ten steps of six configs, as they were when golden.json was written.

A test that fails here says that numbers have moved: those of new runs then can't be compared with the old ones in
results/. Where that was not meant, find the cause. Where it was, write the file anew, and say in the commit what moved
and by how much:

RESJAX_WRITE_GOLDEN=1 python -m pytest --numprocesses=0 -m "slow or not slow" tests/test_golden.py

It holds the platforms apart: a first run on another one is written by the same command there.
"""

import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from breadth import quick
from test_training import task_of, tiny

from resjax.training import loop, mesh, step

FILE = Path(__file__).with_name("golden.json")
STEPS = 10
# Between optimised and plain programs, of jaxlib 0.10 and 0.12, 6e-7 and 1.1e-3 were measured.
RTOL = {"float32": 1e-5, "bfloat16": 5e-3}
CONFIGS = {
    "mul, mlp": {"model.merge": "mul"},
    "mul, ResNet-8": {"model.merge": "mul", "model.name": "resnet", "model.depth": 8},
    "gate_sig, LayerNorm, AdamW": {"model.merge": "gate_sig", "model.norm": "ln", "optimizer.name": "adamw"},
    "add, ResNet-8, bfloat16": {"model.name": "resnet", "model.depth": 8, "dtype": "bfloat16"},
    "attnres, mixup, clipped": {"model.merge": "attnres", "dataset.mixup": 0.2, "optimizer.clip_norm": 1.0},
    "mul_bn1, MSE, dropout": {"model.merge": "mul_bn1", "loss.name": "mse", "model.dropout": 0.2},
}


def first_losses(entries) -> list[float]:
    """Of one replica, step by step."""
    config = tiny(**{"epochs": 4, "seeds": 1} | entries)
    task, dataset = task_of(config)
    replicas = mesh.Replicas(config)
    x = replicas.copy(jnp.zeros((1, 8, 8, 1)))
    states = replicas.compile(partial(step.init, task))(x, replicas.spread(jnp.arange(1, dtype=jnp.int32)))
    train, losses = replicas.compile_training(partial(step.train_steps, task)), []
    for i in range(STEPS):
        zeros = replicas.spread(jax.tree.map(lambda zero: zero[None], step.Sums.zeros()))
        states, sums = train((loop._examples(dataset.train), jnp.int32(i), jnp.int32(i + 1)), (states, zeros))
        losses.append(float(sums.loss[0]))
    return losses


@pytest.mark.parametrize("name", quick(["mul, mlp"], CONFIGS))
def test_the_first_losses_are_those_on_record(name):
    platform, found = jax.default_backend(), first_losses(CONFIGS[name])
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("RESJAX_WRITE_GOLDEN"):
        golden.setdefault(platform, {})[name] = found
        FILE.write_text(json.dumps(golden, indent=1) + "\n")
    elif platform not in golden:
        pytest.skip(f"no losses are on record for {platform}: the docstring says how to write them")
    np.testing.assert_allclose(
        found, json.loads(FILE.read_text())[platform][name], rtol=RTOL[CONFIGS[name].get("dtype", "float32")]
    )
