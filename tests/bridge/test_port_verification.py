"""`verify`: torch and JAX operation by operation on real values."""

import jax
import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")

from lightjax.errors import ConfigurationError  # noqa: E402
from lightjax_torch import port_task  # noqa: E402
from lightjax_torch.lowering import TABLE  # noqa: E402
from lightjax_torch.verification import VerificationError  # noqa: E402
from tests.bridge.test_port import CachedMask, ConvNet, Regression, images, sequences, tokens  # noqa: E402
from tests.bridge.test_port_manual import Gan  # noqa: E402
from tests.bridge.test_port_manual import data as noise  # noqa: E402
from tests.models import quiet  # noqa: E402


@pytest.mark.parametrize(("kind", "data"), [(ConvNet, images), (CachedMask, tokens), (Gan, noise)])
def test_a_right_port_is_verified_as_a_whole(kind, data):
    task = port_task(kind())
    batch = jax.tree.map(lambda t: t.numpy(), data(1)[0])
    assert task.verify(task.init(jax.random.key(0), batch), batch) > 20


def test_a_run_with_verify_goes_on():
    result = quiet(max_epochs=1).fit(port_task(Regression(), verify=True), sequences(3))
    assert int(result.state.step) == 3


def test_the_first_operation_that_differs_stops_the_run_with_its_line(monkeypatch):
    monkeypatch.setitem(TABLE, torch.ops.aten.tanh.default, lambda x: jnp.tanh(x) * 1.01)
    task = port_task(Regression(), verify=True)
    with pytest.raises(
        VerificationError, match=r"test_port\.py:\d+: aten\.tanh\.default gives .* in JAX and .* in torch"
    ):
        quiet(max_epochs=1).fit(task, sequences(3))


def test_a_state_from_elsewhere_is_verified_by_hand():
    batch = jax.tree.map(lambda t: t.numpy(), sequences(1)[0])
    state = port_task(Regression()).init(jax.random.key(0), batch)
    task = port_task(Regression(), verify=True)
    with pytest.raises(ConfigurationError, match=r"task\.verify\(state, batch\)"):
        quiet(max_epochs=1).fit(task, sequences(3), state=state)
