"""The product of two maps of mean 1, bn1(s)*bn1(f): the sum plus a second-order term.

python -m resjax.main --config=configs/mul_bn1.py              8 replicas of ResNet-8 on digits; @TIME@
python -m resjax.main --config=configs/mul_bn1.py:cifar10      8 replicas of ResNet-20; on a GPU
Expect on digits: @EXPECT@.
"""

from configs import default


def get_config(preset=""):
    return default.get_config(preset, merge="mul_bn1")
