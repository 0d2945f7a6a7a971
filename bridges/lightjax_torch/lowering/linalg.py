"""Decompositions and solutions of linear systems."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lightjax_torch.lowering.table import aten, lower_all, lowers


def _no_error(x: jax.Array) -> jax.Array:
    return jnp.zeros(x.shape[:-2], jnp.int32)


@lowers(aten._linalg_svd.default)
def svd(
    x: jax.Array, full_matrices: bool = False, compute_uv: bool = True, driver: Any = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Singular vectors and values."""
    if compute_uv:
        u, values, vh = jnp.linalg.svd(x, full_matrices)
        return u, values, vh
    return jnp.zeros((0,), x.dtype), jnp.linalg.svd(x, compute_uv=False), jnp.zeros((0,), x.dtype)


@lowers(aten._linalg_eigh.default)
def eigh(x: jax.Array, uplo: str = "L", compute_v: bool = True) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors of the symmetric matrix that one triangle holds."""
    strict = jnp.tril(x, -1) if uplo == "L" else jnp.triu(x, 1)
    diagonal = jnp.real(x) * jnp.eye(x.shape[-1], dtype=jnp.real(x).dtype)
    values, vectors = jnp.linalg.eigh(strict + jnp.conj(jnp.swapaxes(strict, -1, -2)) + diagonal)
    return values, vectors


@lowers(aten._linalg_solve_ex.default)
def solve(a: jax.Array, b: jax.Array, *, left: bool = True, check_errors: bool = False) -> tuple[jax.Array, ...]:
    """The solution of a linear system, with its LU decomposition."""
    vector = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    right = b[..., None] if vector else b
    if left:
        found = jnp.linalg.solve(a, right)
    else:
        found = jnp.swapaxes(jnp.linalg.solve(jnp.swapaxes(a, -1, -2), jnp.swapaxes(right, -1, -2)), -1, -2)
    return found[..., 0] if vector else found, *_lu(a), _no_error(a)


def _lu(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the decomposition and pivots as torch keeps them: exchanged rows, counted from 1."""
    lu, pivots, _ = jax.lax.linalg.lu(a)
    return lu, pivots + 1


@lowers(aten.linalg_lu_solve.default)
def lu_solve(lu: jax.Array, pivots: jax.Array, b: jax.Array, *, left: bool = True, adjoint: bool = False) -> jax.Array:
    """Solves with a decomposition."""
    if not left:
        flipped = lu_solve(lu, pivots, jnp.conj(jnp.swapaxes(b, -1, -2)), left=True, adjoint=not adjoint)
        return jnp.conj(jnp.swapaxes(flipped, -1, -2))
    solve_one = lambda lu, pivots, b: jax.scipy.linalg.lu_solve((lu, pivots - 1), b, trans=2 if adjoint else 0)  # noqa: E731
    shape = jnp.broadcast_shapes(lu.shape[:-2], b.shape[:-2])
    lu, b = jnp.broadcast_to(lu, shape + lu.shape[-2:]), jnp.broadcast_to(b, shape + b.shape[-2:])
    pivots = jnp.broadcast_to(pivots, shape + pivots.shape[-1:])
    for _ in shape:
        solve_one = jax.vmap(solve_one)
    return solve_one(lu, pivots, b)


@lowers(aten.linalg_solve_triangular.default)
def solve_triangular(
    a: jax.Array, b: jax.Array, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> jax.Array:
    """The solution of a triangular system."""
    shape = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = jnp.broadcast_to(a, shape + a.shape[-2:]), jnp.broadcast_to(b, shape + b.shape[-2:])
    return jax.lax.linalg.triangular_solve(a, b, left_side=left, lower=not upper, unit_diagonal=unitriangular)


def _determinant(x: jax.Array) -> tuple[jax.Array, ...]:
    return jnp.linalg.det(x), *_lu(x)


def _log_determinant(x: jax.Array) -> tuple[jax.Array, ...]:
    sign, size = jnp.linalg.slogdet(x)
    return sign, size, *_lu(x)


lower_all(
    {
        aten.linalg_inv_ex.default: lambda x, check_errors=False: (jnp.linalg.inv(x), _no_error(x)),
        aten.linalg_cholesky_ex.default: lambda x, upper=False, check_errors=False: (
            jnp.linalg.cholesky(x, upper=upper, symmetrize_input=False),
            _no_error(x),
        ),
        aten._linalg_det.default: _determinant,
        aten._linalg_slogdet.default: _log_determinant,
        aten.linalg_qr.default: lambda x, mode="reduced": jnp.linalg.qr(x, mode),
        aten.linalg_lu_factor_ex.default: lambda x, pivot=True, check_errors=False: (*_lu(x), _no_error(x)),
    }
)
