"""Functions of torch whose results tell of values that they cannot use, or that depend on values, in a port."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lightjax_torch  # noqa: E402
from lightjax_torch.lowering import TABLE  # noqa: E402


class Counts(torch.nn.Module):
    def forward(self, values, weights=None):
        return torch.bincount(values, weights, minlength=4)


def test_bincount_counts_and_shows_what_has_no_place():
    values, weights = torch.tensor([0, 2, 2, 3]), torch.tensor([0.5, 1.0, 2.0, 4.0])
    larger = torch.tensor([0, 2, 2, 4])
    for given in ((values,), (values, weights)):
        counts, *_ = lightjax_torch.jax_function(Counts(), *given)
        found, _ = counts({}, {}, *(one.numpy() for one in given))
        np.testing.assert_array_equal(np.asarray(found), Counts()(*given).numpy())
        wrong = np.asarray(counts({}, {}, larger.numpy(), *(one.numpy() for one in given[1:]))[0])
        assert np.isnan(wrong).all() or (wrong == -(2**31)).all()


_ONES = torch.ones(3, 1)
_SYMMETRIC = torch.tensor([[4.0, 2.0, 0.0], [2.0, 5.0, 1.0], [0.0, 1.0, 3.0]])
_SINGULAR = torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [0.0, 1.0, 3.0]])


@pytest.mark.parametrize(
    ("info", "broken"),
    [
        (lambda x: torch.linalg.cholesky_ex(x).info, torch.stack([_SYMMETRIC - 3 * torch.eye(3), -_SYMMETRIC])),
        (lambda x: torch.linalg.cholesky_ex(x, upper=True).info, torch.stack([_SYMMETRIC - 3, _SYMMETRIC * torch.nan])),
        (lambda x: torch.linalg.inv_ex(x).info, torch.stack([_SINGULAR, 0 * _SYMMETRIC])),
        (lambda x: torch.linalg.lu_factor_ex(x).info, torch.stack([_SINGULAR, _SINGULAR.flip(-1)])),
        (lambda x: torch.linalg.solve_ex(x, _ONES).info, torch.stack([_SINGULAR, 0 * _SYMMETRIC])),
    ],
    ids=["cholesky", "upper cholesky", "inverse", "lu", "solve"],
)
def test_a_decomposition_says_where_it_fails(info, broken):
    x = torch.cat([_SYMMETRIC[None], broken])
    found, *_ = lightjax_torch.jax_function(info, x)
    np.testing.assert_array_equal(np.asarray(found({}, {}, x.numpy())[0]), info(x).numpy())
    assert info(x)[0] == 0
    assert info(x).count_nonzero() == 2


def test_a_decomposition_that_fails_gives_way_to_another_one_with_its_gradient():
    def decomposed_where_it_can_be(x):
        failed = torch.linalg.cholesky_ex(x).info
        safe = torch.linalg.cholesky(torch.where(failed[..., None, None] > 0, torch.eye(3), x))
        return safe.square().sum((-1, -2)) * (1 + failed)

    x = torch.stack([_SYMMETRIC, -_SYMMETRIC]).requires_grad_()
    expected = decomposed_where_it_can_be(x)
    (gradient,) = torch.autograd.grad(expected.sum(), [x])
    found, *_ = lightjax_torch.jax_function(decomposed_where_it_can_be, x.detach().requires_grad_())
    ours, theirs = jax.value_and_grad(lambda x: found({}, {}, x)[0].sum())(x.detach().numpy())
    np.testing.assert_allclose(np.asarray(ours), expected.sum().item(), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(theirs), gradient.numpy(), atol=1e-6)


def test_a_mask_takes_as_many_values_as_it_has_true_elements():
    x, mask = torch.arange(24.0).reshape(2, 4, 3), torch.tensor([True, False, True, True])
    write = torch.ops.aten.index_put.default
    for values in (torch.tensor(7.0), torch.arange(18.0).reshape(2, 3, 3), torch.arange(3.0), torch.ones(2, 1, 3)):
        found = TABLE[write](x.numpy(), [None, mask.numpy()], values.numpy())
        np.testing.assert_array_equal(np.asarray(found), write(x, [None, mask], values).numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_bags_with_the_gradient_of_their_rows(dtype):
    """In float32 torch does not say which bag an index is in."""
    table = torch.rand(6, 3, dtype=dtype, requires_grad=True)
    indices, offsets = torch.tensor([1, 5, 2, 2, 0]), torch.tensor([0, 2, 2])

    def squares(table, indices, offsets):
        return (torch.nn.functional.embedding_bag(indices, table, offsets, mode="sum") ** 2).sum()

    value = squares(table, indices, offsets)
    value.backward()
    with jax.enable_x64(dtype is torch.float64):
        fn, *_ = lightjax_torch.jax_function(squares, table, indices, offsets)
        found, gradient = jax.value_and_grad(lambda table: fn({}, {}, table, indices.numpy(), offsets.numpy())[0])(
            table.detach().numpy()
        )
    np.testing.assert_allclose(found, value.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, table.grad.numpy(), rtol=1e-6)


def test_windows_of_an_empty_batch():
    x = torch.zeros(0, 2, 5, 4)
    unfold = torch.nn.Unfold((2, 3), dilation=2, padding=1, stride=(1, 2))
    fn, *_ = lightjax_torch.jax_function(unfold, x)
    assert fn({}, {}, x.numpy())[0].shape == tuple(unfold(x).shape)
