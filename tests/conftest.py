"""One strict session for all tests: four CPU devices, float32 products, no silent promotion."""

import os
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile many programs and run each a few times on tiny arrays. XLA's older emitters and LLVM
# without its expensive passes compile them sooner. Commands that tests start inherit it.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_cpu_use_fusion_emitters=false",
    ]
).strip()
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

import jax
import numpy as np
import pytest
from golden_params import load

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


# Files that take longest, so that no process is left alone with one of them at the end.
LONGEST = ("test_elastic_conformance", "test_step", "test_readme", "test_resume", "test_parallel")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests for xdist by file, those of the conformance suite by family; longest first."""

    def group(item: pytest.Item) -> str:
        row = getattr(item, "callspec", None) and item.callspec.params.get("row")
        return f"{item.path.stem}-{row.name}" if row else str(item.path)

    def rank(item: pytest.Item) -> int:
        return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: (rank(item), group(item)))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("losses")` holds the arrays of tests/golden/losses.npz (golden_params.load)."""
    return load


@pytest.fixture(scope="session")
def mesh() -> jax.sharding.Mesh:
    """Four devices along "data"."""
    return jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
