"""Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lightjax_torch.lowering.table import aten, lowers

# Torch numbers the normalizations of its kernels: none, by the square root, by the length.
_FORWARD = {0: "backward", 1: "ortho", 2: "forward"}
_INVERSE = {0: "forward", 1: "ortho", 2: "backward"}


@lowers(aten._fft_r2c.default)
def fft_of_reals(x: jax.Array, dim: Sequence[int], normalization: int, onesided: bool) -> jax.Array:
    """The transform of real numbers."""
    return (jnp.fft.rfftn if onesided else jnp.fft.fftn)(x, axes=dim, norm=_FORWARD[normalization])


@lowers(aten._fft_c2r.default)
def fft_to_reals(x: jax.Array, dim: Sequence[int], normalization: int, last_size: int) -> jax.Array:
    """The inverse transform that gives real numbers."""
    sizes = [*(x.shape[d] for d in dim[:-1]), last_size]
    return jnp.fft.irfftn(x, s=sizes, axes=dim, norm=_INVERSE[normalization])


@lowers(aten._fft_c2c.default)
def fft_of_complex(x: jax.Array, dim: Sequence[int], normalization: int, forward: bool) -> jax.Array:
    """The transform of complex numbers, or its inverse."""
    if forward:
        return jnp.fft.fftn(x, axes=dim, norm=_FORWARD[normalization])
    return jnp.fft.ifftn(x, axes=dim, norm=_INVERSE[normalization])
