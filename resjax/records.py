"""Files that are written whole or not at all, JSON that is read or called damaged, and the names in a run directory."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resjax.config import ConfigError

CONFIG, ENV, STATUS, SUMMARY = "config.json", "env.json", "status.json", "summary.json"
METRICS = "metrics.jsonl"
CURVES = "curves.png"
PROFILE = "profile"  # a folder: a trace, and
STEPS = "steps.csv"
PROBES = "probe_*.jsonl"  # of all probes
TEMPORARY = ".*.[0-9]*.*"  # what a process that was killed while it wrote has left


def probe_file(name: str) -> str:
    """Of the probe with this name."""
    return PROBES.replace("*", name)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path with the suffix of `path`; what is written there replaces `path` if the body succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Writes whole or not at all. NaN is refused: JSON has none."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path) -> dict:
    """A JSON object. Raises ConfigError with the path if it is missing or damaged."""
    return decoded(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a file. Raises ConfigError with the path if it is missing or no text."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or 'not text'}") from None


def decoded(text: str, where: str) -> dict:
    """The JSON object that `text` is. Raises ConfigError that names `where` it stands."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: not a JSON object")
    return content
