"""Trains with backend="inductor"; run by `make compile-test`, since compiling takes half a minute of processor time."""

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._inductor import config  # noqa: E402

from tests.bridge.native.test_backends import fit  # noqa: E402


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: apt-get install g++")
@pytest.mark.filterwarnings("default")
def test_inductor_trains_as_eager_does(monkeypatch):
    # Its pool of workers would outlive the test.
    monkeypatch.setattr(config, "compile_threads", 1)
    eager, result = fit("eager"), fit("inductor")
    np.testing.assert_allclose(result.state.params["layer.weight"], eager.state.params["layer.weight"], rtol=1e-6)
    assert result.metrics.keys() == eager.metrics.keys()
    for name, value in eager.metrics.items():
        assert result.metrics[name] == pytest.approx(value, rel=1e-6)
