"""Gates of the saturation study alone, in no catalogue: they change the slope at 0 without the value, and vice versa.

`gate_2sig` doubles both of `gate_sig`, so that alone it tells nothing of either.
"""

SHAPES = {  # merge -> value and slope of its gate at 0
    "gate_sig": (0.5, 0.25),
    "gate_sig_steep": (0.5, 0.5),
    "gate_2sig_flat": (1.0, 0.25),
    "gate_2sig": (1.0, 0.5),
}


def register() -> None:
    """Makes them known to this process, once."""
    from jax.nn import sigmoid

    from resjax.models import merges

    def one(name: str, value, formula: str, high: float, identity: merges.Identity) -> None:
        if name not in merges.MERGES:
            gate = merges.Gate("f", value, high=high)
            merges.register(name, lambda s, f: s * value(f), formula, identity=identity, gates=(gate,))

    one("gate_sig_steep", lambda f: sigmoid(2 * f), "s*sig(2f)", 1.0, "affine")
    one("gate_2sig_flat", lambda f: 2 * sigmoid(f / 2), "s*2sig(f/2)", 2.0, "exact")
