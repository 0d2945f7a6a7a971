"""What tests of many devices share."""

import jax
import pytest


@pytest.fixture
def quick_compilation():
    """Compiles in half the time, with few of XLA's optimizations: for numbers that are compared within rounding."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
