"""Lowering: every ATen operation as JAX, one file a family.

A rule is a function of the operation's arguments, tensors as JAX arrays, that returns arrays of the right shape; the
interpreter casts them to the dtype that torch gave the result. Rules need no gradient of their own: graphs that are
differentiated hold torch's backward operations, which have rules, too.
"""

from lightjax_torch.lowering import (
    bessel,
    convolution,
    creation,
    elementwise,
    fourier,
    histograms,
    indexing,
    linalg,
    losses,
    matmul,
    normalization,
    polynomials,
    pooling,
    random,
    recurrent,
    reductions,
    resampling,
    segments,
    shapes,
)
from lightjax_torch.lowering.table import TABLE, register_lowering

__all__ = [
    "TABLE",
    "bessel",
    "convolution",
    "creation",
    "elementwise",
    "fourier",
    "histograms",
    "indexing",
    "linalg",
    "losses",
    "matmul",
    "normalization",
    "polynomials",
    "pooling",
    "random",
    "recurrent",
    "reductions",
    "register_lowering",
    "resampling",
    "segments",
    "shapes",
]
