"""What a probe looks at: a net at one moment of its training, and labelled images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax


class Subject(NamedTuple):
    """One replica.

    Attributes:
      net: a hashable Linen net, called with (x, train).
      variables: its collections; BatchNorm's running statistics are those of training, or, before it, of `x`.
      x_BxHxWxC: normalised images.
      targets_BxK: their classes, one-hot.
      loss: (logits [B, K], targets [B, K]) -> [B], a module-level function.
      key: of whatever a probe draws.
      update: gradient by the parameters -> what the optimiser would now add to them; None where there is none.
    """

    net: nn.Module
    variables: dict[str, Any]
    x_BxHxWxC: jax.Array
    targets_BxK: jax.Array
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    key: jax.Array
    update: Callable[[Any], Any] | None = None
