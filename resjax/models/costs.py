"""What a net costs: parameters, and operations of a forward pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def costs(net: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """What an input of the given shape [H, W, C] costs.

    Returns:
      parameters, and flops: multiplications and additions of one forward pass at test time, as XLA counts them before
      it optimises.
    """
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    flops = jax.jit(net.apply).lower(variables, x).cost_analysis()["flops"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {"parameters": parameters, "flops": flops}
