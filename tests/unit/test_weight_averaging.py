"""Averages of the parameters: what a loop written by hand would average, evaluated, saved and resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from lightjax.callbacks.around_optimizer import Averaged, nodes_of
from tests.models import bits, digit_like_data, linear_data, linear_init, linear_loss, linear_task, mlp_task, quiet


def loader(examples=20, batch_size=4):
    return lj.ArrayLoader(linear_data(examples), batch_size)


def trajectory(steps):
    """The parameters after each step, from a loop written by hand."""
    state = linear_init(jax.random.key(0), next(loader().epoch(0)))
    step = jax.jit(lambda state, batch: state.apply_gradients(lj.grad(linear_loss)(state, batch)[0]))
    batches = [batch for epoch in range(4) for batch in loader().epoch(epoch)]
    found = []
    for batch in batches[:steps]:
        state = step(state, batch)
        found.append(jax.device_get(state.params))
    return found


def ema(points, decay):
    average = points[0]
    for point in points[1:]:
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, point)
    return average


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (lj.EMA(decay=0.9), lambda points: ema(points, 0.9)),
        (lj.EMA(decay=0.5, update_every_n_steps=3), lambda points: ema(points[2::3], 0.5)),
        (lj.EMA(decay=0.5, update_starting_at_step=7), lambda points: ema(points[7:], 0.5)),
        (lj.EMA(decay=0.5, update_starting_at_step=99), lambda points: points[-1]),
        (lj.WeightAveraging(), lambda points: jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *points)),
    ],
)
def test_the_average_is_that_of_a_loop_written_by_hand(callback, expected):
    result = quiet(max_epochs=3, callbacks=callback, steps_per_call=8).fit(linear_task(), loader())
    points = trajectory(15)
    # The hand-written loop runs plain jitted steps, whose last bits differ.
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7),
        jax.device_get(lj.averaged(result.state).params),
        expected(points),
    )
    plain = quiet(max_epochs=3).fit(linear_task(), loader())
    assert bits(result.state.params) == bits(plain.state.params)


@pytest.mark.parametrize("steps_per_call", [1, "auto"])
def test_evaluation_and_prediction_see_the_average_and_training_does_not(steps_per_call):
    trainer = quiet(max_epochs=3, callbacks=lj.EMA(decay=0.9), steps_per_call=steps_per_call)
    result = trainer.fit(linear_task(), loader(), loader(12))
    raw = quiet()
    average = lj.averaged(result.state)
    expected = raw.validate(linear_task(), loader(12), state=average)
    assert result.metrics["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-6)
    assert trainer.validate(linear_task(), loader(12)) == trainer.validate(
        linear_task(), loader(12), state=result.state
    )
    assert trainer.validate(linear_task(), loader(12))["val/loss"] == result.metrics["val/loss"]
    assert raw.validate(linear_task(), loader(12), state=result.state) != expected
    np.testing.assert_array_equal(
        trainer.predict(linear_task(), loader(12)), raw.predict(linear_task(), loader(12), state=average)
    )


def test_an_average_is_fused_into_the_calls():
    trainer = quiet(max_epochs=1, callbacks=[lj.EMA(), lj.LearningRateMonitor(schedule=lambda step: 0.1)])
    assert all(callback.steps_between_looks() != 1 for callback in trainer.callbacks)


def test_a_resumed_average_is_bit_for_bit_that_of_the_undisturbed_run(tmp_path):
    def fit(directory, max_steps, resume=None):
        trainer = quiet(
            max_steps=max_steps,
            callbacks=[lj.EMA(0.9), lj.ModelCheckpoint("val/loss")],
            enable_checkpointing=True,
            default_root_dir=directory,
            resume=resume,
        )
        data = lj.ArrayLoader(digit_like_data(70), 16, shuffle=True)
        return trainer.fit(mlp_task(), data, lj.ArrayLoader(digit_like_data(30, seed=2), 16))

    whole = fit(tmp_path / "whole", 13)
    fit(tmp_path / "parts", 7)
    parts = fit(tmp_path / "parts", 13, "auto")
    assert bits(parts.state) == bits(whole.state)
    assert parts.history[-1] == whole.history[-1]
    restored = parts.checkpoint.last.restore()
    assert bits(lj.averaged(restored).params) == bits(lj.averaged(whole.state).params)


def test_a_given_state_gets_an_average_and_keeps_one_it_has():
    first = quiet(max_epochs=1).fit(linear_task(), loader())
    second = quiet(max_epochs=1, callbacks=lj.EMA(0.9)).fit(linear_task(), loader(), state=first.state)
    third = quiet(max_epochs=1, callbacks=lj.EMA(0.9)).fit(linear_task(), loader(), state=second.state)
    points = trajectory(15)
    expected = ema(points[5:], 0.9)
    np.testing.assert_allclose(lj.averaged(third.state).params["w"], expected["w"], rtol=1e-5)


def test_every_train_state_of_a_larger_state_has_an_average_of_its_own():
    def init(key, batch):
        return {"a": linear_init(key, batch), "b": linear_init(jax.random.split(key)[0], batch), "n": jnp.zeros(())}

    def train_step(state, batch):
        grads = {name: lj.grad(linear_loss)(state[name], batch)[0] for name in "ab"}
        return {name: state[name].apply_gradients(grads[name]) for name in "ab"} | {"n": state["n"] + 1}, {}

    def eval_step(state, batch):
        return {"a": linear_loss(state["a"], batch)[0], "b": linear_loss(state["b"], batch)[0]}

    result = quiet(max_epochs=2, callbacks=lj.EMA(0.9)).fit(lj.Task(init, train_step, eval_step), loader(), loader())
    average = lj.averaged(result.state)
    for name in "ab":
        loss = float(np.mean([linear_loss(average[name], batch)[0] for batch in loader()]))
        assert result.metrics[f"val/{name}"] == pytest.approx(loss, rel=1e-5)


def test_averages_in_low_precision_are_kept_in_float32():
    def init(key, batch):
        params = {"w": jnp.ones(5, jnp.bfloat16)}
        return lj.TrainState.create(params=params, optimizer=optax.sgd(1e-3), key=key)

    def loss(state, batch):
        return ((batch["x"].astype(jnp.bfloat16) @ state.params["w"]) ** 2).mean(), {}

    result = quiet(max_epochs=1, callbacks=lj.EMA(0.999)).fit(lj.Task.from_loss(init, loss), loader())
    assert lj.averaged(result.state).params["w"].dtype == jnp.bfloat16
    assert any(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(result.state.opt_state))


def test_what_cannot_be_averaged_is_said():
    with pytest.raises(lj.ConfigurationError, match=r"EMA got decay=1\.0"):
        lj.EMA(1.0)
    with pytest.raises(lj.ConfigurationError, match="update_every_n_steps=0"):
        lj.EMA(update_every_n_steps=0)
    task = lj.Task(lambda key, batch: {"w": jnp.zeros(5)}, lambda state, batch: (state, {}))
    with pytest.raises(lj.ConfigurationError, match="EMA works on the optimizer of a TrainState.* the state is dict"):
        quiet(max_epochs=1, callbacks=lj.EMA()).fit(task, loader())
    with pytest.raises(lj.ConfigurationError, match="a state without an average"):
        lj.averaged(quiet(max_epochs=1).fit(linear_task(), loader()).state)


@pytest.mark.parametrize(
    "arguments",
    [
        {"precision": "bf16-mixed"},
        {"precision": "16-mixed"},
        {"precision": "bf16-true"},
        {"trainable": "^w$"},
        {"accumulate_grad_batches": 2},
    ],
)
def test_an_average_goes_with_every_policy(arguments):
    trainer = quiet(max_epochs=2, callbacks=lj.EMA(0.9), **arguments)
    result = trainer.fit(linear_task(), loader(), loader(12))
    average = lj.averaged(result.state)
    plain = quiet(max_epochs=2, **arguments).fit(linear_task(), loader(), loader(12))
    if arguments == {"precision": "bf16-true"}:
        # XLA may keep more digits inside of a fusion than bfloat16 has, and the average is another fusion.
        np.testing.assert_allclose(*(jnp.float32(one.state.params["w"]) for one in (result, plain)), rtol=2**-7)
        (node,) = nodes_of(result.state, Averaged)
        assert node.average["w"].dtype == jnp.float32
    else:
        assert bits(result.state.params) == bits(plain.state.params)
    assert bits(average.params) != bits(result.state.params)
    expected = quiet(**arguments).validate(linear_task(), loader(12), state=average)["val/loss"]
    assert result.metrics["val/loss"] == pytest.approx(expected, rel=1e-6)
