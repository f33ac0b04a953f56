"""Every test runs in float64, and shapes that JAX would adapt in silence are errors."""

import os
from pathlib import Path

# The suite compiles hundreds of small programs once each: compile time is all it waits for. XLA's
# older emitters take half of the time of the default ones, which compile the programs of `make
# train`, `make compare` and the pages' code. (They are not to be trusted at level 0.) A quarter of
# the rest is splitting reductions, and under constraints a seventh is moving what is the same in
# every pass out of loops, which `problems.compiled` does.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
    + " --xla_disable_hlo_passes=while-loop-invariant-code-motion,tree_reduction_rewriter"
)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# What one run compiled the next one reads, in half of the time. (`make clean` forgets it.)
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

MAPS = Path("/proc/self/maps")
MANY = 25_000  # Linux allows 65,530 by default


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """Compiled programs are let go before the process runs out of memory maps, of which each holds
    some: XLA then ends with a segmentation fault."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY:
        jax.clear_caches()
