"""What has to be settled before JAX computes: CPU devices, reproducible bits, other hosts, the compilation cache."""

import math
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.runtime import hosts

NEEDED = {"jax_enable_x64": False, "jax_disable_jit": False, "jax_numpy_dtype_promotion": "standard"}
BITS = (  # settings on which bits depend
    "jax_default_matmul_precision", "jax_default_prng_impl", "jax_disable_most_optimizations",
    "jax_threefry_partitionable",
)  # fmt: skip


def start(config: ConfigDict, distributed: str = "") -> None:
    """Prepares JAX for runs of `config`; the first call of a process, before anything is computed.

    Args:
      config: parallel, seeds, batch_devices and deterministic are read.
      distributed: see `hosts.connect`.

    Raises:
      ConfigError: JAX was told what runs can't do, or finds no device as it was told; the other hosts can't be reached.
    """
    for name, needed in NEEDED.items():
        if (value := getattr(jax.config, name)) != needed:
            raise ConfigError(f"{name.upper()}={value}: runs need {needed}; unset it")
    flags = os.environ.get("XLA_FLAGS", "")
    if config.deterministic and "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if "xla_force_host_platform_device_count" not in flags and (count := cpu_devices(config, cores())):
        jax.config.update("jax_num_cpu_devices", count)
    hosts.connect(distributed)
    if platforms := jax.config.jax_platforms:
        try:
            jax.devices()
        except (RuntimeError, AssertionError) as error:  # the second has no words
            why = " ".join(str(error).split()) or "no such device is here"
            raise ConfigError(f"JAX_PLATFORMS={platforms}: {why}") from None


def cpu_devices(config: ConfigDict, cores: int) -> int:
    """How many devices the CPU is divided into; 0: as JAX has it.

    Small nets leave cores idle within one operation. So there is a device per core, as far as the number of seeds
    divides, and each trains replicas of its own, unless config.batch_devices asks for devices that share a batch.
    """
    parts = config.batch_devices or 1
    if parts > cores or (config.parallel == "pmap" and parts == 1):
        return 0
    return parts * (1 if config.parallel == "pmap" else math.gcd(config.seeds, cores // parts))


def settings() -> dict[str, str | bool | None]:
    """JAX's settings on which bits depend, by name."""
    return {name: jax.config.values.get(name) for name in BITS}


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_compiled_programs(directory: str) -> None:
    """Turns on JAX's persistent compilation cache, unless the user has set one up.

    What lies there is executed: a directory that others can write to is not used.
    """
    if directory == "none" or jax.config.jax_compilation_cache_dir:
        return
    path = Path(directory or "~/.cache")
    try:
        if directory:
            path = config_lib.usable_path("config.compilation_cache", directory)
        else:
            path = config_lib.user_cache() / "resjax" / "compiled"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(None, "others can write to it")
    except OSError as error:
        why = f"no compiled programs are kept in {path}: {error.strerror}; see config.compilation_cache"
        print(f"warning: {why}", file=sys.stderr)
        return
    # An entry that can't be written or was cut short costs a compilation, each time until it is deleted; no more.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@contextmanager
def own_names() -> Iterator[None]:
    """Programs compiled in the body tell the names of today's source; kept ones may have those of an older one."""
    before = jax.config.jax_compilation_cache_include_metadata_in_key
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_include_metadata_in_key", before)
