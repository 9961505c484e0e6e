"""How much memory a compiled program takes, and how much there is."""

import os

import jax


def of_program(compiled: jax.stages.Compiled) -> int:
    """Bytes on each device while the program runs: its arguments, results and temporary arrays."""
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes  # an alias takes the memory of an argument
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes


def of_device(device: jax.Device) -> int | None:
    """Bytes that a device has, the machine's own for a CPU; None if it does not tell."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit")


def estimate(compiled: jax.stages.Compiled, devices: list[jax.Device]) -> tuple[str, str]:
    """What the program takes on these devices of this host, in words; and a warning if that is more than they have."""
    size, available = of_program(compiled), of_device(devices[0])
    shared = devices[0].platform == "cpu"  # CPU devices share the machine's memory
    size, each = (size * len(devices), "") if shared else (size, " on each" if len(devices) > 1 else "")
    said, warning = f"{in_words(size)} of arrays{each} at most", ""
    if available and size > available:
        less = "fewer config.seeds, a smaller config.batch_size or config.replicas=map take less"
        warning = f"training takes {in_words(size)} of memory{each}, of {in_words(available)}: {less}"
    return said, warning


def in_words(size: int) -> str:
    """Such as 412 MB or 1.5 GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
