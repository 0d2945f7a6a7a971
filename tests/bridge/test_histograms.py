"""Histograms against torch: given ranges, weights, edges and more than one dimension."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lightjax_torch import jax_function  # noqa: E402


@pytest.mark.parametrize(
    "options", [{}, {"range": (-1.0, 1.5)}, {"range": (0.0, 0.0)}, {"density": True}], ids=lambda one: str(one)
)
def test_elements_on_edges_fall_where_torch_puts_them(options):
    x = torch.randint(-20, 20, (500,), generator=torch.Generator().manual_seed(0)).float() / 10
    function = lambda x: tuple(torch.histogram(x.detach(), 10, **options))  # noqa: E731
    fn, params, buffers = jax_function(function, x)
    found = jax.jit(fn)(params, buffers, x.numpy())[0]
    for one, other in zip(found, function(x), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-6)


def test_weights_and_edges_of_the_users():
    x, weight = torch.linspace(-1, 1, 50), torch.arange(50.0)
    edges = torch.tensor([-0.8, -0.1, 0.0, 0.7])
    function = lambda x, weight: torch.histogram(x.detach(), edges, weight=weight.detach()).hist  # noqa: E731
    fn, params, buffers = jax_function(function, x, weight)
    found = fn(params, buffers, x.numpy(), weight.numpy())[0]
    np.testing.assert_allclose(found, function(x, weight).numpy(), rtol=1e-6)


def test_two_dimensions():
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    function = lambda x: torch.histogramdd(x.detach(), [3, 4], range=[0.0, 1.0, 0.2, 0.8]).hist  # noqa: E731
    fn, params, buffers = jax_function(function, x)
    np.testing.assert_array_equal(fn(params, buffers, x.numpy())[0], function(x).numpy())
