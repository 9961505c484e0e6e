"""The product of two normalised maps, bn(s)*bn(f), both of mean 0.

python -m resjax.main --config=configs/mul_bn.py              8 replicas of ResNet-8 on digits; @TIME@
python -m resjax.main --config=configs/mul_bn.py:cifar10      8 replicas of ResNet-20; on a GPU
Expect on digits: @EXPECT@.
"""

from configs import default


def get_config(preset=""):
    return default.get_config(preset, merge="mul_bn")
