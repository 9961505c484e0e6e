"""Two sigmoids, sig(bn(s))*sig(f): bounded, and the smallest gradients of all.

python -m resjax.main --config=configs/sig_sig.py              8 replicas of ResNet-8 on digits; @TIME@
python -m resjax.main --config=configs/sig_sig.py:cifar10      8 replicas of ResNet-20; on a GPU
Expect on digits: @EXPECT@.
"""

from configs import default


def get_config(preset=""):
    return default.get_config(preset, merge="sig_sig")
