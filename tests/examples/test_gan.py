"""examples/gan.py trains both of its networks, whatever is asked of their gradients."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightjax as lj
from tests.models import quiet

SCRIPT = Path(__file__).parents[2] / "examples" / "gan.py"


@pytest.fixture(scope="module")
def gan():
    spec = importlib.util.spec_from_file_location("gan_example", SCRIPT)
    module = sys.modules["gan_example"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_drawn_images_come_closer_to_the_digits(gan):
    before, after = gan.main(["--max-epochs", "40"])
    assert after < 0.5 * before


def test_a_policy_holds_for_both_networks_and_is_reported_for_each(gan):
    data = {"image": np.random.default_rng(0).random((96, 64), np.float32)}
    task = lj.Task(gan.init, gan.train_step)
    trainer = quiet(max_epochs=1, precision="16-mixed", accumulate_grad_batches=2, gradient_clip_val=1.0)
    result = trainer.fit(task, lj.ArrayLoader(data, 16))
    for network in result.state:
        assert int(network.step) == 3
        assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {jnp.dtype("float32")}
    for name in ("generator", "discriminator"):
        for metric in ("loss_scale", "skipped_steps", "grad_norm"):
            assert f"train/{name}/{metric}" in result.metrics


def test_accumulated_steps_of_both_networks_are_those_of_the_big_batch(gan, monkeypatch):
    # The same noise for every example, so that it does not depend on how a batch is cut.
    monkeypatch.setattr(
        gan,
        "images",
        lambda generator, key, count: gan.GENERATOR.apply(generator.params, jnp.ones((count, gan.LATENT))),
    )
    data = {"image": np.random.default_rng(0).random((96, 64), np.float32)}
    task = lj.Task(gan.init, gan.train_step)
    small = quiet(max_epochs=1, accumulate_grad_batches=3).fit(task, lj.ArrayLoader(data, 16)).state
    big = quiet(max_epochs=1).fit(task, lj.ArrayLoader(data, 48)).state
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4),  # Adam's first steps
        [one.params for one in small],
        [one.params for one in big],
    )
