"""What a net answers to every image: the probability of each class, and by how much the right one leads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import lax

from resjax.probes.objective import CHUNK
from resjax.probes.subject import Subject


def outputs(at: Subject) -> pd.DataFrame:
    """A row per image, of the net as it is used at test time.

    Columns:
      image: its position among the given ones, 0, 1, ...
      label: its class.
      p0, p1, ...: softmax of the logits, float32; they sum to 1.
      margin: the label's logit less the largest of the others. The net is right where it is above 0.

    Args:
      at: a replica.
    """
    logits_BxK = np.asarray(_logits(at.net, at.variables, at.x_BxHxWxC))
    label_B = np.asarray(at.targets_BxK).argmax(1)
    own_BxK = np.arange(logits_BxK.shape[1]) == label_B[:, None]
    margin_B = logits_BxK[own_BxK] - np.where(own_BxK, -np.inf, logits_BxK).max(1)
    p_BxK = np.asarray(jax.nn.softmax(logits_BxK), np.float32)
    columns = {f"p{k}": p_B for k, p_B in enumerate(p_BxK.T)}
    return pd.DataFrame({"image": np.arange(len(label_B)), "label": label_B} | columns | {"margin": margin_B})


@partial(jax.jit, static_argnames="net")
def _logits(net, variables, x) -> jax.Array:
    """[B, K], in passes of at most CHUNK images; the last pass may repeat one."""
    size = len(x)
    count = -(-size // CHUNK)
    index_NxB = jnp.minimum(jnp.arange(count * -(-size // count)), size - 1).reshape(count, -1)
    logits_NxBxK = lax.map(lambda index_B: net.apply(variables, x[index_B]), index_NxB)
    return logits_NxBxK.reshape(-1, logits_NxBxK.shape[-1])[:size]
