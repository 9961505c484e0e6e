"""The run directory: every file of a run, who may write it, and what is left of an earlier try."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ml_collections import ConfigDict

from resjax import config as config_lib
from resjax import records
from resjax.config import ConfigError
from resjax.data import dataset

FINISHED = ("done", "diverged")


class BusyError(ConfigError):
    """Another process writes the run directory."""


def path_of(config: ConfigDict, workdir: str | os.PathLike) -> Path:
    """WORKDIR/<name>-<hash8>."""
    return Path(workdir) / f"{config.name}-{config_lib.hash8(config)}"


class RunDir:
    """The directory of one run, locked while this object is open (a context manager).

    Raises:
      ConfigError: it can't be written.
      BusyError: another process writes it.
    """

    def __init__(self, config: ConfigDict, workdir: str | os.PathLike):
        self.config, self.path = config, path_of(config, workdir)

    def __enter__(self) -> "RunDir":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "LOCK", "a+")  # noqa: SIM115 - held until __exit__
        except OSError as e:
            workdir = self.path.parent
            why = f"{workdir} is a link to nothing" if workdir.is_symlink() and not workdir.exists() else e.strerror
            raise ConfigError(f"cannot write {self.path}: {why}; choose another --workdir") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if not isinstance(e, BlockingIOError):
                self._lock.close()
                raise ConfigError(f"cannot lock {self.path}: {e.strerror}; choose another --workdir") from None
            self._lock.seek(0)
            writer = self._lock.read().strip() or "?"
            self._lock.close()
            raise BusyError(f"{self.path} is being written by process {writer}") from None
        try:
            self._take_over()
        except BaseException:
            self._lock.close()
            raise
        return self

    def _take_over(self) -> None:
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()} on {platform.node()}")
        self._lock.flush()
        for left in self.path.glob(records.TEMPORARY):  # by a process that was killed while it wrote
            left.unlink()
        file, own = self.path / records.CONFIG, json.loads(config_lib.to_json(self.config))
        if not file.exists():
            _write_json(file, own)
        elif differing := config_lib.differences(_read_json(file), own):
            raise ConfigError(
                f"{self.path} holds a run of another config ({'; '.join(differing)}): choose another --workdir"
            )

    def __exit__(self, *_):
        self._lock.close()

    def write_status(self, status: str, epoch: int, diverged: dict[int, int] | None = None) -> None:
        """`diverged`: seed -> epoch in which its loss or gradient was no longer finite."""
        reasons = {str(seed): f"loss or gradient not finite in epoch {at}" for seed, at in (diverged or {}).items()}
        content = {"status": status, "epoch": epoch, "epochs": self.config.epochs, "diverged": reasons}
        _write_json(self.path / records.STATUS, content)

    def write_env(self, *, continued: bool, **devices) -> list[str]:
        """Records what a number depends on beside the config, and `devices`.

        Returns:
          What has changed since a run that is `continued` began; env.json then keeps both.
        """
        file, now = self.path / records.ENV, environment() | devices
        if not (continued and file.exists()):
            _write_json(file, now)
            return []
        began = _read_json(file)
        if _changes(began.get("continued", [began])[-1], now):
            _write_json(file, began | {"continued": [*began.get("continued", []), now]})
        return _changes(began, now)

    def append_metrics(self, rows: list[dict]) -> None:
        """Adds rows to metrics.jsonl."""
        self._append(self.path / records.METRICS, rows)

    def append_probed(self, name: str, rows: list[dict]) -> None:
        """Adds rows of a probe to its own file."""
        self._append(self.path / records.probe_file(name), rows)

    def _append(self, path: Path, rows: list[dict]) -> None:
        with _writing(path), open(path, "a") as file:
            file.writelines(_line(row) for row in rows)

    def keep_metrics_until(self, epoch: int) -> tuple[list[dict], int]:
        """Forgets the rows of later epochs, probes' too, which will be trained again, and a row cut short.

        Returns:
          The rows of metrics that stay, and the number of those that don't.

        Raises:
          ConfigError: a row that should stay can't be read.
        """
        for path in self.path.glob(records.PROBES):
            self._keep_until(path, epoch)
        return self._keep_until(self.path / records.METRICS, epoch)

    def _keep_until(self, path: Path, epoch: int) -> tuple[list[dict], int]:
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        rows = [_row(line) for line in lines]
        kept = [row for row in rows if row and row["epoch"] <= epoch]
        if None in rows[: len(kept)]:
            raise ConfigError(f"{path} is damaged in line {rows.index(None) + 1}: to start over, delete {self.path}")
        with _writing(path), records.replacing(path) as temporary:
            temporary.write_text("".join(_line(row) for row in kept))
        return kept, len(rows) - len(kept)

    def write_summary(self, summary: dict) -> None:
        """Writes summary.json."""
        _write_json(self.path / records.SUMMARY, summary)


def _row(line: str) -> dict | None:
    """A row of metrics; None if it was cut short or damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("epoch")) is int else None


def _line(row: dict) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        why = f"{path} can't be written ({e.strerror}): what was there is untouched"
        raise OSError(f"{why}, and the same command continues from the last checkpoint") from e


def _write_json(path: Path, content: dict) -> None:
    with _writing(path):
        records.write_json(path, content)


def wait_until_free(path: Path) -> None:
    """Returns when no process writes the run directory, which is looked at every other second."""
    with open(path / "LOCK", "a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(2)


def read_status(path: Path) -> dict:
    """status.json of a run directory; {} where there is none."""
    file = path / records.STATUS
    try:
        return _read_json(file) if file.exists() else {}
    except OSError as e:  # of exists(): the directory can't be entered
        raise ConfigError(f"cannot read {file}: {e.strerror}; choose another --workdir") from None


def _read_json(file: Path) -> dict:
    try:
        return records.decoded(file.read_text(errors="replace"), str(file))
    except OSError as e:
        raise ConfigError(f"cannot read {file}: {e.strerror}; choose another --workdir") from None
    except ConfigError:
        raise ConfigError(f"{file} is damaged: delete that file, and the same command continues the run") from None


def check_finished(path: Path, config: ConfigDict) -> None:
    """As `check_data`, for a run that needs no data any more: data that are not here contradict nothing."""
    if _data_of(path):
        try:
            now = _digest_of(config.dataset.to_json())
        except ConfigError:
            return
        check_data(path, now)


@cache
def _digest_of(section: str) -> str:
    return dataset.digest(dataset.load(ConfigDict(json.loads(section))))


def _data_of(path: Path) -> str:
    """The digest of the data that a run was begun on; "" where env.json has none."""
    file = path / records.ENV
    return _read_json(file).get("data", "") if file.exists() else ""


def check_data(path: Path, digest: str) -> None:
    """Raises ConfigError if the run there was begun on other data than that of this digest."""
    if (began := _data_of(path)) not in ("", digest):
        raise ConfigError(
            f"{path} holds a run on other data of the same name (digest {began}, now {digest}): choose another"
            " --workdir, or the data_dir that it was begun with"
        )


_WHERE = ("commit", "dirty", "xla_flags", "cpu", "cores", "device", "device_count", "processes")


def _changes(began: dict, now: dict) -> list[str]:
    """The entries of two environments on which bits depend and that differ, in words."""

    def entries(env: dict) -> dict:
        return env.get("versions", {}) | env.get("jax", {}) | {key: env[key] for key in _WHERE if key in env}

    old, new = entries(began), entries(now)
    return [f"{key} {new[key]} (began with {old[key]})" for key in new if key in old and old[key] != new[key]]


_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_PACKAGES += ("scikit-learn", "tensorflow-datasets", "pillow")  # they read digits and images


def environment() -> dict:
    """Commit, versions and command line of this process."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except OSError:  # no git here
        commit = changes = None
    return {
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
        "versions": {"python": sys.version.split()[0]} | {package: _version(package) for package in _PACKAGES},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "cpu": _cpu(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name: XLA compiles for what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
