"""`Trainer.fit` against loops written by hand: same model, data order and key, 3 epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import bits, digit_like_data, linear_data, linear_task, mlp_task, quiet

TASKS = {
    "linear": (linear_task, linear_data(100), 8),  # 12 full batches and one of 4
    "mlp with dropout": (mlp_task, digit_like_data(150), 32),  # 4 full batches and one of 22
}


@pytest.fixture(params=TASKS)
def case(request):
    make_task, arrays, batch_size = TASKS[request.param]
    return make_task(), lambda: lj.ArrayLoader(arrays, batch_size, shuffle=True, seed=3)


def initial_state(task, loader):
    return jax.jit(task.init)(jax.random.key(11), next(loader.epoch(0)))


def test_parameters_are_bitwise_those_of_a_hand_written_scan(case):
    task, make_loader = case
    result = quiet(max_epochs=3, seed=11).fit(task, make_loader())

    def run(state, stack):
        return jax.lax.scan(lambda state, batch: (task.train_step(state, batch)[0], None), state, stack)[0]

    run = jax.jit(run)
    loader = make_loader()
    state = initial_state(task, loader)
    for _ in range(3):
        for batch in loader:
            state = run(state, jax.tree.map(lambda leaf: leaf[None], batch))
    assert bits(result.state) == bits(state)


def test_parameters_are_those_of_a_plain_jitted_loop_within_float32_rounding(case):
    task, make_loader = case
    result = quiet(max_epochs=3, seed=11).fit(task, make_loader())
    step = jax.jit(task.train_step)
    loader = make_loader()
    state = initial_state(task, loader)
    for _ in range(3):
        for batch in loader:
            state, _ = step(state, batch)
    # XLA fuses a step inside a loop differently from one outside: the last bit differs, and Adam divides by
    # second moments near zero in its first steps.
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6),
        result.state.params,
        state.params,
    )
    assert int(result.state.step) == int(state.step)


def test_a_convolutional_task_is_bitwise_a_plain_jitted_loop_on_cpu():
    """Convolutions run outside of loops on the CPU, where they are much faster: the plain step is the reference."""
    kernel_shape = (3, 3, 1, 4)

    def init(key, batch):
        params = {"kernel": jax.random.normal(key, kernel_shape) / 3, "head": jnp.zeros((4, 10))}
        return lj.TrainState.create(params=params, optimizer=optax.sgd(0.1, momentum=0.9), key=key)

    def loss_fn(state, batch):
        image = batch["x"].reshape(-1, 4, 4, 1)
        dimensions = ("NHWC", "HWIO", "NHWC")
        features = jax.lax.conv_general_dilated(
            image, state.params["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        logits = jax.nn.relu(features).mean((1, 2)) @ state.params["head"]
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], 1)
        return losses.mean(), {"loss": lj.Mean(losses)}

    task = lj.Task.from_loss(init, loss_fn)
    loader = lj.ArrayLoader(digit_like_data(96), 32)
    result = quiet(max_epochs=2).fit(task, loader)
    step = jax.jit(task.train_step)
    state = jax.jit(task.init)(jax.random.key(0), next(loader.epoch(0)))
    for _ in range(2):
        for batch in loader:
            state, _ = step(state, batch)
    assert bits(result.state) == bits(state)


def test_history_holds_the_exact_means_of_a_hand_written_loop():
    task, arrays = linear_task(), linear_data(100)
    loader = lj.ArrayLoader(arrays, 8, shuffle=True, seed=3)
    val = lj.ArrayLoader(linear_data(30, seed=1), 8)
    result = quiet(max_epochs=2, log_every_n_steps=5).fit(task, loader, val)

    step, evaluate = jax.jit(task.train_step), jax.jit(task.eval_step)
    state = jax.jit(task.init)(jax.random.key(0), next(loader.epoch(0)))
    expected, number = {}, 0
    for epoch in range(2):
        window, whole = [], []
        for batch in loader.epoch(epoch):
            state, metrics = step(state, batch)
            number += 1
            # Each example counts once: the mean of a batch of 4 weighs half that of a batch of 8.
            entry = (float(metrics["loss"].compute()), len(batch["x"]))
            window.append(entry)
            whole.append(entry)
            if number % 5 == 0 or len(whole) == len(loader):
                expected[number, "train/loss"] = mean_of(window)
                window = []
        expected[number, "train/loss_epoch"] = mean_of(whole)
        found = [(float(evaluate(state, batch)["loss"].compute()), len(batch["x"])) for batch in val.epoch(0)]
        expected[number, "val/loss"] = mean_of(found)

    reported = {(row["step"], name): value for row in result.history for name, value in row.items() if "/" in name}
    assert reported.keys() == expected.keys()
    for key, value in expected.items():
        assert reported[key] == pytest.approx(value, rel=1e-5), key
    assert [row["step"] for row in result.history] == [5, 10, 13, 15, 20, 25, 26]


def mean_of(batches):
    """The mean over examples of batch means with their sizes."""
    losses, sizes = zip(*batches, strict=True)
    return np.average(losses, weights=sizes)
