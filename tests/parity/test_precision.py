"""Precision: what is computed in which dtype, and how well it trains, against float32."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import digit_like_data, mlp_init, mlp_loss, mlp_task, quiet

HALF = {"bf16-mixed": jnp.bfloat16, "16-mixed": jnp.float16, "bf16-true": jnp.bfloat16, "16-true": jnp.float16}
BATCH = digit_like_data(32)


def products(jaxpr):
    """Yields the operands' dtypes of every matrix product, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(operand.aval.dtype for operand in equation.invars)
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("precision", HALF)
def test_every_product_of_a_step_is_computed_in_half_precision(precision):
    task = mlp_task()
    state = task.init(jax.random.key(0), BATCH).with_policy(precision=precision)
    found = list(products(jax.make_jaxpr(task.train_step)(state, BATCH).jaxpr))
    assert len(found) == 8  # three layers forward, three weights and two inputs backward
    assert {dtype for operands in found for dtype in operands} == {jnp.dtype(HALF[precision])}


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_parameters_and_moments_stay_float32_in_mixed_precision(precision):
    result = quiet(max_epochs=1, precision=precision).fit(mlp_task(), lj.ArrayLoader(BATCH, 8))
    floats = [leaf for leaf in jax.tree.leaves((result.state.params, result.state.opt_state)) if leaf.ndim]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_parameters_and_moments_are_half_in_true_half_precision(precision):
    result = quiet(max_epochs=1, precision=precision).fit(mlp_task(), lj.ArrayLoader(BATCH, 8))
    floats = [leaf for leaf in jax.tree.leaves((result.state.params, result.state.opt_state)) if leaf.ndim]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(HALF[precision])}
    # Adam's eps of 1e-8 is 0 in float16, and its steps 0 / 0 where a gradient is.
    assert np.isfinite(result.metrics["train/loss"]) or precision == "16-true"


def test_kept_parameters_are_computed_with_in_float32():
    seen = {}

    def loss_fn(state, batch):
        seen.update({name: leaf.dtype for name, leaf in state.params["layer_0"].items()})
        return mlp_loss(state, batch, train=False)

    precision = lj.Precision(param="bfloat16", compute="bfloat16", keep=["bias"])
    state = mlp_init(jax.random.key(0), BATCH).with_policy(precision=precision)
    assert (state.params["layer_0"]["kernel"].dtype, state.params["layer_0"]["bias"].dtype) == ("bfloat16", "float32")
    grads, _ = lj.grad(loss_fn)(state, BATCH)
    assert seen == {"kernel": jnp.bfloat16, "bias": jnp.float32}
    assert [leaf.dtype for leaf in jax.tree.leaves(grads)] == [leaf.dtype for leaf in jax.tree.leaves(state.params)]


def test_evaluation_and_prediction_compute_in_the_precision_and_predictions_come_out_in_float32():
    seen = {}

    def step(name, dtype):
        def look(state, batch):
            seen[name] = {state.params["layer_0"]["kernel"].dtype, batch["x"].dtype}
            losses = (batch["x"] @ state.params["layer_0"]["kernel"]).sum(-1)
            return losses if name == "predict" else {"loss": lj.Mean(losses)}

        return look

    task = lj.Task(mlp_init, mlp_task().train_step, step("eval", None), step("predict", None))
    trainer = quiet(max_epochs=1, precision="bf16-mixed")
    loader = lj.ArrayLoader(BATCH, 8)
    trainer.fit(task, loader, loader)
    assert seen["eval"] == {jnp.dtype("bfloat16")}
    assert trainer.predict(task, loader).dtype == np.float32
    assert seen["predict"] == {jnp.dtype("bfloat16")}
    half = quiet(precision=lj.Precision("float32", "bfloat16", output="float16"))
    assert half.predict(task, loader, state=trainer.fit(task, loader).state).dtype == np.float16


def test_metrics_of_half_precision_are_added_up_in_float32():
    """In bfloat16 a sum of ones ends at 256."""
    metric = lj.Mean(jnp.ones(1000, jnp.bfloat16))
    assert metric.total.total.dtype == jnp.float32
    assert float(metric.merge(metric).total.compute()) == 2000.0


def test_float64_trains_in_float64_where_it_is_on():
    with jax.enable_x64(True):
        state = quiet(max_epochs=1, precision="64-true").fit(mlp_task(), lj.ArrayLoader(BATCH, 8)).state
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float64")}
        task = mlp_task()
        found = set(products(jax.make_jaxpr(task.train_step)(state, BATCH).jaxpr))
        assert found == {(jnp.dtype("float64"), jnp.dtype("float64"))}


def test_model_state_comes_back_in_its_own_dtype():
    def loss_fn(state, batch):
        hidden = batch["x"] @ state.params["w"]
        return (hidden**2).mean(), ({}, {"mean": hidden.mean(0)})

    def init(key, batch):
        return lj.TrainState.create(
            params={"w": jnp.ones((16, 2))}, optimizer=optax.sgd(1e-3), model_state={"mean": jnp.zeros(2)}
        )

    for microbatches in (1, 2):
        trainer = quiet(max_epochs=1, precision="bf16-mixed", microbatches=microbatches)
        state = trainer.fit(lj.Task.from_loss(init, loss_fn), lj.ArrayLoader(BATCH, 8)).state
        assert state.model_state["mean"].dtype == jnp.float32


def test_digits_are_learnt_in_mixed_precision_as_well_as_in_float32():
    spec = importlib.util.spec_from_file_location("digits", Path(__file__).parents[2] / "examples" / "digits.py")
    digits = sys.modules["digits"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    train, _, test = digits.load_splits(0)
    accuracy = {}
    for precision in (None, "bf16-mixed", "16-mixed"):
        trainer = quiet(max_epochs=25, precision=precision)
        task = digits.make_task(2e-3, 128)
        trainer.fit(task, lj.ArrayLoader(train, 64, shuffle=True, seed=0))
        accuracy[precision] = trainer.test(task, lj.ArrayLoader(test, 256))["test/accuracy"]
    assert accuracy[None] > 0.96
    assert accuracy["bf16-mixed"] >= accuracy[None] - 0.01
    assert accuracy["16-mixed"] >= accuracy[None] - 0.01
