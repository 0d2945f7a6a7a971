"""What tests of the bridge share."""

import jax
import pytest

collect_ignore = ["native/together.py"]  # a program for torchrun, which sets what it reads


@pytest.fixture
def double_precision():
    """Computes in float64, in torch and in JAX."""
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)
