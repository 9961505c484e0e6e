"""Strict JAX settings for all tests: no silent broadcast over ranks, no random key used twice."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
