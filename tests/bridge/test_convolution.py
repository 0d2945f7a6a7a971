"""Convolutions that have a way of their own on a CPU, against torch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from lightjax_torch import jax_function  # noqa: E402

# Kind, outputs, groups, window, stride, padding, dilation, of six inputs.
DEPTHWISE = [
    (nn.Conv2d, 6, 6, (2, 3), (3, 1), (0, 2), (1, 2)),
    (nn.Conv1d, 6, 6, 4, 2, 3, 1),
    (nn.Conv3d, 6, 6, 2, 2, 1, 1),
    (nn.ConvTranspose2d, 6, 6, 3, 2, 1, 2),
]
UNSTRIDED = [
    (nn.Conv2d, 8, 1, (2, 3), 1, (0, 4), 1),
    (nn.Conv1d, 6, 1, 1, 1, 0, 1),
    (nn.Conv3d, 7, 1, 3, 1, 1, 1),
    (nn.Conv2d, 8, 1, 3, 1, 2, (1, 2)),
    (nn.Conv2d, 4, 1, 3, 1, 1, 1),
]


@pytest.mark.parametrize(
    ("kind", "outputs", "groups", "window", "stride", "padding", "dilation"), [*DEPTHWISE, *UNSTRIDED]
)
def test_convolutions_and_their_gradients_are_torchs(
    kind, outputs, groups, window, stride, padding, dilation, double_precision
):
    torch.manual_seed(0)
    module = kind(6, outputs, window, stride=stride, padding=padding, dilation=dilation, groups=groups)
    x = torch.randn(2, 6, *[9, 10, 7][: module.weight.ndim - 2], requires_grad=True)
    y = module(x)
    g = torch.randn_like(y)
    y.backward(g)
    fn, params, buffers = jax_function(module, x)

    @jax.jit
    def both(params, x, g):
        found, transpose = jax.vjp(lambda params, x: fn(params, buffers, x)[0], params, x)
        return found, *transpose(g)

    found, of_params, of_x = both(params, x.detach().numpy(), g.numpy())
    np.testing.assert_allclose(found, y.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(of_x, x.grad.numpy(), rtol=1e-12, atol=1e-12)
    for name, param in module.named_parameters():
        np.testing.assert_allclose(of_params[name], param.grad.numpy(), rtol=1e-11, atol=1e-11)


def test_a_channel_may_have_several_windows(double_precision):
    torch.manual_seed(0)
    module, x = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3), torch.randn(2, 3, 8, 8, requires_grad=True)
    y = module(x)
    y.backward(torch.ones_like(y))
    fn, params, buffers = jax_function(module, x)
    of_x = jax.jit(jax.grad(lambda x: fn(params, buffers, x)[0].sum()))(x.detach().numpy())
    np.testing.assert_allclose(of_x, x.grad.numpy(), rtol=1e-12, atol=1e-12)
