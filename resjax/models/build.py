"""From config.model to a net."""

import difflib
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from resjax.config import ConfigError
from resjax.models.layers import Linear, Norm
from resjax.models.merges import MERGES, Merge
from resjax.models.resnet import Block, ResNet


def check(model: ConfigDict) -> None:
    """Raises ConfigError if config.model.merge names no registered merge, or merge_blocks exceeds the blocks."""
    if model.merge not in MERGES:
        close = difflib.get_close_matches(model.merge, MERGES, n=3) or MERGES
        raise ConfigError(f"config.model.merge={model.merge!r}: no such merge; did you mean {', '.join(close)}?")
    depth = sum(blocks for blocks, _, _ in _stages(model))
    if model.merge_blocks and MERGES[model.merge].connection:
        raise ConfigError(
            f"config.model.merge_blocks={model.merge_blocks}: {model.merge} reads the outputs of all blocks; use 0"
        )
    if model.merge_blocks > depth:
        raise ConfigError(f"config.model.merge_blocks={model.merge_blocks}: the net has {depth} blocks")


def build(model: ConfigDict, num_classes: int, *, dtype: str = "float32", axis_name: str | None = None) -> nn.Module:
    """The net that `config.model` describes.

    Its `apply(variables, x, train=False)` maps images [B, H, W, C] (or [B, ...] for an mlp) to logits
    [B, num_classes], float32 or wider. Collections: params, batch_stats (norm="bn"), schedule (scheduled merges).

    Args:
      model: config.model.
      num_classes: K.
      dtype: of the computation; parameters are float32.
      axis_name: the pmap axis that BatchNorm averages over.

    Raises:
      ConfigError: unknown merge, or more `merge_blocks` than blocks.
    """
    check(model)
    compute = jnp.dtype(dtype)
    linear = partial(Linear, dtype=compute)
    norm = partial(Norm, model.norm, dtype=compute, axis_name=axis_name)
    block = partial(
        Block,
        granularity=model.granularity,
        shortcut=model.shortcut,
        activation=model.activation,
        post_activation=model.post_activation,
        dropout=model.dropout,
        linear=linear,
        norm=norm,
        dtype=compute,
    )
    return ResNet(
        stages=_stages(model),
        num_classes=num_classes,
        block=partial(block, **_merge(model, MERGES[model.merge])),
        other=partial(block, **_merge(model, MERGES["add"])),
        merge_blocks=model.merge_blocks,
        connection=MERGES[model.merge].connection,
        linear=linear,
        norm=norm,
        activation=model.activation,
        head=model.head,
        vectors=model.name == "mlp",
        front=model.front,
        dtype=compute,
    )


def _merge(model: ConfigDict, merge: Merge) -> dict:
    """What a block with this merge needs to know of it."""
    return {
        "merge": merge,
        "scale": merge.branch_scale if model.scale is None else model.scale,
        "gate_bias": merge.extra_bias if model.gate_bias is None else model.gate_bias,
    }


def _stages(model: ConfigDict) -> tuple[tuple[int, int, int], ...]:
    """(blocks, features, first stride) of each stage (He et al. 2016, table 6 for the CIFAR family)."""
    if model.name == "mlp":
        return (((model.depth - 2) // 2, model.width, 1),)
    if model.name == "resnet18":
        return tuple((2, model.width * 2**i, 1 if i == 0 else 2) for i in range(4))
    return tuple(((model.depth - 2) // 6, model.width * 2**i, 1 if i == 0 else 2) for i in range(3))
