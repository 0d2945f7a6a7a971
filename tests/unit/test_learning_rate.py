"""The learning rate is found in every kind of optax optimizer."""

import jax
import jax.numpy as jnp
import optax
import pytest

import lightjax as lj
from lightjax.learning_rate import learning_rates
from tests.models import linear_data, linear_loss, quiet

SCHEDULE = optax.linear_schedule(1.0, 0.0, 10)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optax.sgd(0.3), {"": 0.3}),
        (optax.adamw(0.3), {"": 0.3}),
        (optax.adam(SCHEDULE), {"": 0.7}),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE)), {"": 0.7}),
        (optax.inject_hyperparams(optax.adam)(learning_rate=0.2), {"": 0.2}),
        (optax.inject_hyperparams(optax.adam)(learning_rate=SCHEDULE), {"": 0.8}),  # that of the third step
        (optax.MultiSteps(optax.adam(SCHEDULE), 3).gradient_transformation(), {"": 0.9}),
        (optax.masked(optax.adam(SCHEDULE), {"w": True, "b": False}), {"": 0.7}),
        (
            optax.multi_transform({"x": optax.sgd(SCHEDULE), "a": optax.adam(lambda _: 0.5)}, {"w": "x", "b": "a"}),
            {"0": 0.5, "1": 0.7},
        ),
        (optax.scale_by_adam(), {}),
    ],
)
def test_the_rate_after_three_steps(optimizer, expected):
    params = {"w": jnp.ones(2), "b": jnp.ones(())}
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
    found = {name: round(float(rate), 4) for name, rate in learning_rates(optimizer, state).items()}
    assert found == expected


def task(optimizer):
    def init(key, batch):
        params = {"w": jnp.zeros(5), "b": jnp.zeros(())}
        return lj.TrainState.create(params=params, optimizer=optimizer, key=key)

    return lj.Task.from_loss(init, linear_loss)


def loader():
    return lj.ArrayLoader(linear_data(20), 4)


@pytest.mark.parametrize(("monitor", "steps"), [((), [4, 8]), ((3,), [3, 6, 9]), ((0,), [5, 10])])
def test_the_monitor_reports_the_rate_at_its_steps(monitor, steps):
    callbacks = [lj.LearningRateMonitor(*monitor), lj.EMA(0.9)]
    result = quiet(max_epochs=2, log_every_n_steps=4, callbacks=callbacks).fit(task(optax.sgd(SCHEDULE)), loader())
    found = {row["step"]: row["learning_rate"] for row in result.history if "learning_rate" in row}
    assert list(found) == steps
    for step, rate in found.items():
        assert rate == pytest.approx(float(SCHEDULE(step)), abs=1e-6)


def test_a_rate_that_a_callback_changes_is_reported_as_it_is():
    class Halve(lj.Callback):
        every_n_steps = None

        def on_train_epoch_end(self, run):
            opt_state = run.state.opt_state
            halved = opt_state.hyperparams | {"learning_rate": opt_state.hyperparams["learning_rate"] / 2}
            run.state = run.state.replace(opt_state=opt_state._replace(hyperparams=halved))

    monitor = lj.LearningRateMonitor(0)
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.2)
    result = quiet(max_epochs=3, callbacks=[monitor, Halve()]).fit(task(optimizer), loader())
    rates = [row["learning_rate"] for row in result.history if "learning_rate" in row]
    assert rates == pytest.approx([0.2, 0.1, 0.05])


def test_an_optimizer_without_a_rate_asks_for_the_schedule():
    with pytest.raises(lj.ConfigurationError, match=r"found no learning rate.*LearningRateMonitor\(schedule="):
        quiet(max_epochs=1, callbacks=lj.LearningRateMonitor()).fit(task(optax.scale_by_adam()), loader())
    monitor = lj.LearningRateMonitor(2, schedule=SCHEDULE)
    result = quiet(max_epochs=1, callbacks=monitor).fit(task(optax.scale_by_adam()), loader())
    assert [row["learning_rate"] for row in result.history if "learning_rate" in row] == pytest.approx([0.8, 0.6])
    assert not jax.tree.leaves(monitor.state_dict())


def test_momentum_and_weight_decay_are_reported_where_they_are_kept():
    monitor = lj.LearningRateMonitor(2, log_momentum=True, log_weight_decay=True)
    optimizer = optax.inject_hyperparams(optax.adamw)(0.1, b1=0.8, weight_decay=SCHEDULE)
    result = quiet(max_epochs=1, callbacks=[monitor, lj.EMA(0.9)]).fit(task(optimizer), loader())
    found = [row for row in result.history if "momentum" in row]
    assert [row["momentum"] for row in found] == pytest.approx([0.8, 0.8])
    assert [row["weight_decay"] for row in found] == pytest.approx([0.9, 0.7])  # those of that step
    with pytest.raises(lj.ConfigurationError, match=r"found no momentum and no weight_decay .*leave out log_momentum"):
        quiet(max_epochs=1, callbacks=monitor).fit(task(optax.sgd(SCHEDULE)), loader())
