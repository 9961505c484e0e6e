"""The flags of `python -m resjax.main`, and one line for whatever is wrong with them."""

import difflib
import re
import warnings

from absl import flags
from ml_collections import ConfigDict, config_flags

from resjax.config import ConfigError, base, check, flat, usable_path


def parse(argv: list[str]) -> tuple[ConfigDict, str, str, bool]:
    """The checked config, the workdir, --distributed and --profile.

    A config file is the user's code: whatever it raises becomes one line.

    Raises:
      ConfigError: a flag, the file, or a value of the config can't work.
    """
    _check_words(argv[1:])
    try:
        return _parse(argv)
    except ModuleNotFoundError as e:
        hint = ": run from the folder that holds configs/" if e.name == "configs" else ""
        raise ConfigError(f"--config: {e}{hint}") from None
    except Exception as e:
        raise ConfigError(_said(e)) from None


def _check_words(words: list[str]) -> None:
    """Refuses keys that no config has, and all but one file: config_flags would mix the entries of two."""
    keys = flat(base())
    for word in words:
        if (given := re.match(r"--?(?:no)?config\.([^=]*)", word)) and (key := given[1]) not in keys:
            near = ", ".join(f"config.{k}" for k in difflib.get_close_matches(key, keys))
            raise ConfigError(f"config.{key}: no such entry" + (f"; did you mean {near}?" if near else ""))
    files = [word for word in words if re.match(r"--?config(=|$)", word)]
    if len(files) != 1:
        raise ConfigError("--config is given twice" if files else "no --config: try --config=configs/mul.py")


def _parse(argv: list[str]) -> tuple[ConfigDict, str, str, bool]:
    values = flags.FlagValues()  # of this call alone: flags.FLAGS has those of the libraries too
    config_flag = config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    workdir = flags.DEFINE_string("workdir", "runs", "", flag_values=values)
    distributed = flags.DEFINE_string("distributed", "", "", flag_values=values)
    profile = flags.DEFINE_bool("profile", False, "", flag_values=values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a value that is read as Python, such as "1if 2else 3"
        rest = values(argv)[1:]
    if rest:
        raise ConfigError(
            f"unexpected argument {rest[0]!r}: options are --config=FILE, --config.KEY=VALUE, --workdir=DIR, "
            "--distributed=SPEC and --profile"
        )
    config = config_flag.value
    if not hasattr(config, "items"):  # raises what kept the file from being read, if anything did
        raise ConfigError(f"--config: get_config() returned {config!r}, which is no ConfigDict")
    check(config)
    return config, str(usable_path("--workdir", workdir.value)), distributed.value, profile.value


def _said(error: Exception) -> str:
    """Its text; what get_config() raised is wrapped by config_flags in a traceback, save OverflowError, and by absl."""
    if isinstance(error, flags.IllegalFlagValueError) and str(error).startswith("flag --config="):
        error = error.__context__.__context__ or error.__context__
    if isinstance(error, (ConfigError, flags.Error)):
        return str(error)
    if isinstance(error, OSError):
        return f"--config: {str(error.__cause__ or error).splitlines()[-1].strip()}"
    if isinstance(error, (MemoryError, RecursionError)):
        return "--config: the file, or a value that is read as Python, is nested too deeply"
    return f"--config: {type(error).__name__}: {error}"
