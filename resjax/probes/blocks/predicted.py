"""What the theory of signal propagation says of the net of a config: the columns of `propagation` that it knows."""

from dataclasses import replace

from jax.nn import relu
from ml_collections import ConfigDict

from resjax.config import ConfigError
from resjax.models.build import build
from resjax.models.layers import ACTIVATIONS
from resjax.models.merges import MERGES, Merge
from resjax.theory import mean_field, population
from resjax.theory.laws import gaussian

LIMIT = 30  # blocks
MOMENTS = ("mean", "power", "kurtosis", "typical", "alive")


def predicted(model: ConfigDict) -> list[dict]:
    """A row per block at initialisation: its name, the MOMENTS of its z, and the gain.

    [] for nets that the theory does not describe: another merge or norm, an activation after the merge (its z is the
    one after that), dropout, blocks of several merges, and changes of shape by zero-padding.

    Args:
      model: config.model.
    """
    stages = build(model, 1).stages
    if not _described(model) or (model.shortcut == "A" and len(stages) > 1):
        return []
    merge, kwargs = _in_theory(model)
    theory = population if merge.connection else mean_field
    try:
        found = theory.stages(merge, [count for count, _, _ in stages], **kwargs)
    except ConfigError:
        return []
    names = (f"stage{i}_block{j}" for i, (count, _, _) in enumerate(stages, 1) for j in range(1, count + 1))
    return [
        {"block": name} | {moment: getattr(b.z, moment) for moment in MOMENTS} | {"gain": b.gain}
        for name, b in zip(names, found, strict=True)
    ]


def safe_depth(model: ConfigDict) -> int | None:
    """`mean_field.safe_depth` of blocks of equal shapes, counted from the first z; at most LIMIT.

    None as [] of `predicted`, and for connections.
    """
    merge, kwargs = _in_theory(model)
    if merge.connection or not _described(model):
        return None
    first = mean_field.blocks(merge, gaussian().through(relu), 1, **kwargs)[0]
    return mean_field.safe_depth(merge, first.z, limit=LIMIT, **kwargs)


def _described(model: ConfigDict) -> bool:
    return model.post_activation == "none" and not model.dropout and not model.merge_blocks


def _in_theory(model: ConfigDict) -> tuple[Merge, dict]:
    """The merge at its init, and the keywords of `mean_field.block`."""
    given = {"branch_scale": model.scale, "extra_bias": model.gate_bias}
    merge = replace(MERGES[model.merge], **{name: value for name, value in given.items() if value is not None})
    return merge, {"norm": model.norm, "activation": ACTIVATIONS[model.activation]}
