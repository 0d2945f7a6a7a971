"""Ported modules over eight devices: the same training, however the state and the batch lie."""

import copy

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lightjax.errors import ConfigurationError  # noqa: E402
from lightjax_torch import port_task  # noqa: E402
from tests.bridge.test_port import Regression, by_hand, sequences  # noqa: E402
from tests.models import quiet  # noqa: E402


@pytest.mark.parametrize("strategy", ["jit", "fsdp", "pmap"])
def test_eight_devices_train_as_torch_does(strategy, double_precision):
    torch.manual_seed(0)
    module, batches = Regression(), [(torch.randn(8, 5, 3), torch.randn(8, 5, 1)) for _ in range(4)]
    reference = copy.deepcopy(module)
    by_hand(reference, batches)
    task = port_task(module)
    result = quiet(max_epochs=1, strategy=strategy, devices=8).fit(task, batches)
    ours = task.state_dict(result.state)
    for name, tensor in reference.state_dict().items():
        np.testing.assert_allclose(ours[name].numpy(), tensor.numpy(), rtol=1e-9, atol=1e-9, err_msg=name)


def test_bf16_trains_a_ported_module():
    torch.manual_seed(0)
    module, batches = Regression(), sequences(4)
    reference = copy.deepcopy(module)
    by_hand(reference, batches)
    task = port_task(module)
    result = quiet(max_epochs=1, precision="bf16-mixed").fit(task, batches)
    ours = task.state_dict(result.state)
    for name, tensor in reference.state_dict().items():
        # 8 bits of mantissa in 4 steps of size 0.1.
        np.testing.assert_allclose(ours[name].numpy(), tensor.numpy(), atol=2e-2, err_msg=name)
        assert ours[name].dtype == torch.float32


def test_a_module_without_values_is_planned_and_trained_from_a_state():
    batches = sequences(2)
    with torch.device("meta"):
        task = port_task(Regression())
    arrays = jax.tree.map(lambda tensor: tensor.numpy(), batches[0])
    assert quiet(max_epochs=1).plan(task, arrays).shardings["params/net.0.weight"] == "whole"
    with pytest.raises(ConfigurationError, match="on the meta device and have no values"):
        quiet(max_epochs=1).fit(task, batches)
    real = Regression()
    state = port_task(real).init(jax.random.key(0), arrays)
    result = quiet(max_epochs=1).fit(task, batches, state=state)
    by_hand(real, batches)
    found = task.state_dict(result.state)
    for name, tensor in real.state_dict().items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
    with pytest.raises(ConfigurationError, match="materialize it"):
        task.to_torch(result.state)
