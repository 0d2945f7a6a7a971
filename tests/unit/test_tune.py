"""Searches before a training: what they suggest, and that they leave everything as it was."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import digit_like_data, linear_data, linear_loss, mlp_task, quiet


def task(optimizer):
    def init(key, batch):
        params = {"w": jnp.zeros(5), "b": jnp.zeros(())}
        return lj.TrainState.create(params=params, optimizer=optimizer, key=key)

    return lj.Task.from_loss(init, linear_loss)


def loader():
    return lj.ArrayLoader(linear_data(40), 8, shuffle=True)


def test_each_step_is_taken_at_its_rate():
    found = lj.tune.find_lr(task(optax.sgd(0.123)), loader(), min_lr=1e-3, max_lr=1e-1, num_training=12)
    np.testing.assert_allclose(found.learning_rates, np.geomspace(1e-3, 1e-1, 12))
    state = task(optax.sgd(1.0)).init(jax.random.key(0), None)
    params, losses = state.params, []
    batches = [batch for epoch in range(3) for batch in loader().epoch(epoch)]
    for rate, batch in zip(found.learning_rates, batches, strict=False):
        loss, grads = jax.value_and_grad(lambda p, b: linear_loss(state.replace(params=p), b)[0])(params, batch)
        losses.append(float(loss))
        params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, grads)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    assert found.smoothed[0] == pytest.approx(losses[0])


@pytest.mark.parametrize("optimizer", [optax.adam(1e-5), optax.adamw(optax.linear_schedule(0.0, 1e-3, 50))])
def test_the_suggestion_trains_better_than_its_neighbours_a_hundred_times_away(optimizer):
    found = lj.tune.find_lr(mlp_task_with(optimizer), digits(), num_training=80, max_lr=10.0)
    assert 1e-4 < found.suggestion < 1.0

    def loss(rate):
        return quiet(max_epochs=2).fit(mlp_task_with(optax.adam(rate)), digits()).metrics["train/loss_epoch"]

    assert loss(found.suggestion) < loss(found.suggestion / 100)


def mlp_task_with(optimizer):
    plain = mlp_task()

    def init(key, batch):
        params = plain.init(key, batch).params
        return lj.TrainState.create(params=params, optimizer=optimizer, key=key)

    return lj.Task(init, plain.train_step, plain.eval_step)


def digits():
    return lj.ArrayLoader(digit_like_data(128), 16, shuffle=True)


def test_the_curve_ends_when_the_loss_explodes():
    found = lj.tune.find_lr(task(optax.sgd(0.1)), loader(), max_lr=1e4, num_training=200, smoothing=0.5)
    assert len(found.losses) == len(found.learning_rates) < 200
    whole = lj.tune.find_lr(task(optax.sgd(0.1)), loader(), max_lr=1e-3, num_training=30, early_stop_threshold=None)
    assert len(whole.losses) == 30


def test_the_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    found = lj.tune.find_lr(task(optax.sgd(0.1)), loader(), num_training=30)
    path = found.plot(tmp_path / "lr.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_searches_leave_loaders_and_generators_as_they_were():
    torch = pytest.importorskip("torch")
    data = linear_data(40)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(data["x"]), torch.from_numpy(data["y"]))
    generator = torch.Generator().manual_seed(0)
    torch_loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True, generator=generator)

    def loss(state, batch):
        return linear_loss(state, dict(zip("xy", batch, strict=True)))

    def init(key, batch):
        return lj.TrainState.create(params={"w": jnp.zeros(5), "b": jnp.zeros(())}, optimizer=optax.sgd(0.1), key=key)

    ours = loader()
    next(iter(ours))

    def everything():
        return (
            random.getstate(),
            np.random.get_state()[1].tobytes(),
            torch.get_rng_state().tolist(),
            generator.get_state().tolist(),
            ours._next_epoch,
        )

    before = everything()
    lj.tune.find_lr(lj.Task.from_loss(init, loss), torch_loader, num_training=12)
    lj.tune.find_lr(task(optax.sgd(0.1)), ours, num_training=12)
    lj.tune.find_batch_size(task(optax.sgd(0.1)), ours, max_batch_size=8)
    assert everything() == before


def test_the_largest_batch_that_the_compiler_says_fits_is_found_and_tried():
    unlimited = lj.tune.find_batch_size(task(optax.sgd(0.1)), loader(), init_val=4, max_batch_size=64)
    assert (unlimited.batch_size, unlimited.confirmed) == (64, True)
    sizes = list(unlimited.bytes_needed)
    assert sizes == [4, 8, 16, 32, 64]
    needed = [unlimited.bytes_needed[size] for size in sizes]
    assert needed == sorted(needed)
    assert needed[-1] - needed[-2] >= 32 * 6 * 4  # 32 more examples of six floats
    limit = needed[2]
    found = lj.tune.find_batch_size(
        task(optax.sgd(0.1)), loader(), init_val=4, memory_limit=limit, headroom=0.0, confirm=False
    )
    assert (found.batch_size, found.confirmed, found.memory_limit) == (16, False, limit)
    assert lj.tune.find_batch_size(task(optax.sgd(0.1)), loader(), memory_limit=10).batch_size == 0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: lj.tune.find_lr(task(optax.sgd(0.1)), loader(), min_lr=0), lj.ConfigurationError, "min_lr=0"),
        (lambda: lj.tune.find_lr(task(optax.sgd(0.1)), loader(), monitor="los"), lj.MetricError, "reports: loss"),
        (
            lambda: lj.tune.find_lr(task(optax.scale_by_adam()), loader()),
            lj.ConfigurationError,
            "found no learning rate",
        ),
        (
            lambda: lj.tune.find_lr(lj.Task(lambda key, batch: {"w": jnp.zeros(2)}, print), loader()),
            lj.ConfigurationError,
            "find_lr works on the optimizer of a TrainState",
        ),
        (
            lambda: lj.tune.find_batch_size(task(optax.sgd(0.1)), loader(), headroom=1.0),
            lj.ConfigurationError,
            r"headroom=1\.0",
        ),
        (
            lambda: lj.tune.find_batch_size(task(optax.sgd(0.1)), [{"x": np.zeros((4, 5)), "n": np.zeros(3)}]),
            lj.ConfigurationError,
            r"share none: 'n' float32\[3\], 'x' float32\[4,5\]",
        ),
    ],
)
def test_what_cannot_be_searched_is_said(call, error, text):
    with pytest.raises(error, match=text):
        call()
