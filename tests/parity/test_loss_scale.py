"""Dynamic loss scaling against `torch.amp.GradScaler`, and what a step that is not finite leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import bits, quiet

SCALING = lj.LossScaling(initial=2.0**10, growth_interval=3)
PRECISION = lj.Precision("float32", "float16", "float32", loss_scaling=SCALING)


def blow_up_data(examples=40, batch_size=4, bad=(2, 3, 8)):
    """Inputs of which some batches overflow float16."""
    x = np.random.default_rng(0).normal(size=(examples, 3)).astype(np.float32)
    for batch in bad:
        x[batch * batch_size] = np.inf
    return {"x": x, "y": np.ones(examples, np.float32)}


def init(key, batch):
    schedule = optax.linear_schedule(0.1, 0.0, 20)
    return lj.TrainState.create(
        params={"w": jnp.ones(3)},
        optimizer=optax.adam(schedule),
        model_state={"mean": jnp.zeros(())},
    )


def loss_fn(state, batch):
    prediction = batch["x"] @ state.params["w"]
    losses = (prediction - batch["y"]).astype(jnp.float32) ** 2
    return lj.Mean(losses), ({"loss": lj.Mean(losses)}, {"mean": losses.mean()})


def train_step(state, batch):
    grads, (metrics, model_state) = lj.grad(loss_fn)(state, batch)
    return state.apply_gradients(grads, model_state=model_state), metrics


TASK = lj.Task(init, train_step)


def test_the_scale_follows_that_of_torch_step_by_step():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    finite = rng.random(60) > 0.2
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_factor=4.0, backoff_factor=0.25, growth_interval=3)

    scaling = lj.LossScaling(1024.0, growth_factor=4.0, backoff_factor=0.25, growth_interval=3)
    # In float32, as on the other side, so that only the sequence decides what is finite.
    precision = lj.Precision(compute="float32", loss_scaling=scaling)
    state = lj.TrainState.create(params={"w": jnp.ones(1)}, optimizer=optax.sgd(0.0)).with_policy(precision=precision)

    def step(state, factor):
        grads, _ = lj.grad(lambda state, factor: ((state.params["w"] * factor).sum(), {}))(state, factor)
        return state.apply_gradients(grads)

    step = jax.jit(step)
    for good in finite:
        factor = 0.5 if good else float("inf")
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        state = step(state, jnp.float32(factor))
        assert float(state.loss_scale.scale) == scaler.get_scale()
    assert int(state.skipped_steps) == (~finite).sum()
    assert int(state.step) == 60


def test_the_scale_never_grows_to_infinity_as_in_torch_and_never_falls_to_zero():
    scaling = lj.LossScaling(2.0**127, growth_interval=1)
    grown = lj.TrainState.create(params={"w": jnp.ones(1)}, optimizer=optax.sgd(0.1)).with_policy(
        precision=lj.Precision(compute="float16", loss_scaling=scaling)
    )
    assert float(grown.apply_gradients({"w": jnp.ones(1)}).loss_scale.scale) == 2.0**127
    for _ in range(300):
        grown = grown.replace(loss_scale=grown.loss_scale.after(False, scaling))
    assert float(grown.loss_scale.scale) > 0


@pytest.mark.parametrize("policy", [{"precision": PRECISION}, {"on_nonfinite": "skip"}])
def test_a_step_that_is_not_finite_leaves_everything_but_the_step_as_it_was(policy):
    data = blow_up_data()
    batches = [{name: leaf[i : i + 4] for name, leaf in data.items()} for i in range(0, 40, 4)]
    step = jax.jit(train_step)
    state = init(None, None).with_policy(**policy)
    for number, batch in enumerate(batches):
        after, _ = step(state, batch)
        kept = [bits((one.params, one.opt_state, one.model_state)) for one in (state, after)]
        assert (kept[0] == kept[1]) == (number in (2, 3, 8))
        assert int(after.step) == number + 1
        state = after
    assert int(state.skipped_steps) == 3


def test_gradients_are_unscaled_before_they_are_clipped_and_measured():
    batch = {"x": np.ones((4, 3), np.float32), "y": np.zeros(4, np.float32)}
    plain = init(None, None).with_policy(gradient_clip_val=0.1)
    scaled = plain.with_policy(precision=PRECISION)
    after = [jax.jit(train_step)(state, batch)[0] for state in (plain, scaled)]
    # float16 holds three digits.
    assert float(after[1].grad_norm) == pytest.approx(float(after[0].grad_norm), rel=2e-3)
    np.testing.assert_allclose(after[1].params["w"], after[0].params["w"], rtol=2e-3)


@pytest.mark.parametrize("steps_per_call", [1, 4, 64])
def test_a_scaled_run_is_the_same_for_any_cut_and_reports_its_scale(steps_per_call):
    loader = lj.ArrayLoader(blow_up_data(), 4)
    trainer = quiet(max_epochs=2, precision=PRECISION, log_every_n_steps=1, steps_per_call=steps_per_call)
    result = trainer.fit(TASK, loader)
    scale, good, expected = 2.0**10, 0, []
    for step in range(20):
        finite = step % 10 not in (2, 3, 8)
        good = good + 1 if finite else 0
        scale = scale if finite else scale / 2
        if good == 3:
            scale, good = scale * 2, 0
        expected.append(scale)
    assert [row["train/loss_scale"] for row in result.history] == expected
    assert result.metrics["train/skipped_steps"] == 6
    assert int(result.state.step) == 20


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_scaled_run_resumes_bit_for_bit(tmp_path, accumulated):
    class Stop(lj.Callback):
        every_n_steps = 7 // accumulated

        def on_train_batch_end(self, run):
            run.stop("interrupt")

    def trainer(root, **arguments):
        root = tmp_path / root
        fixed = dict(precision=PRECISION, accumulate_grad_batches=accumulated, max_epochs=2)
        return quiet(**fixed, enable_checkpointing=True, default_root_dir=root, **arguments)

    loader = lj.ArrayLoader(blow_up_data(), 4)
    whole = trainer("whole").fit(TASK, loader)
    part = trainer("part", callbacks=[Stop()]).fit(TASK, loader)
    assert int(part.state.step) == 7 // accumulated
    resumed = trainer("part", resume="auto").fit(TASK, loader)
    assert bits(resumed.state) == bits(whole.state)
    assert resumed.metrics["train/skipped_steps"] == whole.metrics["train/skipped_steps"]
