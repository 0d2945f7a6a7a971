"""Orthogonal polynomials against torch, degree by degree."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lightjax_torch.lowering import TABLE  # noqa: E402

NAMES = [
    *(f"chebyshev_polynomial_{kind}" for kind in "tuvw"),
    *(f"shifted_chebyshev_polynomial_{kind}" for kind in "tuvw"),
    *("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p"),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_degree_is_torchs(name):
    x = torch.tensor([-1.7, -1.0, -0.4, 0.0, 0.3, 0.9, 1.0, 2.5], dtype=torch.float64)
    x, degrees = torch.broadcast_tensors(x, torch.arange(-1, 12, dtype=torch.float64)[:, None])
    expected = getattr(torch.special, name)(x, degrees).numpy()
    with jax.enable_x64(True):
        rule = TABLE[getattr(torch.ops.aten, f"special_{name}").default]
        found = np.asarray(jax.jit(rule)(x.numpy(), degrees.numpy()))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
