"""Every test runs in float64, and shapes that JAX would adapt in silence are errors."""

import gc
import os
from pathlib import Path

# The suite traces and compiles about a thousand programs, and waits for little else. XLA's older
# emitters take an eighth of the processor time of its defaults if they do not optimise, do not
# split reductions, do not move what is the same in every pass out of loops (`compiled` of
# problems.py does), and make no parallel parts, as there is a worker on each core. The defaults
# compile the programs of `make train`, `make compare` and the pages' code.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
    + " --xla_disable_hlo_passes=while-loop-invariant-code-motion,tree_reduction_rewriter"
    + " --xla_cpu_parallel_codegen_split_count=1"
)

# For the same reason LAPACK gets one thread: two for each of two workers wait for one another, and
# with other work on the machine twenty times as long as they compute.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# What one run compiled the next one reads. (`make clean` forgets it.)
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Tracing makes objects by the million, few of which are garbage: by default a seventh of the time
# goes into looking for it.
gc.set_threshold(50_000, 50, 100)

MAPS = Path("/proc/self/maps")
MANY = 25_000  # Linux allows 65,530 by default


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """Compiled programs are let go before the process runs out of memory maps, of which each holds
    some: XLA then ends with a segmentation fault."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY:
        jax.clear_caches()
