"""The flags of `python -m resjax.main`, and one line for whatever is wrong with them."""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from resjax.config import ConfigError, check

_CONFIG = config_flags.DEFINE_config_file("config", None, "the config file, then :PRESET")
_WORKDIR = flags.DEFINE_string("workdir", "runs", "root of the run directories")


def parse(argv: list[str]) -> tuple[ConfigDict, str]:
    """The checked config and the workdir. A config file is the user's code: whatever it raises becomes one line.

    Raises:
      ConfigError: a flag, the file, or a value of the config can't work.
    """
    file = next((word.removeprefix("--config=").split(":")[0] for word in argv if word.startswith("--config=")), None)
    if file and not Path(file).exists():
        raise ConfigError(f"--config: there is no file {file}")
    try:
        rest = flags.FLAGS(argv)[1:]
        config = _CONFIG.value
    except ModuleNotFoundError as e:
        hint = ": run from the folder that holds configs/" if e.name == "configs" else ""
        raise ConfigError(f"--config: {e}{hint}") from None
    except (ConfigError, flags.Error) as e:
        raise ConfigError(str(e)) from None
    except (AttributeError, KeyError) as e:
        raise ConfigError(f"--config: no entry {e.args[0]}") from None
    except Exception as e:
        raise ConfigError(f"--config: {type(e).__name__}: {e}") from None
    if rest:
        raise ConfigError(
            f"unexpected argument {rest[0]!r}: options are --config=FILE, --config.KEY=VALUE, --workdir=DIR"
        )
    if config is None:
        raise ConfigError("no --config: try --config=configs/mul.py")
    check(config)
    return config, _WORKDIR.value
