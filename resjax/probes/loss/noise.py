"""How much the gradients of single samples differ: statistics of a mean gradient g and of the samples' variances.

What is passed decides what is estimated: the callers say from which samples, and with which divisor.
"""

import math

import numpy as np


def gsnr(gradient_P: np.ndarray, variance_P: np.ndarray) -> float:
    """Gradient signal-to-noise ratio: the mean of g_j^2 / variance_j (Liu et al. 2020, 2001.07384).

    Parameters without variance are left out; nan if none is left.
    """
    live_P = variance_P > 0
    return float(np.mean(gradient_P[live_P] ** 2 / variance_P[live_P])) if live_P.any() else math.nan


def noise_scale(gradient_P: np.ndarray, variance_P: np.ndarray, samples: float = math.inf) -> float:
    """B_simple = sum of the variances / |g|^2, in samples (McCandlish et al. 2018, 1812.06162, equation 2.9).

    Args:
      gradient_P: g, a mean over samples.
      variance_P: of the samples' gradients.
      samples: that g is a mean of. Their noise, the sum of the variances / samples, is taken off |g|^2 (appendix A.1);
        without them |g|^2 is taken as it is.

    Returns:
      inf if nothing is left of |g|^2, nan if the variances are 0 too.
    """
    noise = float(variance_P.sum())
    power = float(np.sum(np.square(gradient_P))) - noise / samples
    if power > 0:
        return noise / power
    return math.inf if noise > 0 else math.nan
