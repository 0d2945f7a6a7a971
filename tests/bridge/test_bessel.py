"""Bessel functions against torch, on both sides of where the series ends."""

import jax
import numpy as np
import pytest
import scipy.special

torch = pytest.importorskip("torch")

from lightjax_torch.lowering import TABLE  # noqa: E402

EDGES = [-np.inf, -30.0, -1.0, -0.0, 0.0, 1e-30, 2.0, 4.0, np.inf, np.nan]


@pytest.mark.parametrize(
    "name",
    [
        *(f"bessel_{kind}{order}" for kind in "jy" for order in (0, 1)),
        *(f"{scaled}modified_bessel_k{order}" for scaled in ("", "scaled_") for order in (0, 1)),
        *("modified_bessel_i0", "modified_bessel_i1", "spherical_bessel_j0"),
    ],
)
def test_bessel_functions_are_torchs(name):
    far = 9 if "_i" in name else 60
    x = torch.cat([torch.linspace(-far, far, 997, dtype=torch.float64), torch.tensor(EDGES, dtype=torch.float64)])
    rule = TABLE[getattr(torch.ops.aten, f"special_{name}").default]
    with jax.enable_x64(True):
        found = np.asarray(rule(x.numpy()))
    # Torch's own J and Y are off by up to 1e-6 beyond 5.
    np.testing.assert_allclose(found, getattr(torch.special, name)(x).numpy(), rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("bessel_j0", scipy.special.j0),
        ("bessel_j1", scipy.special.j1),
        ("bessel_y0", scipy.special.y0),
        ("bessel_y1", scipy.special.y1),
        ("modified_bessel_k0", scipy.special.k0),
        ("modified_bessel_k1", scipy.special.k1),
        ("scaled_modified_bessel_k0", scipy.special.k0e),
        ("scaled_modified_bessel_k1", scipy.special.k1e),
    ],
)
def test_bessel_functions_are_exact(name, exact):
    x = np.concatenate([np.linspace(1e-3, 60, 997), [2.0, 4.0, 1e3]])
    with jax.enable_x64(True):
        found = np.asarray(TABLE[getattr(torch.ops.aten, f"special_{name}").default](x))
    np.testing.assert_allclose(found, exact(x), rtol=1e-13, atol=2e-15)


def test_float32_stays_float32():
    assert TABLE[torch.ops.aten.special_bessel_y1.default](np.float32([0.5, 7.0])).dtype == np.float32
