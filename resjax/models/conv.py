import jax
from jax import lax
def conv2d(x, w, stride=1):
    p=w.shape[0]//2
    return lax.conv_general_dilated(x,w,(stride,stride),((p,p),(p,p)),dimension_numbers=("NHWC","HWIO","NHWC"))
