"""The base config, its presets, its allowed values, and its hash. Imports no JAX.

Every number of a run stands here with its unit or reason. `check` turns a bad value into one line; merges are
checked where they live (`resjax.models.build.check`), so that a new merge needs no edit here.
"""

import hashlib
import json
import os
import re
from pathlib import Path

from ml_collections import ConfigDict, config_dict


class ConfigError(ValueError):
    """A value, key or input that can't work; its text is the one line the user sees, whatever it quotes."""

    def __str__(self) -> str:
        text = " ".join(super().__str__().split())
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return text if len(text) <= 2000 else f"{text[:1000]} ... {text[-1000:]}"


def base() -> ConfigDict:
    """The config of `add` on digits; every other run is a small change to it."""
    c = ConfigDict()
    c.name = "add"  # first part of the run directory's name
    c.seed = 0  # base seed; replica i uses seed + i
    c.seeds = 8  # replicas trained by one run
    c.epochs = 40
    c.batch_size = 128  # global: over all devices
    c.eval_every = 1  # epochs between evaluations; the last epoch is always evaluated
    c.early_stopping = 0  # epochs without a lower validation loss before a replica stops; 0: off
    c.dtype = "float32"  # of the computation; parameters and statistics stay float32
    c.parallel = "jit"
    c.replicas = "map"  # how one device goes over its replicas: one by one, or batched
    c.batch_devices = 0  # devices that share a batch; 0: all that the replicas leave over, on a CPU one
    c.checkpoint_seconds = 60.0  # at least this long between two checkpoints; the last epoch is always saved
    c.checkpoint_keep = 2  # newest checkpoints kept
    c.compilation_cache = ""  # compiled programs; "": resjax/compiled in $XDG_CACHE_HOME, else ~/.cache; "none": off
    c.deterministic = True  # GPU: the same bits every time; False is faster

    c.probes = ConfigDict()  # epochs between two measurements of each probe (resjax/probes/registry.py); 0: none
    c.probes.signal = 0
    c.probes.gradients = 0
    c.probes.saturation = 0
    c.probes.curvature = 0
    c.probes.lesion = 0
    c.probes.connections = 0
    c.probes.images = 256  # of the training set, that they look at

    c.dataset = ConfigDict()
    c.dataset.name = "digits"  # digits, cube<d>_degree<k> (data/teachers.py), or any TFDS image-classification set
    c.dataset.labels = "label"  # label feature, such as "coarse_label" of CIFAR-100
    c.dataset.train_size = 0  # training images, balanced and nested; 0: all
    c.dataset.classes = 0  # keep this many classes, chosen by split_seed; 0: all
    c.dataset.validation = 0.0  # share of the training set held out for choices
    c.dataset.split_seed = 0  # of validation split, subset, chosen classes and label noise
    c.dataset.label_noise = 0.0  # share of training labels redrawn uniformly, the true one included; 1: random labels
    c.dataset.augment = "crop"
    c.dataset.crop_padding = 1  # pixels of the random shift
    c.dataset.mixup = 0.0  # alpha of Beta(alpha, alpha); 0: off
    c.dataset.noise = 0.0  # std of Gaussian noise on normalised inputs
    c.dataset.data_dir = ""  # TFDS directory; "": $TFDS_DATA_DIR, else TFDS's default
    c.dataset.cache_dir = ""  # decoded arrays; "": $XDG_CACHE_HOME/resjax, else ~/.cache/resjax

    c.model = ConfigDict()
    c.model.front = "none"  # before the stem: "stn" is a spatial transformer of the images (models/transformer.py)
    c.model.name = "resnet"  # CIFAR family (He et al. 2016), resnet18, or mlp for vector inputs
    c.model.merge = "add"
    c.model.depth = 8  # resnet: 6n+2; mlp: 2n+2 (n residual blocks); resnet18: 18
    c.model.width = 16  # channels of the first stage; hidden units of the mlp
    c.model.norm = "bn"  # of the branch and the shortcut
    c.model.post_activation = "none"  # after the merge; "relu" kills products (docs of merges.py)
    c.model.shortcut = "B"  # at a change of shape: A zero-pads channels, B is a 1x1 convolution
    c.model.activation = "relu"  # inside the branch and after the stem
    c.model.scale = config_dict.placeholder(float)  # init g of the branch's last norm; None: the merge's own
    c.model.gate_bias = config_dict.placeholder(float)  # init, highway and shortcut_gate only; None: their own (-6)
    c.model.granularity = "channel"  # gate_granularity only: what one gate value covers
    c.model.merge_blocks = 0  # blocks that have the merge, spread evenly over the depth, the others add; 0: all
    c.model.dropout = 0.0  # rate inside the branch, between its two layers
    c.model.head = "gap"

    c.optimizer = ConfigDict()
    c.optimizer.name = "nesterov"
    c.optimizer.learning_rate = 0.1  # peak
    c.optimizer.momentum = 0.9  # of momentum, nesterov; decay of rmsprop's and adadelta's averages
    c.optimizer.weight_decay = 5e-4  # of kernels; coupled (added to the gradient), except adamw
    c.optimizer.gate_bias_decay = "none"  # weight decay of the biases of the norms that feed the merge: to0, to1
    c.optimizer.gate_lr = (
        1.0  # multiplier of the learning rate behind the gate: its own module if it has one, else the branch
    )
    c.optimizer.clip_norm = 0.0  # global gradient norm; 0: off

    c.schedule = ConfigDict()
    c.schedule.name = "cosine"
    c.schedule.warmup = 0.05  # share of the steps that rise linearly to the peak, before any schedule; 0: none
    c.schedule.milestones = (0.5, 0.75)  # of "step", as shares of the steps
    c.schedule.factor = 0.1  # of "step"
    c.schedule.cycles = 4  # of "restarts"

    c.loss = ConfigDict()
    c.loss.name = "ce"
    c.loss.label_smoothing = 0.0
    return c.lock()


OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "radam")

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "parallel": ("jit", "pmap"),
    "replicas": ("map", "vmap"),
    "dataset.augment": ("none", "crop", "crop_flip"),
    "model.front": ("none", "stn"),
    "model.name": ("resnet", "resnet18", "mlp"),
    "model.norm": ("bn", "ln", "gn", "none"),
    "model.post_activation": ("none", "relu"),
    "model.shortcut": ("A", "B"),
    "model.activation": ("relu", "gelu", "square", "none"),
    "model.granularity": ("scalar", "channel", "spatial", "full"),
    "model.head": ("gap", "flatten"),
    "optimizer.name": OPTIMIZERS,
    "optimizer.gate_bias_decay": ("none", "to0", "to1"),
    "schedule.name": ("constant", "step", "cosine", "onecycle", "restarts"),
    "loss.name": ("ce", "mse"),
}

_LARGE = 2**31 - 1
RANGES = {  # inclusive, and finite
    "seed": (0, _LARGE - 10_000),
    "seeds": (1, 10_000),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 1_000_000),
    "eval_every": (1, 1_000_000),
    "early_stopping": (0, 1_000_000),
    "batch_devices": (0, 1_000_000),
    "checkpoint_seconds": (0.0, 1e9),
    "checkpoint_keep": (1, 1_000_000),
    **dict.fromkeys(
        [f"probes.{name}" for name in ("signal", "gradients", "saturation", "curvature", "lesion", "connections")],
        (0, 1_000_000),
    ),
    "probes.images": (1, 1_000_000),
    "dataset.train_size": (0, _LARGE),
    "dataset.classes": (0, 100_000),
    "dataset.validation": (0.0, 0.9),
    "dataset.split_seed": (0, _LARGE),
    "dataset.label_noise": (0.0, 1.0),
    "dataset.crop_padding": (0, 64),
    "dataset.mixup": (0.0, 100.0),
    "dataset.noise": (0.0, 100.0),
    "model.depth": (1, 2000),
    "model.width": (1, 65_536),
    "model.scale": (-1e3, 1e3),
    "model.gate_bias": (-1e3, 1e3),
    "model.merge_blocks": (0, 2000),
    "model.dropout": (0.0, 0.99),
    "optimizer.learning_rate": (0.0, 1e6),
    "optimizer.momentum": (0.0, 0.9999),
    "optimizer.weight_decay": (0.0, 1e3),
    "optimizer.gate_lr": (0.0, 1e6),
    "optimizer.clip_norm": (0.0, 1e9),
    "schedule.warmup": (0.0, 1.0),
    "schedule.milestones": (0.0, 1.0),
    "schedule.factor": (0.0, 1.0),
    "schedule.cycles": (1, 10_000),
    "loss.label_smoothing": (0.0, 1.0),
}

PATHS = ("compilation_cache", "dataset.data_dir", "dataset.cache_dir")

_CIFAR = {  # depth stays 8: at 20 the plain product overflows in its first epoch, also at a tenth of the rate
    "epochs": 200,
    "dataset.augment": "crop_flip",
    "dataset.crop_padding": 4,
}
_CUBE = {
    "dataset.augment": "none",
    "dataset.crop_padding": 0,
    "model.name": "mlp",
    "model.depth": 6,
    "model.width": 64,
    "batch_size": 64,
}
PRESETS = {
    "digits": {"dataset.name": "digits"},
    "mnist": {"dataset.name": "mnist", "epochs": 20, "dataset.crop_padding": 2},
    "fashion_mnist": {
        "dataset.name": "fashion_mnist", "epochs": 60, "dataset.augment": "crop_flip", "dataset.crop_padding": 2,
    },
    "svhn_cropped": {"dataset.name": "svhn_cropped", "epochs": 60, "model.depth": 20, "dataset.crop_padding": 4},
    "cifar10": _CIFAR | {"dataset.name": "cifar10"},
    "cifar100": _CIFAR | {"dataset.name": "cifar100"},
    # Class-count controls of Q1: is it the number of classes, of samples, or the images?
    "cifar100_coarse": _CIFAR | {"dataset.name": "cifar100", "dataset.labels": "coarse_label"},
    "cifar100_10classes": _CIFAR | {"dataset.name": "cifar100", "dataset.classes": 10},
    "cifar10_500each": _CIFAR | {"dataset.name": "cifar10", "dataset.train_size": 5000},
    # Parities on the 10-cube: a target of known degree, for residual mlps.
    "cube_degree2": _CUBE | {"dataset.name": "cube10_degree2"},
    "cube_degree3": _CUBE | {"dataset.name": "cube10_degree3"},
    "probes": {"probes.signal": 20, "probes.gradients": 20, "probes.saturation": 20},  # cost: bench/probes.md
    "resnet18": {"model.name": "resnet18", "model.depth": 18, "model.width": 64},
}  # fmt: skip
# Short names that a preset string may set: configs/mul.py:dataset=cifar100,depth=20
ALIASES = {
    "merge": "model.merge",
    "depth": "model.depth",
    "width": "model.width",
    "train_size": "dataset.train_size",
    "learning_rate": "optimizer.learning_rate",
    "seed": "seed",
    "seeds": "seeds",
    "epochs": "epochs",
    "batch_size": "batch_size",
}


def with_preset(config: ConfigDict, text: str) -> ConfigDict:
    """Applies `cifar100` or `dataset=cifar100,depth=20` to `config`, in place.

    Raises:
      ConfigError: an unknown preset or key, or a value of the wrong type.
    """
    for token in filter(None, (t.strip() for t in (text or "").split(","))):
        key, equals, value = token.partition("=")
        if not equals or key == "dataset":
            preset = value if equals else key
            if preset not in PRESETS:
                raise ConfigError(
                    f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}, or set config.dataset.name"
                )
            config.update_from_flattened_dict(PRESETS[preset])
        elif key in ALIASES:
            kind = type(flat(config)[ALIASES[key]])
            try:
                config.update_from_flattened_dict({ALIASES[key]: kind(value)})
            except ValueError:
                raise ConfigError(f"preset value {token!r}: {value!r} is not {_article(kind)}") from None
        else:
            raise ConfigError(f"unknown preset key {key!r}: choose from dataset, {', '.join(ALIASES)}")
    return config


def flat(config: ConfigDict) -> dict:
    """`{"model.depth": 8, ...}`: every leaf of the config by its dotted name."""
    out = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            out |= {f"{key}.{k}": v for k, v in flat(value).items()}
        else:
            out[key] = value
    return out


def check(config: ConfigDict) -> None:
    """Raises ConfigError with one line if a key, type, choice or range of `config` is not allowed."""
    reference, values = flat(base()), flat(config)
    for key in sorted(set(reference) ^ set(values)):
        raise ConfigError(f"config.{key}: {'missing' if key in reference else 'unknown key'}")
    for key, value in values.items():
        _check_type(key, value, reference[key])
        if key in CHOICES and value not in CHOICES[key]:
            raise ConfigError(f"config.{key}={value!r}: choose from {', '.join(CHOICES[key])}")
        if key in RANGES and value is not None:
            low, high = RANGES[key]
            for number in value if isinstance(value, tuple) else (value,):
                if not low <= number <= high:  # NaN and infinity neither
                    raise ConfigError(f"config.{key}={_shown(value)}: must lie in [{low}, {high}]")
        if key in PATHS:
            usable_path(f"config.{key}", value)
    _check_depth(config.model)
    if config.dataset.classes == 1:
        raise ConfigError("config.dataset.classes=1: there is nothing to classify; 0 takes all classes")
    if config.optimizer.gate_bias_decay != "none" and not config.optimizer.weight_decay:
        raise ConfigError(
            "config.optimizer.gate_bias_decay pulls at the rate of config.optimizer.weight_decay, which is 0"
        )
    if config.model.merge_blocks and (config.optimizer.gate_lr != 1 or config.optimizer.gate_bias_decay != "none"):
        raise ConfigError(
            f"config.model.merge_blocks={config.model.merge_blocks}: config.optimizer.gate_lr and gate_bias_decay act "
            "on all blocks, also on those that add; leave them as they are"
        )
    if config.schedule.name == "onecycle" and not 0 < config.schedule.warmup < 1:
        raise ConfigError(
            f"config.schedule.warmup={config.schedule.warmup}: onecycle rises during it; use a share such as 0.3"
        )
    if not _NAME.fullmatch(config.name):
        raise ConfigError(
            f"config.name={config.name!r}: use at most 100 letters, digits, '_', '-' and, but not first, '.'; "
            "it names a directory"
        )
    if config.early_stopping and not config.dataset.validation:
        raise ConfigError("config.early_stopping needs a validation split: set config.dataset.validation=0.1")
    if config.schedule.name == "step" and tuple(sorted(set(config.schedule.milestones))) != config.schedule.milestones:
        raise ConfigError(f"config.schedule.milestones={config.schedule.milestones}: must increase")


def usable_path(what: str, text: str) -> Path:
    """`text` with a leading ~ expanded; a ConfigError that begins with `what` if nothing can be stored there."""
    try:
        path = Path(text).expanduser()
        name = str(path).encode()
        # Systems end a name after 255 bytes and a path after 1024 or 4096, which files in it must not reach.
        if b"\0" not in name and len(name) <= 800 and max(map(len, name.split(b"/"))) <= 255:
            return path
    except (RuntimeError, UnicodeError):  # the ~ of an unknown user; not UTF-8, which orbax needs
        pass
    raise ConfigError(f"{what}={text!r}: not a path that can be used")


def user_cache() -> Path:
    """$XDG_CACHE_HOME, else ~/.cache. Raises ConfigError for an unusable variable, OSError where there is no home."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return usable_path("XDG_CACHE_HOME", given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        raise OSError(None, "this user has no home directory") from None


_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def _check_type(key: str, value, reference) -> None:
    if reference is None and value is None:  # a placeholder left alone
        return
    kind = float if reference is None else type(reference)
    if kind is float and type(value) is int:
        return
    right = isinstance(value, float) if kind is float else type(value) is kind  # NumPy's double is a float
    if not right or (kind is tuple and not all(type(v) in (int, float) for v in value)):
        raise ConfigError(f"config.{key}={_shown(value)}: must be {_article(kind)}")


def _shown(value) -> str:
    try:
        return repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits, which a hexadecimal one may have
        return "a huge number"


def _article(kind: type) -> str:
    return {int: "an integer", float: "a number", str: "a word", tuple: "a tuple of numbers", bool: "True or False"}[
        kind
    ]


def _check_depth(model: ConfigDict) -> None:
    if model.name == "resnet" and (model.depth < 8 or model.depth % 6 != 2):
        raise ConfigError(
            f"config.model.depth={model.depth}: a CIFAR ResNet has depth 6n+2, such as 8, 14, 20, 32, 56, 110"
        )
    if model.name == "resnet18" and model.depth != 18:
        raise ConfigError(f"config.model.depth={model.depth}: resnet18 has depth 18")
    if model.name == "mlp" and (model.depth < 4 or model.depth % 2):
        raise ConfigError(f"config.model.depth={model.depth}: a residual mlp has depth 2n+2, such as 4, 6, 8")


# What does not change the numbers of a run, and so not its hash.
_NOT_HASHED = (
    "dataset.data_dir",
    "dataset.cache_dir",
    "checkpoint_seconds",
    "checkpoint_keep",
    "compilation_cache",
    "deterministic",
)
# Entries younger than the first results: at these values, and probes at 0, they leave the names of runs as they were.
_ADDED = {"probes.images": 256, "model.merge_blocks": 0, "model.front": "none"}


def _naming(config: ConfigDict) -> dict:
    """The flat entries that name a run."""
    values = flat(config)
    off = {key for key, value in values.items() if key.startswith("probes.") and not value}
    same = {key for key, value in _ADDED.items() if values.get(key) == value}
    return {key: _canonical(value) for key, value in values.items() if key not in {*_NOT_HASHED, *off, *same}}


def _canonical(value):
    """Equal numbers as one: 0.0 for -0.0, and (0.0, 1.0) for (0, 1)."""
    if isinstance(value, tuple):
        return tuple(float(v) + 0.0 for v in value)
    return value + 0.0 if isinstance(value, float) else value


def to_json(config: ConfigDict) -> str:
    """Canonical JSON: sorted keys, one per line."""
    return json.dumps(config.to_dict(), sort_keys=True, indent=1)


def hash8(config: ConfigDict) -> str:
    """Eight hex digits of the canonical config without paths; names the run directory."""
    return hashlib.sha256(json.dumps(_naming(config), sort_keys=True).encode()).hexdigest()[:8]


def completed(config: ConfigDict) -> ConfigDict:
    """The config of an older run with the entries that it lacks, at the values that change nothing."""
    config = ConfigDict(config.to_dict())
    for key, value in flat(base()).items():
        if key in _ADDED or key.startswith("probes."):
            section, _, name = key.partition(".")
            if section not in config:
                config[section] = ConfigDict()
            if name not in config[section]:
                config[section][name] = value
    return config.lock()


def differences(there: dict, here: dict) -> list[str]:
    """The entries that name a run (`hash8`) and differ between two configs, as config.json has them, in words."""
    there, here, reference = _naming(ConfigDict(there)), _naming(ConfigDict(here)), flat(base())
    return [
        f"config.{key} is {there.get(key, reference.get(key))!r} there and {here.get(key, reference.get(key))!r} here"
        for key in sorted(set(there) | set(here))
        if there.get(key) != here.get(key)
    ]
