"""What a net answers to every image: the probability of each class, and by how much the right one leads."""

import jax
import numpy as np
import pandas as pd

from resjax.config import ConfigError
from resjax.data.subsets import stream
from resjax.probes.functions.function import groups, labels, logits
from resjax.probes.functions.lines import mixed
from resjax.probes.subject import Subject

INPUTS = ("data", "mixes", "noise")


def outputs(at: Subject, *, inputs: str = "data") -> pd.DataFrame:
    """A row per input, of the net as it is used at test time.

    Columns:
      image: its position among the given ones, 0, 1, ...
      label: its class; of a mixture that of the image it begins with, and of noise -1.
      p0, p1, ...: softmax of the logits, float32; they sum to 1.
      margin: the label's logit less the largest of the others. The net is right where it is above 0. Not of noise.

    Args:
      at: a replica.
      inputs: "data": its images; "mixes": as many middles between two images of different classes; "noise": as many
        images of independent standard normal pixels. All are the same for every net.

    Raises:
      ConfigError: no such inputs.
    """
    x, label_B = _inputs(at, inputs)
    logits_BxK = np.asarray(logits(at.net, at.variables, x))
    p_BxK = np.asarray(jax.nn.softmax(logits_BxK), np.float32)
    columns = {"image": np.arange(len(label_B)), "label": label_B} | {f"p{k}": p_B for k, p_B in enumerate(p_BxK.T)}
    if inputs != "noise":
        own_BxK = np.arange(logits_BxK.shape[1]) == label_B[:, None]
        columns["margin"] = logits_BxK[own_BxK] - np.where(own_BxK, -np.inf, logits_BxK).max(1)
    return pd.DataFrame(columns)


def _inputs(at: Subject, inputs: str) -> tuple[jax.Array, np.ndarray]:
    label_B = labels(at)
    if inputs == "data":
        return at.x_BxHxWxC, label_B
    if inputs == "mixes":
        a, b = groups(label_B, len(label_B), 2).T
        return mixed(at.x_BxHxWxC, a, b, np.array([0.5]))[:, 0], label_B[a]
    if inputs == "noise":
        drawn = stream(0, "noise").standard_normal(at.x_BxHxWxC.shape)
        return drawn.astype(at.x_BxHxWxC.dtype), np.full(len(label_B), -1)
    raise ConfigError(f"outputs of {inputs!r}: choose from {', '.join(INPUTS)}")
