"""Decompositions and solutions of linear systems."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lightjax_torch.lowering.table import aten, lower_all, lowers


def _hermitian(x: jax.Array, upper: bool) -> jax.Array:
    """Returns the symmetric matrix that one triangle holds."""
    strict = jnp.triu(x, 1) if upper else jnp.tril(x, -1)
    diagonal = jnp.real(x) * jnp.eye(x.shape[-1], dtype=jnp.real(x).dtype)
    return strict + jnp.conj(jnp.swapaxes(strict, -1, -2)) + diagonal


def _order_not_positive(x: jax.Array, upper: bool) -> jax.Array:
    """Returns the order of the first leading minor that is not positive, 0 where all are: LAPACK's word on a failure.

    It costs an elimination beside the decomposition's; compilers drop it where nothing reads it.
    """
    order = jnp.zeros(x.shape[:-2], jnp.int32)
    if not x.size:
        return order

    def eliminate(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rest, order = state
        pivot = jnp.real(rest[..., k, k])
        order = jnp.where((order == 0) & ~(pivot > 0), k + 1, order).astype(jnp.int32)
        column = rest[..., :, k]
        return rest - column[..., :, None] * jnp.conj(column)[..., None, :] / pivot[..., None, None], order

    return jax.lax.fori_loop(0, x.shape[-1], eliminate, (jax.lax.stop_gradient(_hermitian(x, upper)), order))[1]


def _zero_pivot(lu: jax.Array) -> jax.Array:
    """Returns the place, from 1, of the first pivot that is zero; 0 where none is."""
    if not lu.size:
        return jnp.zeros(lu.shape[:-2], jnp.int32)
    zero = jnp.diagonal(lu, axis1=-2, axis2=-1) == 0
    return jnp.where(jnp.any(zero, -1), jnp.argmax(zero, -1) + 1, 0).astype(jnp.int32)


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
    values, vectors = jnp.linalg.eigh(_hermitian(x, uplo == "U"))
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
    lu, pivots = _lu(a)
    return found[..., 0] if vector else found, lu, pivots, _zero_pivot(lu)


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


def _lu_of_determinant(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns what torch's backward pass solves with: for real numbers the decomposition of the transposed matrix."""
    return _lu(x if jnp.iscomplexobj(x) else jnp.swapaxes(x, -1, -2))


def _determinant(x: jax.Array) -> tuple[jax.Array, ...]:
    return jnp.linalg.det(x), *_lu_of_determinant(x)


def _log_determinant(x: jax.Array) -> tuple[jax.Array, ...]:
    sign, size = jnp.linalg.slogdet(x)
    return sign, size, *_lu_of_determinant(x)


lower_all(
    {
        aten.linalg_inv_ex.default: lambda x, check_errors=False: (jnp.linalg.inv(x), _zero_pivot(_lu(x)[0])),
        aten.linalg_cholesky_ex.default: lambda x, upper=False, check_errors=False: (
            jnp.linalg.cholesky(x, upper=upper, symmetrize_input=False),
            _order_not_positive(x, upper),
        ),
        aten._linalg_det.default: _determinant,
        aten._linalg_slogdet.default: _log_determinant,
        aten.linalg_qr.default: lambda x, mode="reduced": jnp.linalg.qr(x, mode),
    }
)


@lowers(aten.lu_unpack.default)
def lu_unpack(
    lu: jax.Array, pivots: jax.Array, unpack_data: bool = True, unpack_pivots: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The permutation and the triangular matrices of a decomposition."""
    m, n = lu.shape[-2:]
    k = min(m, n)
    nothing = jnp.zeros((0,), lu.dtype)
    permutation, lower, upper = nothing, nothing, nothing
    if unpack_data:
        lower = jnp.tril(lu[..., :, :k], -1) + jnp.eye(m, k, dtype=lu.dtype)
        upper = jnp.triu(lu[..., :k, :])
    if unpack_pivots:
        order = jax.lax.linalg.lu_pivots_to_permutation(pivots.astype(jnp.int32) - 1, m)
        permutation = jnp.swapaxes(jax.nn.one_hot(order, m, dtype=lu.dtype), -1, -2)
    return permutation, lower, upper


@lowers(aten.linalg_lu.default)
def lu(x: jax.Array, *, pivot: bool = True) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A permutation and two triangular matrices of which a matrix is the product."""
    if not pivot:
        raise NotImplementedError("without pivoting")
    return lu_unpack(*_lu(x))


@lowers(aten.linalg_lu_factor_ex.default)
def lu_factor(x: jax.Array, *, pivot: bool = True, check_errors: bool = False) -> tuple[jax.Array, ...]:
    """The decomposition as one matrix, and its exchanged rows."""
    if not pivot:
        raise NotImplementedError("without pivoting")
    lu, pivots = _lu(x)
    return lu, pivots, _zero_pivot(lu)


@lowers(aten.linalg_pinv.atol_rtol_tensor)
def pseudoinverse(x: jax.Array, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> jax.Array:
    """The Moore-Penrose inverse; what is small beside the largest singular value counts as zero."""
    if not x.size:
        return jnp.swapaxes(x, -1, -2)
    if rtol is None:
        rtol = max(x.shape[-2:]) * jnp.finfo(x.dtype).eps
        rtol = rtol if atol is None else jnp.where(jnp.asarray(atol) > 0, 0.0, rtol)
    if hermitian:
        signed, v = eigh(x)
        size, u = jnp.abs(signed), v
    else:
        u, size, vh = jnp.linalg.svd(x, full_matrices=False)
        signed, v = size, jnp.conj(jnp.swapaxes(vh, -1, -2))
    largest = jnp.max(size, -1, keepdims=True)
    cutoff = jnp.maximum(jnp.asarray(0.0 if atol is None else atol)[..., None], jnp.asarray(rtol)[..., None] * largest)
    kept = size > cutoff
    inverse = jnp.where(kept, 1 / jnp.where(kept, signed, 1), 0)
    return jnp.matmul(v * inverse[..., None, :], jnp.conj(jnp.swapaxes(u, -1, -2)))


@lowers(aten.cholesky.default)
def cholesky(x: jax.Array, upper: bool = False) -> jax.Array:
    """The triangular matrix of which a positive definite one is the product."""
    return jnp.linalg.cholesky(x, upper=upper, symmetrize_input=False)


@lowers(aten.cholesky_solve.default)
def cholesky_solve(b: jax.Array, factor: jax.Array, upper: bool = False) -> jax.Array:
    """Solves with a Cholesky decomposition."""
    lower = jnp.conj(jnp.swapaxes(factor, -1, -2)) if upper else factor
    first = solve_triangular(jnp.tril(lower), b, upper=False)
    return solve_triangular(jnp.conj(jnp.swapaxes(jnp.tril(lower), -1, -2)), first, upper=True)


@lowers(aten.cholesky_inverse.default)
def cholesky_inverse(factor: jax.Array, upper: bool = False) -> jax.Array:
    """The inverse of a matrix of which the Cholesky decomposition is known."""
    return cholesky_solve(jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape), factor, upper)


@lowers(aten.triangular_solve.default)
def old_triangular_solve(
    b: jax.Array, a: jax.Array, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The solution of a triangular system, and its matrix."""
    shape = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = jnp.broadcast_to(a, shape + a.shape[-2:])
    matrix = jnp.swapaxes(a, -1, -2) if transpose else a
    triangle = jnp.triu if upper != transpose else jnp.tril
    solved = solve_triangular(triangle(matrix), b, upper=upper != transpose, unitriangular=unitriangular)
    return solved, a


@lowers(aten.linalg_householder_product.default)
def householder_product(x: jax.Array, tau: jax.Array) -> jax.Array:
    """The first columns of a product of reflections."""
    return jax.lax.linalg.householder_product(x, tau)


@lowers(aten.ormqr.default)
def multiply_by_householder_product(
    x: jax.Array, tau: jax.Array, other: jax.Array, left: bool = True, transpose: bool = False
) -> jax.Array:
    """A matrix times the whole square product of reflections, or its adjoint, from either side."""
    if not tau.size or not other.size:
        return other  # of no reflections the product is one
    return jax.lax.linalg.ormqr(x, tau, other, left=left, transpose=transpose)


@lowers(aten.geqrf.default)
def geqrf(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The QR decomposition as LAPACK keeps it: the triangle, and reflections under it."""
    reflections, tau = jnp.linalg.qr(x, mode="raw")
    return jnp.swapaxes(reflections, -1, -2), tau


lower_all(
    {
        aten.linalg_eig.default: lambda x: tuple(jnp.linalg.eig(x)),
        aten.linalg_matrix_exp.default: lambda x: jax.scipy.linalg.expm(x) if x.size else x,
    }
)
