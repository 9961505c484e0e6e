"""What a net costs: parameters, operations of a forward pass, and what the backward pass keeps."""

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


def stored_activations(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Numbers that a training step keeps from the forward for the backward pass, for each input [H, W, C] of a batch.

    As JAX's reverse mode stores them, before XLA optimises.
    """
    variables = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    two, three = (_residuals(net, variables, (batch, *shape)) for batch in (2, 3))
    return three - two  # weights are kept once


def _residuals(net: nn.Module, variables: dict, shape: tuple[int, ...]) -> int:
    """Numbers in all that a backward pass needs of one batch [B, H, W, C]."""
    others = {name: own for name, own in variables.items() if name != "params"}

    def backward(params, others, x, key):
        def logits(params):
            return net.apply(
                {**others, "params": params}, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )[0]

        return jax.vjp(logits, params)[1]

    x, key = jax.ShapeDtypeStruct(shape, jnp.float32), jax.eval_shape(jax.random.key, 0)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, variables["params"], others, x, key)))
