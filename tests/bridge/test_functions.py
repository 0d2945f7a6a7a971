"""Functions that depend on values in torch, and have a fixed shape in a port."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lightjax_torch  # noqa: E402


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
