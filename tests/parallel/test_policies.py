"""Precision, accumulation, clipping and predictions mean the same on one device and on eight."""

import jax
import numpy as np
import pytest

import lightjax as lj
from tests.models import linear_data, linear_task, quiet
from tests.parallel.tasks import train

# Of 70 examples in batches of 16 the last has 6, and groups of three batches leave two.
POLICIES = {
    "accumulated": (("jit", "fsdp"), {"accumulate_grad_batches": 3}, 2e-4),
    # One rounding of float16 is 2^-11, and sums are added up in another order: where a gradient is nearly zero, Adam
    # makes a step of 3e-3 of what is left of it, a few times.
    "float16": (("pmap",), {"precision": "16-mixed", "accumulate_grad_batches": 3, "gradient_clip_val": 0.5}, 1e-2),
}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", POLICIES)
def test_eight_devices_follow_a_policy_as_one_does(name):
    strategies, policy, tolerance = POLICIES[name]
    expected = train("mlp", devices=1, **policy)
    for strategy in strategies:
        found = train("mlp", devices=8, strategy=strategy, **policy)
        assert int(found.state.step) == int(expected.state.step)
        for metric in ("train/loss_epoch", "val/loss"):
            assert found.metrics[metric] == pytest.approx(expected.metrics[metric], rel=tolerance)
        pairs = zip(jax.tree.leaves(found.state.params), jax.tree.leaves(expected.state.params), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("strategy", ["jit", "fsdp", "pmap"])
def test_predictions_keep_their_order_over_eight_devices(strategy):
    data = lj.ArrayLoader(linear_data(29), 8)
    state = quiet(max_epochs=1, devices=1).fit(linear_task(), data).state
    expected = quiet(max_epochs=1, devices=1).predict(linear_task(), data, state=state)
    found = quiet(max_epochs=1, devices=8, strategy=strategy).predict(linear_task(), data, state=state)
    assert found.shape == (29,)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
