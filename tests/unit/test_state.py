"""TrainState and lj.grad, without a trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import bits, linear_data, linear_init, linear_loss

BATCH = linear_data(8)


def state_of(optimizer=None):
    return lj.TrainState.create(
        params={"w": jnp.ones(5), "b": jnp.zeros(())}, optimizer=optimizer or optax.sgd(0.1), key=jax.random.key(0)
    )


def test_gradients_are_those_of_jax_grad():
    state = linear_init(jax.random.key(0), BATCH)
    grads, metrics = lj.grad(linear_loss)(state, BATCH)
    reference = jax.grad(lambda params: linear_loss(state.replace(params=params), BATCH)[0])(state.params)
    assert bits(grads) == bits(reference)
    assert float(metrics["loss"].compute()) == pytest.approx(float(linear_loss(state, BATCH)[0]), rel=1e-6)


def test_a_mean_loss_is_differentiated_as_its_weighted_mean():
    weights = jnp.arange(8.0)

    def weighted(state, batch):
        losses = (batch["x"] @ state.params["w"] - batch["y"]) ** 2
        return lj.Mean(losses, weights), losses

    def by_hand(params):
        losses = (BATCH["x"] @ params["w"] - BATCH["y"]) ** 2
        return (losses * weights).sum() / weights.sum()

    state = state_of()
    grads, _ = lj.grad(weighted)(state, BATCH)
    np.testing.assert_allclose(grads["w"], jax.grad(by_hand)(state.params)["w"], rtol=1e-6)


def test_aux_and_keyword_arguments_pass_through():
    def loss_fn(state, batch, *, scale):
        return scale * (state.params["w"] ** 2).sum(), ({"scale": scale}, "model state")

    grads, (metrics, model_state) = lj.grad(loss_fn)(state_of(), BATCH, scale=3.0)
    assert float(grads["w"][0]) == 6.0
    assert (metrics, model_state) == ({"scale": 3.0}, "model state")


def test_apply_gradients_is_the_optax_update():
    optimizer = optax.adamw(1e-2)
    state = state_of(optimizer)
    grads = {"w": jnp.arange(5.0), "b": jnp.ones(())}
    stepped = state.apply_gradients(grads)
    updates, opt_state = optimizer.update(grads, optimizer.init(state.params), state.params)
    assert bits(stepped.params) == bits(optax.apply_updates(state.params, updates))
    assert bits(stepped.opt_state) == bits(opt_state)
    assert int(stepped.step) == 1
    assert stepped.model_state is None


def test_apply_gradients_replaces_the_model_state_only_when_given():
    state = state_of().replace(model_state={"mean": jnp.zeros(2)})
    grads = jax.tree.map(jnp.zeros_like, state.params)
    assert float(state.apply_gradients(grads).model_state["mean"][0]) == 0
    assert float(state.apply_gradients(grads, model_state={"mean": jnp.ones(2)}).model_state["mean"][0]) == 1
    assert state.apply_gradients(grads, model_state=None).model_state is None


def test_extra_arguments_reach_optimizers_that_take_them():
    plateau = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=0, cooldown=0))
    state = state_of(plateau)
    grads = jax.tree.map(jnp.zeros_like, state.params)
    for value in (1.0, 2.0, 3.0):
        state = state.apply_gradients(grads, value=jnp.float32(value))
    assert float(optax.tree.get(state.opt_state, "scale")) < 1
    # An optimizer that takes none ignores them.
    assert int(state_of().apply_gradients(grads, value=1.0).step) == 1


def test_gradients_of_another_tree_are_refused_by_leaf():
    with pytest.raises(lj.StepError, match=r"leaf 'w' was float32\[5\] and is gone"):
        state_of().apply_gradients({"b": jnp.zeros(())})


def test_keys_depend_on_step_and_name_and_on_nothing_else():
    state = state_of()
    grads = jax.tree.map(jnp.zeros_like, state.params)
    later = state.apply_gradients(grads)
    draws = {
        tuple(np.asarray(jax.random.key_data(one.key_for(name))).tolist())
        for one in (state, later)
        for name in ("dropout", "noise")
    }
    assert len(draws) == 4
    assert bits(state.key_for("dropout")) == bits(state_of().key_for("dropout"))
    assert bits(jax.jit(lambda s: s.key_for("dropout"))(later)) == bits(later.key_for("dropout"))


def test_what_a_state_lacks_is_named():
    with pytest.raises(lj.StepError, match=r"key_for\('dropout'\) was called on a state without a key"):
        lj.TrainState.create(params={}, optimizer=optax.sgd(0.1)).key_for("dropout")
    with pytest.raises(lj.StepError, match="no init and update"):
        lj.TrainState.create(params={}, optimizer=0.1)
    with pytest.raises(lj.StepError, match="state of type dict, which has no params"):
        lj.grad(linear_loss)({"params": {}}, BATCH)


def test_from_loss_tells_the_loss_function_its_mode_and_keeps_model_state_in_training_only():
    def init(key, batch):
        return lj.TrainState.create(
            params={"w": jnp.ones(())}, optimizer=optax.sgd(0.1), key=key, model_state={"calls": jnp.zeros(())}
        )

    def loss_fn(state, batch, train):
        loss = state.params["w"] ** 2
        return loss, ({"training": float(train)}, {"calls": state.model_state["calls"] + 1})

    task = lj.Task.from_loss(init, loss_fn)
    state, metrics = task.train_step(task.init(jax.random.key(0), BATCH), BATCH)
    assert float(state.model_state["calls"]) == 1
    assert metrics["training"] == 1.0
    assert float(metrics["loss"]) == 1.0
    assert task.eval_step(state, BATCH)["training"] == 0.0


def test_a_loss_the_user_reports_is_not_replaced():
    def loss_fn(state, batch):
        return state.params["b"] + 5.0, {"loss": 7.0}

    task = lj.Task.from_loss(linear_init, loss_fn)
    assert task.eval_step(state_of(), BATCH)["loss"] == 7.0
