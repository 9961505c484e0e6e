"""The flags that every study has, and the config of a cell that they make.

A cell is one config. Its run is found again by its hash: the same command continues an interrupted study.
"""

import argparse
import ast
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from resjax import config as config_lib
from resjax.analysis import tables
from resjax.config import ConfigError
from resjax.sweep import launchers

RATES = (0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # the grid of a study that tunes
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
        "merges": {"default": "core", "metavar": "A,B", "help": "core, streams, all, or names; %(default)s"},
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
    text = ",".join(map(str, RATES))
    p.add_argument("--rates", type=numbers, default=RATES, metavar="R,R", help=f"to choose among, and beyond; {text}")
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
    """A comma list of names in `resjax.models.merges.MERGES` and of groups. Raises ConfigError.

    `core`: the core of the comparison; `all`: the catalogue of two operands; `streams`: merges over depth and streams.
    """
    groups = {
        "core": [name for name, merge in registry.items() if merge.core],
        "streams": [name for name, merge in registry.items() if merge.recent],
        "all": [name for name, merge in registry.items() if not merge.recent],
    }
    words = chosen("--merges", text, [*groups, *registry])
    return list(dict.fromkeys(name for word in words for name in groups.get(word, [word])))


def chosen(flag: str, text: str, allowed: list[str]) -> list[str]:
    """The words of a comma list, all of which must be allowed. Raises ConfigError."""
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    for name in names or [""]:
        if name not in allowed:
            raise ConfigError(f"{flag}: unknown {name!r}; choose from {', '.join(allowed)}")
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
    said = given(args)
    for key in keys:
        if key in said:
            raise ConfigError(f"{said[key]}: the study decides it")


def given(args: argparse.Namespace) -> dict[str, str]:
    """The entries that the command line sets -> the flag that does."""
    said = {key: f"--{name}" for name, key in _SHORTCUTS.items() if getattr(args, name) is not None}
    return said | {text.partition("=")[0]: f"--set {text.partition('=')[0]}" for text in args.set}


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
