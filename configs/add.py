"""The sum: an ordinary residual network, the baseline of every comparison.

python -m resjax.main --config=configs/add.py              8 replicas of ResNet-8 on digits; @TIME@
python -m resjax.main --config=configs/add.py:cifar10      8 replicas of ResNet-20; on a GPU
Expect on digits: @EXPECT@.
"""

from configs import default


def get_config(preset=""):
    return default.get_config(preset, merge="add")
