"""The features that a net's head reads: of how many dimensions is the set on which they lie?"""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pandas as pd

from resjax.config import ConfigError
from resjax.probes.subject import Subject

ROUNDING = 1e-6  # of a feature in single precision, relative to the distances between neighbours


def dimension(at: Subject, *, neighbours: int = 10) -> pd.DataFrame:
    """One row: the local intrinsic dimension of the features, and of the images themselves.

    Where classes are far apart, an image's neighbours are of its class: then it is the dimension of a class.

    Columns: features, images: `intrinsic_dimension` of both.

    Args:
      at: a net whose last linear map is a submodule named "head".
      neighbours: of a point, that the estimate looks at.

    Raises:
      ConfigError: the net has no head, or there are too few images.
    """
    found = {"features": np.asarray(features(at.net, at.variables, at.x_BxHxWxC)), "images": np.asarray(at.x_BxHxWxC)}
    return pd.DataFrame([{name: intrinsic_dimension(x.reshape(len(x), -1), neighbours) for name, x in found.items()}])


def intrinsic_dimension(x_NxD: np.ndarray, neighbours: int) -> float:
    """The maximum-likelihood estimate of Levina & Bickel (2004), averaged as MacKay & Ghahramani (2005) do.

    In d dimensions 1/d is the expected mean of log(T_k / T_j) over j < k, where T_j is the distance to the j-th of k
    neighbours. Equal points count once, and those that equal another to rounding not at all; nan if too few are left.

    Raises:
      ConfigError: there are not more points than neighbours.
    """
    if len(x_NxD) <= neighbours:
        raise ConfigError(f"the dimension of {len(x_NxD)} images: it takes more than {neighbours}")
    from sklearn.neighbors import NearestNeighbors  # a second to import

    x_NxD = np.unique(x_NxD.astype(float), axis=0)
    if len(x_NxD) <= neighbours:
        return float("nan")
    # Differences, not products: those would leave 1e-7 between equal points, which then are neighbours.
    distance_NxJ = NearestNeighbors(n_neighbors=neighbours, algorithm="kd_tree").fit(x_NxD).kneighbors()[0]
    apart_N = distance_NxJ[:, 0] > ROUNDING * distance_NxJ[:, -1]
    ratio_NxJ = distance_NxJ[apart_N, -1:] / distance_NxJ[apart_N, :-1]
    return float(1 / np.log(ratio_NxJ).mean()) if apart_N.any() else float("nan")


@partial(jax.jit, static_argnames="net")
def features(net: nn.Module, variables: dict, x_BxHxWxC: jax.Array) -> jax.Array:
    """What the submodule "head" is called with, [B, F]. Raises ConfigError if there is none, or it is called twice."""
    seen = []

    def visit(call, args, kwargs, context):
        if context.module.name == "head" and context.method_name == "__call__":
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(visit):
        net.apply(variables, x_BxHxWxC)
    if len(seen) != 1:
        raise ConfigError(f"{type(net).__name__} has no submodule named 'head', whose input are the features")
    return seen[0]
