"""The sum: an ordinary residual network, the baseline of every comparison.

python -m resjax.main --config=configs/add.py            8 replicas of ResNet-8 on digits, 35 s on 2 cores
python -m resjax.main --config=configs/add.py:cifar10    the same on CIFAR-10, for a GPU
Expect on digits: 99.0 % test accuracy (mean of 12 seeds, final epoch).
"""

from configs import default


def get_config(preset=""):
    return default.get_config(preset, merge="add")
