"""What tests of the bridge share."""

import jax
import pytest

# A program for torchrun, which sets what it reads, and one that needs torchax.
collect_ignore = ["native/together.py", "opinfo/torchax_counts.py"]


@pytest.fixture
def double_precision():
    """Computes in float64, in torch and in JAX."""
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)
