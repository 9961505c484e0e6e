"""To which part of the net, and to which kind of work, an operation of a compiled training step belongs.

XLA keeps with each operation the name of what it was made from: the modules of the net, `jvp(...)` around the forward
pass and `transpose(jvp(...))` around the backward one, and the scopes that `training.step` names. A fused operation has
the name of its last part, and all its time counts there.
"""

import math
import re
from typing import Any, NamedTuple

import jax

from resjax.training.step import DATA, LOSS, OPTIMISER

FORWARD, BY_INPUT, BY_WEIGHTS = "linear", "gradient by input", "gradient by weights"
NORM, ELEMENTWISE, OTHER = "norm", "elementwise", "other"

_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = \(*\w+\[([\d,]*)\].*?(?:op_name=\"([^\"]*)\"|$)", re.M)
_WRAPPED = re.compile(r"^(\w+)\((.*)\)$")


class Operation(NamedTuple):
    """What the program's text says of an operation: the name it was made from, and elements of its (first) result."""

    name: str
    size: int


class Net(NamedTuple):
    """The modules of a net by path: its linear maps, with the elements of their kernels, and its norms."""

    kernels: dict[str, int]
    norms: set[str]


def operations(text: str) -> dict[str, Operation]:
    """HLO name -> operation, of a compiled program's text."""
    return {
        name: Operation(made_from or "", math.prod(int(n) for n in shape.split(",") if n))
        for name, shape, made_from in _OPERATION.findall(text)
    }


def modules(params: Any) -> Net:
    """The modules that have these parameters, of one replica."""
    kernels, norms = {}, set()
    for path, leaf in jax.tree.leaves_with_path(params):
        *module, name = (key.key for key in path)
        if name == "kernel":
            kernels["/".join(module)] = leaf.size
        elif name == "scale":
            norms.add("/".join(module))
    return Net(kernels, norms)


def place(operation: Operation, net: Net, replicas: int = 1) -> tuple[str, str]:
    """(path of the module, kind). What belongs to no module has its kind as path.

    `replicas` are those that one operation computes at once.
    """
    parts = operation.name.split("/")
    bare = [_unwrapped(part)[1] for part in parts]
    for scope in (DATA, OPTIMISER):
        if scope in bare:
            return scope, scope
    of_net = next((i for i, part in enumerate(parts) if "jvp" in _unwrapped(part)[0]), None)
    if of_net is None:
        return OTHER, OTHER
    backward, rest = "transpose" in _unwrapped(parts[of_net])[0], parts[of_net + 1 : -1]
    end = next((i for i, part in enumerate(rest) if "(" in part or part == "while"), len(rest))
    path = "/".join(rest[:end])
    if path in net.norms:
        return path, NORM
    if path not in net.kernels:
        return path or bare[of_net] or LOSS, ELEMENTWISE
    if not backward:
        return path, FORWARD
    # A gradient by the weights is summed in a loop over pieces of the batch, or has the kernel's size; that of the
    # matrix which stands for a convolution of 2x2 maps has 16 taps for the kernel's 9.
    sizes = {n * net.kernels[path] * taps for n in (1, replicas) for taps in (9, 16)}
    return path, BY_WEIGHTS if "while" in rest or 9 * operation.size in sizes else BY_INPUT


def _unwrapped(part: str) -> tuple[list[str], str]:
    """The transformations around a name, and the name: transpose(jvp(ResNet)) -> [transpose, jvp], ResNet."""
    around = []
    while found := _WRAPPED.match(part):
        around.append(found[1])
        part = found[2]
    return around, part
