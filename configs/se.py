"""Squeeze-and-excitation on the branch, s + f*se(f): the usual gate, for comparison.

python -m resjax.main --config=configs/se.py              8 replicas of ResNet-8 on digits; @TIME@
python -m resjax.main --config=configs/se.py:cifar10      8 replicas of ResNet-20; on a GPU
Expect on digits: @EXPECT@.
"""

from configs import default


def get_config(preset=""):
    return default.get_config(preset, merge="se")
