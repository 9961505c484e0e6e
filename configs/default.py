"""The additive ResNet-8 on digits, and the base of every other config.

python -m resjax.main --config=configs/default.py
python -m resjax.main --config=configs/default.py:cifar10 --config.model.merge=mul
"""

from ml_collections import ConfigDict

from resjax import config as base


def get_config(preset: str = "", merge: str = "add") -> ConfigDict:
    """`preset` is what follows the colon of --config=FILE:PRESET (resjax.config.with_preset)."""
    config = base.base()
    config.model.merge = config.name = merge
    return base.with_preset(config, preset)
