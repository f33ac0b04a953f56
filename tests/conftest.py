"""Every test runs in float64, and shapes that JAX would adapt in silence are errors."""

import os

# The suite compiles hundreds of small programs once each: compile time is all it waits for.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
