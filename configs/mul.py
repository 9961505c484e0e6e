"""The plain product s*f: no identity at init, and zero is absorbing.

python -m resjax.main --config=configs/mul.py              8 replicas of ResNet-8 on digits; @TIME@
python -m resjax.main --config=configs/mul.py:cifar10      8 replicas of ResNet-20; on a GPU
Expect on digits: @EXPECT@.
"""

from configs import default


def get_config(preset=""):
    return default.get_config(preset, merge="mul")
