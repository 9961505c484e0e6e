"""What a parameter is for, by its path in the tree of a net: weight matrices, gates, and the biases before gates."""

from resjax.models.gates import PARAMETER_FREE
from resjax.models.merges import Merge


def is_kernel(path: tuple[str, ...]) -> bool:
    """Whether the parameter at `path` is a weight matrix or filter: what weight decay acts on."""
    return path[-1] == "kernel"


def is_gate_bias(merge: Merge, path: tuple[str, ...]) -> bool:
    """Whether it is the bias of a norm that feeds `merge`, as b of bn1; a projection's own norm is none."""
    feeds = "branch" in path or ("shortcut" in path and merge.shortcut_norm)
    return feeds and "out_norm" in path and path[-1] == "bias"


def is_gate(merge: Merge, path: tuple[str, ...]) -> bool:
    """Whether the gate is computed from it: the third map of `merge` if that has parameters, else the branch."""
    own = merge.extra and merge.extra not in PARAMETER_FREE
    return ("merge" if own else "branch") in path
