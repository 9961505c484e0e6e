"""Several processes that train one run together, on one host or many: they agree, and the first one writes.

Every function is a no-op, or its plain local meaning, where there is one process. Where there are more, all of them
must call it, in the same order.
"""

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from resjax.config import ConfigError

PATIENCE, SILENCE = 300, 10  # seconds for which processes wait for each other, and before they say so


def connect(spec: str) -> None:
    """Joins the other processes.

    Args:
      spec: "" for one process alone; "auto" where JAX finds the others itself (SLURM's srun, Open MPI, TPU pods); else
        HOST:PORT,PROCESSES,INDEX, with host and a free port of process 0.

    Raises:
      ConfigError: the specification is none of these, or JAX refuses it.
    """
    if not spec:
        return
    explicit = {"local_device_ids": gpus_of_the_node(os.environ)} if spec == "auto" else {}
    if spec != "auto":
        try:
            address, count, index = spec.split(",")
            explicit = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
            if not address.rpartition(":")[2].isdigit() or not 0 <= int(index) < int(count) < 2**31:
                raise ValueError
        except ValueError:
            raise ConfigError(f"--distributed={spec}: use auto, or HOST:PORT,PROCESSES,INDEX") from None
    try:
        with _patience(spec):
            jax.distributed.initialize(**explicit, initialization_timeout=2 * PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--distributed={spec}: {error}") from None


@contextmanager
def _patience(spec: str) -> Iterator[None]:
    """Says who is waited for, and ends this process with exit code 2 and one line if nobody comes: JAX would abort."""
    joined = threading.Event()

    def watch() -> None:
        if joined.wait(SILENCE):
            return
        waited_for = f"the other processes of --distributed={spec}"
        print(f"waiting for {waited_for}, for at most {PATIENCE} s", file=sys.stderr, flush=True)
        if not joined.wait(PATIENCE - SILENCE):
            why = f"{waited_for} did not join: start all of them, each of which must reach the address of the first"
            print(f"error: {why}", file=sys.stderr, flush=True)
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def gpus_of_the_node(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs of this node, where SLURM has started one task on each; else None: JAX decides.

    By itself JAX gives a task of SLURM the one GPU that has its number on the node.
    """
    if not re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        return None
    visible = [word for word in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    return list(range(len(visible) or int(environment.get("SLURM_GPUS_ON_NODE") or 0))) or None


def is_first() -> bool:
    """Whether this process writes and prints."""
    return jax.process_index() == 0


def agree(values: tuple[int, ...]) -> np.ndarray:
    """The largest of each of these integers over the processes."""
    if jax.process_count() == 1:
        return np.array(values)
    return multihost_utils.process_allgather(np.array(values, np.int32)).max(0)


def broadcast(value: Any) -> Any:
    """What the first process has, a tree of arrays whose shapes and types are the same everywhere."""
    if jax.process_count() == 1:
        return value
    # As bytes: JAX adds the processes' arrays up, in which -0 becomes 0 and the smallest numbers too.
    as_bytes = jax.tree.map(lambda a: np.ascontiguousarray(a).reshape(-1).view(np.uint8), value)
    sent = multihost_utils.broadcast_one_to_all(as_bytes)
    return jax.tree.map(lambda b, a: np.asarray(b).view(a.dtype).reshape(a.shape), sent, value)


def run_on_first(function: Callable[[], object]) -> object:
    """Calls `function` in the first process alone; all return its result (JSON), or raise its error."""
    if jax.process_count() == 1:
        return function()
    answer: dict = {}
    if is_first():
        try:
            answer = {"result": function()}
        except Exception as error:
            answer = {"error": str(error), "kind": next((k for k, e in _KINDS.items() if isinstance(error, e)), "")}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    length = int(broadcast(np.int32(len(text))))
    padded = text if is_first() else np.zeros(length, np.uint8)
    answer = json.loads(np.asarray(broadcast(padded)).tobytes())
    if "error" in answer:
        raise _KINDS.get(answer["kind"], RuntimeError)(answer["error"])
    return answer["result"]


_KINDS = {"bad input": ConfigError, "system": OSError}


def together(function: Callable[[], object]) -> object:
    """Calls `function` in every process; if it raises in one, all raise, instead of waiting for that one."""
    if jax.process_count() == 1:
        return function()
    result, raised = None, None
    try:
        result = function()
    except Exception as error:
        raised = error
    failed = multihost_utils.process_allgather(np.array(raised is not None))
    if raised is not None:
        raise raised
    if failed.any():
        raise ConfigError(f"process {int(failed.argmax())} can't take part: see what it said")
    return result


def fetch(tree: Any) -> Any:
    """The arrays of `tree` in this host's memory, whole, wherever their parts lie."""

    def whole(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(whole, tree)
