"""What the experiments share: their flags, and running the cells of a study.

A cell is one config. Its run is found again by its hash: the same command continues an interrupted study.
"""

import argparse
import ast
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict
from rich.console import Console

from resjax import config as config_lib
from resjax.analysis import plots, tables
from resjax.config import ConfigError
from resjax.sweep import launchers
from resjax.sweep.board import Board, duration
from resjax.training import interrupt, rundir

RATES = "0.003,0.006,0.012,0.025,0.05,0.1,0.2,0.4,0.8,1.6,3.2"  # the grid of a study that tunes
Train = Callable[[ConfigDict, str | os.PathLike], Path]
DATASETS = [name for name, entries in config_lib.PRESETS.items() if "dataset.name" in entries]


def parser(module: str, description: str, smoke: Mapping) -> argparse.ArgumentParser:
    """The flags every experiment has. `smoke`: what --smoke gives them where the command line does not."""
    p = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(smoke_defaults=dict(smoke))
    flags = {
        "datasets": {"default": "digits", "metavar": "A,B", "help": f"of {', '.join(DATASETS)}; %(default)s"},
        "merges": {"default": "core", "metavar": "A,B", "help": "core, all, or names; %(default)s"},
        "workdir": {"default": "runs", "metavar": "DIR", "help": "of the run directories; %(default)s"},
        "out": {"metavar": "PATH", "help": "how the names of tables and figure begin; %(default)s"},
        "smoke": {"action": "store_true", "help": "a small study of two minutes on two CPU cores"},
        "set": {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "an entry; repeatable"},
    }
    for name, options in flags.items():
        p.add_argument(f"--{name}", **options)
    reference = config_lib.flat(config_lib.base())
    group = p.add_argument_group("short for --set", ", ".join(f"--{name}=N" for name in _SHORTCUTS))
    for name, key in _SHORTCUTS.items():
        group.add_argument(f"--{name}", type=type(reference[key]), help=argparse.SUPPRESS)
    launchers.add_flags(p)
    return p


_SHORTCUTS = {name: key for name, key in config_lib.ALIASES.items() if name != "merge"}


def add_rates(p: argparse.ArgumentParser) -> None:
    """The flags of a study whose rates must be inside their grid."""
    p.add_argument("--rates", default=RATES, metavar="R,R", help="to choose among, and beyond; %(default)s")
    p.add_argument("--allow_edge", action="store_true", help="a rate at the edge of those tried may be chosen")


def numbers(text: str) -> tuple[float, ...]:
    """`.1,3` -> (0.1, 3.0)."""
    return tuple(float(word) for word in text.split(","))


def whole_numbers(text: str) -> tuple[int, ...]:
    """`8,14` -> (8, 14)."""
    return tuple(int(word) for word in text.split(","))


def parse(p: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags; what --smoke gives yields to what the command line says."""
    args = p.parse_args(argv)
    if args.smoke:
        p.set_defaults(**args.smoke_defaults)
        args = p.parse_args(argv)
    return args


def recorded(p: argparse.ArgumentParser, out: str | os.PathLike) -> argparse.Namespace:
    """The flags with which the study was started that wrote OUT.csv."""
    return parse(p, shlex.split(tables.read_header(f"{out}.csv")["command"])[3:])  # after python -m MODULE


def datasets(text: str) -> list[str]:
    """The presets of a comma list. Raises ConfigError."""
    return chosen("--datasets", text, DATASETS)


def merges(text: str, registry: Mapping) -> list[str]:
    """`core`, `all` or a comma list of `resjax.models.merges.MERGES`. Raises ConfigError."""
    if text in ("core", "all"):
        return [name for name, merge in registry.items() if text == "all" or merge.core]
    return chosen("--merges", text, list(registry), "core, all, ")


def chosen(flag: str, text: str, allowed: list[str], more: str = "") -> list[str]:
    """The words of a comma list, all of which must be allowed; `more` is named beside these. Raises ConfigError."""
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    for name in names or [""]:
        if name not in allowed:
            raise ConfigError(f"{flag}: unknown {name!r}; choose from {more}{', '.join(allowed)}")
    return names


def config(args: argparse.Namespace, dataset: str, merge: str, **entries) -> ConfigDict:
    """The checked config of a cell: preset, then the command line, then `entries`. Raises ConfigError.

    It is named after its merge, as those of configs/ are, so that runs made by resjax.main count as well.
    """
    c = config_lib.with_preset(config_lib.base(), dataset)
    c.model.merge = c.name = merge
    given = {key: getattr(args, name) for name, key in _SHORTCUTS.items() if getattr(args, name) is not None}
    try:
        c.update_from_flattened_dict(given | dict(_setting(c, text) for text in args.set) | entries)
    except TypeError as error:
        raise ConfigError(f"--set: {error}") from None
    config_lib.check(c)
    return c


def refuse(args: argparse.Namespace, keys: Iterable[str]) -> None:
    """Raises ConfigError if the command line sets one of these entries, which the study decides itself."""
    given = {key: f"--{name}" for name, key in _SHORTCUTS.items() if getattr(args, name) is not None}
    given |= {text.partition("=")[0]: f"--set {text.partition('=')[0]}" for text in args.set}
    for key in keys:
        if key in given:
            raise ConfigError(f"{given[key]}: the study decides it")


def _setting(c: ConfigDict, text: str) -> tuple[str, object]:
    """`model.depth=14` -> ("model.depth", 14), with the type the entry has; an unset one holds a number."""
    key, _, word = text.partition("=")
    values = config_lib.flat(c)
    if key in ("name", "model.merge", "dataset.name"):
        raise ConfigError(f"--set {text}: use --merges and --datasets")
    if key not in values:
        raise ConfigError(f"--set {text}: no config entry {key!r}; they are in resjax/config.py")
    old = values[key]
    if isinstance(old, str):
        return key, word
    try:
        value = ast.literal_eval(word)
        if isinstance(value, int) and not isinstance(value, bool) and isinstance(old, float):
            value = float(value)  # or 1 and 1.0 would be two runs
    except (ValueError, SyntaxError, OverflowError, MemoryError, RecursionError):
        raise ConfigError(f"--set {text}: {word!r} is not a value like {old!r}") from None
    if isinstance(old, tuple) and isinstance(value, (int, float)):
        value = (value,)
    return key, value


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
      label: the cell in words.
      config: of the cell.
      run_dir: None if it failed.
      table: `tables.summary` of it, with `reason`; one row without a seed if it failed.
      trained: whether it was trained now; False if it had been finished before, or failed.
    """

    label: str
    config: ConfigDict
    run_dir: Path | None
    table: pd.DataFrame
    trained: bool

    @property
    def reason(self) -> str:
        """Why the cell is incomplete; "" if it is not."""
        return "; ".join(dict.fromkeys(filter(None, self.table["reason"])))


def trainer(launcher: launchers.Launcher, config: ConfigDict, register: Callable[[], None] | None = None) -> Train:
    """The real one. JAX starts here, for runs of `config`, or in each job if these are other processes.

    `register` registers the study's own merges, where nets are trained; module-level, for jobs find it by its name.
    """
    if launcher is not launchers.in_this_process:
        import jax

        jax.config.update("jax_platforms", "cpu")  # of this process: the accelerators are the jobs'
        return partial(_start_and_train, register=register)
    from resjax.training import loop, startup

    startup.start(config)
    if register:
        register()
    return loop.train


def _start_and_train(config: ConfigDict, workdir: str | os.PathLike, register: Callable[[], None] | None) -> Path:
    from resjax.training import loop, startup

    startup.start(config)
    if register:
        register()
    return loop.train(config, workdir)


def run(
    cells: Mapping[str, ConfigDict],
    train: Train,
    workdir: str,
    console: Console,
    launcher: launchers.Launcher = launchers.in_this_process,
) -> list[Outcome]:
    """Trains, continues or reuses the cells (label -> config); a failing cell does not stop the others.

    Raises:
      ConfigError: two cells are the same run, or a cell that trains in this process can't work as it is configured.
      KeyboardInterrupt: the study was told to stop; what its runs had done is saved.
    """
    labels: dict[str, str] = {}
    for label, c in cells.items():
        if (same := labels.setdefault(config_lib.hash8(c), label)) != label:
            raise ConfigError(f"{same!r} and {label!r} are the same run: they have equal configs")
    paths = {label: rundir.path_of(c, workdir) for label, c in cells.items()}
    finished = [label for label in cells if rundir.read_status(paths[label]).get("status") in rundir.FINISHED]
    jobs = {label: partial(train, c, workdir) for label, c in cells.items() if label not in finished}
    outcomes = {}
    # A training in this process draws its own progress.
    with Board(cells, console, live=console.is_terminal and launcher is not launchers.in_this_process) as board:

        def ended(label: str, outcome: Outcome, past: str = "") -> None:
            outcomes[label] = outcome
            state, words = ("done", [past, _accuracy(outcome.table)]) if outcome.run_dir else ("failed", [])
            board.show(launchers.Event(label, state, outcome.reason), ", ".join(filter(None, words)))

        for label in finished:
            ended(label, _finished(label, cells[label], paths[label], trained=False), "finished before")
        for event in launcher(jobs):
            label = event.label
            if isinstance(event.error, ConfigError):  # what the user asked for can't work: say so, and write nothing
                raise event.error
            if event.state == "running":
                board.show(event)
            elif event.state == "done":
                ended(label, _finished(label, cells[label], paths[label], trained=True))
            else:
                ended(label, _failed(label, cells[label], event.reason))
    return [outcomes[label] for label in cells]


def _finished(label: str, c: ConfigDict, run_dir: Path, trained: bool) -> Outcome:
    try:
        table = tables.summary([run_dir])
        words = table["seed"].map("seed {} diverged in epoch ".format) + table["epoch"].astype(str)
        table["reason"] = words.where(table["status"] == "diverged", "")
        if not (run_dir / "curves.png").exists():
            plots.curves(run_dir)
        return Outcome(label, c, run_dir, table, trained)
    except Exception as error:  # its files can't be read, or the disk is full
        return _failed(label, c, launchers.reason(label, error))


def _failed(label: str, c: ConfigDict, reason: str) -> Outcome:
    row = tables.config_columns(c) | {"status": "failed", "reason": reason}
    table = pd.DataFrame([row], columns=[*tables.summary([]).columns, "reason"])
    return Outcome(label, c, None, table, trained=False)


def _accuracy(table: pd.DataFrame) -> str:
    """Validation accuracy where the cell has one: it serves a choice, in which the test set has no say."""
    for name in ("validation_accuracy", "OA"):
        present = table[name].dropna()
        if len(present):
            return f"{name} {100 * present.mean():.2f} % (n = {len(present)})"
    return "no accuracy"


def table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row per (cell, seed), as `tables.summary` has them, with `reason`; a failed cell has one row."""
    filled = [o.table.dropna(axis="columns", how="all") for o in outcomes]  # pandas warns of empty columns
    return pd.concat(filled, ignore_index=True).reindex(columns=[*tables.summary([]).columns, "reason"])


def header(module: str, argv: Sequence[str], outcomes: Sequence[Outcome], seconds: float) -> dict[str, str]:
    """What the tables say of their origin."""
    trained = sum(o.trained for o in outcomes)
    return {
        "command": shlex.join(["python", "-m", module, *argv]),
        **tables.provenance(o.run_dir for o in outcomes if o.run_dir),
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "wall time": f"{duration(seconds)}, in which {trained} of {len(outcomes)} cells were trained",
    }


def header_of_measured(module: str, argv: Sequence[str], seconds: float) -> dict[str, str]:
    """What the tables of a study without trained cells say of their origin: they were made here and now."""
    import jax

    environment = rundir.environment()
    return {
        "command": shlex.join(["python", "-m", module, *argv]),
        "commit": f"{environment['commit'] or 'unknown'}{' (with changes)' if environment['dirty'] else ''}",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "wall time": duration(seconds),
    }


def exit_code(error: ConfigError | KeyboardInterrupt) -> int:
    """Says in one line why a study ended early; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        with contextlib.suppress(OSError):  # who read this may be gone, as `tee` is after Ctrl-C
            print("stopped; the same command continues", file=sys.stderr)
        return interrupt.exit_code(error)
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2
