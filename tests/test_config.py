"""Presets, one-line refusals, and the hash that names a run."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from resjax import config as config_lib
from resjax.config import ConfigError
from resjax.models.merges import MERGES

CONFIGS = [  # those of the project; a reader's own register a merge of their own
    path for path in sorted((Path(__file__).parents[1] / "configs").glob("*.py")) if path.stem in {"default", *MERGES}
]


def changed(**changes):
    config = config_lib.base()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def test_the_base_config_is_allowed():
    config_lib.check(config_lib.base())


@pytest.mark.parametrize("change, words", [
    ({"optimizer.learning_rate": float("nan")}, "must lie in"),
    ({"optimizer.learning_rate": float("inf")}, "must lie in"),
    ({"model.depth": -3}, "must lie in"),
    ({"model.depth": 21}, "6n.2"),
    ({"model.name": "mlp", "model.depth": 7}, "2n.2"),
    ({"seeds": 0}, "must lie in"),
    ({"model.norm": "batch"}, "choose from bn, ln, gn, none"),
    ({"name": "../escape"}, "names a directory"),
    ({"name": ""}, "names a directory"),
    ({"early_stopping": 3}, "validation"),
    ({"schedule.name": "step", "schedule.milestones": (0.7, 0.5)}, "must increase"),
    ({"schedule.milestones": (0.5, 7.0)}, "must lie in"),
    ({"schedule.name": "step", "schedule.milestones": (0.5, 0.5)}, "must increase"),
    ({"schedule.name": "onecycle", "schedule.warmup": 1.0}, "onecycle"),
    ({"dataset.classes": 1}, "nothing to classify"),
    ({"model.name": "resnet18", "model.depth": 20}, "depth 18"),
    ({"optimizer.gate_bias_decay": "to1", "optimizer.weight_decay": 0.0}, "weight_decay"),
    ({"optimizer.momentum": 1.0}, "must lie in"),
    ({"dpeth": 3}, "unknown key"),
    ({"seeds": 10**400}, "must lie in"),
    ({"seeds": 16**9000}, "a huge number: must lie in"),
    ({"schedule.milestones": (16**9000,)}, "a huge number: must lie in"),
    ({"schedule.milestones": (float("nan"),)}, "must lie in"),
    ({"name": 101 * "a"}, "at most 100 letters"),
    ({"compilation_cache": "~no_such_user/x"}, "config.compilation_cache='~no_such_user/x': not a path"),
    ({"dataset.data_dir": "a\0b"}, "config.dataset.data_dir=.*: not a path"),
    ({"dataset.cache_dir": "\udcff"}, "config.dataset.cache_dir=.*: not a path"),
    ({"dataset.cache_dir": 256 * "a"}, "not a path"),
    ({"dataset.cache_dir": 900 * "a/"}, "not a path"),
])  # fmt: skip
def test_refusals_are_one_line(change, words):
    with pytest.raises(ConfigError, match=words) as e:
        config_lib.check(changed(**change))
    assert "\n" not in str(e.value)


def test_an_error_is_one_printable_line_whatever_it_quotes():
    assert str(ConfigError("bad\n  value\x1b[2J\u202e \udcff")) == r"bad value\x1b[2J\u202e \udcff"
    long = str(ConfigError("first " + 10_000 * "x" + " last"))
    assert len(long) < 2100 and long.startswith("first ") and long.endswith(" last")


def test_a_home_is_expanded_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert config_lib.usable_path("--workdir", "~/runs") == Path("/somewhere/runs")


def test_every_rule_names_an_existing_key():
    keys = set(config_lib.flat(config_lib.base()))
    assert set(config_lib.RANGES) <= keys and set(config_lib.CHOICES) <= keys
    assert set(config_lib.ALIASES.values()) | set(config_lib.PATHS) <= keys
    assert all(set(preset) <= keys for preset in config_lib.PRESETS.values())


def test_a_config_of_before_is_completed():
    older = config_lib.base().to_dict()
    del older["probes"], older["model"]["merge_blocks"]
    assert config_lib.completed(ConfigDict(older)) == config_lib.base()
    assert config_lib.differences(older, config_lib.base().to_dict()) == []
    there = changed(**{"probes.signal": 5}).to_dict()
    assert config_lib.differences(there, older) == ["config.probes.signal is 5 there and 0 here"]


def test_a_probe_that_is_off_names_no_run():
    config = config_lib.base()
    with config.unlocked():
        config.probes.mine = 0
    assert config_lib.hash8(config) == config_lib.hash8(config_lib.base())


def test_every_number_has_a_range_and_every_word_a_check():
    free = {"name", "dataset.name", "dataset.labels", "model.merge", *config_lib.PATHS}  # checked elsewhere
    for key, value in config_lib.flat(config_lib.base()).items():
        rules = config_lib.CHOICES if isinstance(value, str) else config_lib.RANGES
        assert key in free or key in rules or isinstance(value, bool), key


@pytest.mark.parametrize("preset", config_lib.PRESETS)
def test_presets_are_allowed(preset):
    config_lib.check(config_lib.with_preset(config_lib.base(), preset))


def test_a_preset_string():
    config = config_lib.with_preset(config_lib.base(), "dataset=cifar100,resnet18,learning_rate=.3,depth=18")
    assert config.dataset.name == "cifar100" and config.dataset.augment == "crop_flip"
    assert config.model.name == "resnet18" and config.model.depth == 18
    assert config.optimizer.learning_rate == 0.3


@pytest.mark.parametrize("text", ["cifar11", "depht=20", "depth=deep", "dataset=", "=3"])
def test_bad_preset_strings(text):
    with pytest.raises(ConfigError):
        config_lib.with_preset(config_lib.base(), text)


def test_the_hash_depends_on_the_numbers_and_not_on_paths():
    base = config_lib.hash8(config_lib.base())
    assert config_lib.hash8(changed(**{"dataset.cache_dir": "/elsewhere", "checkpoint_keep": 5})) == base
    assert config_lib.hash8(changed(**{"seed": 1})) != base
    assert len(base) == 8 and int(base, 16) >= 0


def test_equal_numbers_have_equal_hashes():
    def hashed(**entries):
        config = changed(**entries)
        config_lib.check(config)
        return config_lib.hash8(config)

    for key, same in {
        "schedule.milestones": [(0, 1), (0.0, 1.0), (-0.0, 1)],
        "optimizer.weight_decay": [0.0, -0.0],
        "optimizer.learning_rate": [0.3, np.float64(0.3)],
    }.items():
        assert len({hashed(**{key: value}) for value in same}) == 1, key


def test_json_holds_the_whole_config():
    config = changed(**{"model.scale": 0.5})
    assert json.loads(config_lib.to_json(config))["model"]["scale"] == 0.5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_files(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("cifar10,seeds=3")
    config_lib.check(config)
    assert config.model.merge == ("add" if path.stem == "default" else path.stem) == config.name
    assert config.seeds == 3 and config.dataset.name == "cifar10"
