"""What a policy does to gradients, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import bits, digit_like_data, linear_data, linear_loss, linear_task, mlp_init, mlp_task, quiet

BATCH = linear_data(8)


def state_of(optimizer=None, **params):
    params = params or {"w": jnp.ones(5), "b": jnp.zeros(())}
    return lj.TrainState.create(params=params, optimizer=optimizer or optax.sgd(1.0))


# Clipping and norms


def test_clipping_by_norm_is_that_of_optax():
    state = state_of().with_policy(gradient_clip_val=0.5)
    grads = {"w": jnp.arange(5.0), "b": jnp.ones(())}
    reference, _ = optax.clip_by_global_norm(0.5).update(grads, optax.EmptyState())
    after = state.apply_gradients(grads)
    jax.tree.map(
        lambda new, old, grad: np.testing.assert_allclose(new, old - grad, rtol=1e-6),
        after.params,
        state.params,
        reference,
    )
    assert float(after.grad_norm) == pytest.approx(float(optax.tree.norm(grads)))


def test_gradients_below_the_limit_are_left_as_they_are():
    grads = {"w": jnp.arange(5.0), "b": jnp.ones(())}
    clipped = state_of().with_policy(gradient_clip_val=100.0).apply_gradients(grads)
    assert bits(clipped.params) == bits(state_of().apply_gradients(grads).params)


def test_clipping_by_value_bounds_every_number():
    state = state_of().with_policy(gradient_clip_val=0.5, gradient_clip_algorithm="value")
    after = state.apply_gradients({"w": jnp.array([-3.0, -0.1, 0.0, 0.1, 3.0]), "b": jnp.ones(())})
    np.testing.assert_allclose(1 - after.params["w"], [-0.5, -0.1, 0.0, 0.1, 0.5], rtol=1e-6)
    assert after.grad_norm is None


def test_the_norm_is_reported_without_clipping():
    loader = lj.ArrayLoader(linear_data(16), 8)
    result = quiet(max_epochs=1, log_every_n_steps=1, track_grad_norm=True).fit(linear_task(), loader)
    plain = quiet(max_epochs=1).fit(linear_task(), loader)
    grads, _ = lj.grad(linear_loss)(linear_task().init(jax.random.key(0), next(loader.epoch(0))), next(loader.epoch(0)))
    assert result.history[0]["train/grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert bits(result.state.params) == bits(plain.state.params)


# Frozen parameters


@pytest.mark.parametrize(
    "trainable",
    [
        "layer_2",
        ["layer_2/kernel", "layer_2/bias"],
        {f"layer_{i}": {"kernel": i == 2, "bias": i == 2} for i in range(3)},
    ],
)
def test_frozen_parameters_stay_and_have_no_gradient_and_no_optimizer_state(trainable):
    result = quiet(max_epochs=2, trainable=trainable).fit(mlp_task(), lj.ArrayLoader(digit_like_data(64), 16))
    before = jax.jit(mlp_init)(jax.random.key(0), digit_like_data(16))
    for i in range(3):
        same = bits(result.state.params[f"layer_{i}"]) == bits(before.params[f"layer_{i}"])
        assert same == (i < 2)
    moments = [leaf.shape for leaf in jax.tree.leaves(result.state.opt_state) if leaf.ndim]
    assert sorted(moments) == [(1, 10), (1, 10), (32, 10), (32, 10)]

    state = before.with_policy(trainable=trainable)
    grads, _ = lj.grad(mlp_task_loss)(state, digit_like_data(16))
    assert jax.tree.structure(grads) == jax.tree.structure(state.params)
    assert not np.any(grads["layer_0"]["kernel"])
    jaxpr = jax.make_jaxpr(lj.grad(mlp_task_loss))(state, digit_like_data(16))
    assert str(jaxpr).count("dot_general") == 4  # three layers forward, one weight backward


def mlp_task_loss(state, batch):
    hidden = batch["x"]
    for i in range(3):
        hidden = jnp.tanh(hidden @ state.params[f"layer_{i}"]["kernel"])
    return (hidden**2).mean(), {}


def test_integers_may_stand_among_frozen_parameters():
    state = state_of(w=jnp.ones(3), table=jnp.arange(3)).with_policy(trainable="w")
    grads, _ = lj.grad(lambda state, batch: ((state.params["w"] * state.params["table"]).sum(), {}))(state, {})
    after = state.apply_gradients(grads)
    np.testing.assert_allclose(after.params["w"], [1.0, 0.0, -1.0])
    assert after.params["table"].dtype == jnp.int32


# Numbers that are not finite


def bad_loader():
    data = linear_data(80)
    data["x"][37] = np.inf  # the tenth batch of four
    return lj.ArrayLoader(data, 4)


@pytest.mark.parametrize("steps_per_call", [1, 8])
def test_raise_names_the_step_and_the_leaves_and_leaves_the_parameters_finite(steps_per_call):
    kept = []

    class Keep(lj.Callback):
        def on_exception(self, run, error):
            kept.append(jax.device_get(run.state.params))

        every_n_steps = None

    trainer = quiet(
        max_epochs=1, on_nonfinite="raise", callbacks=[Keep()], steps_per_call=steps_per_call, log_every_n_steps=4
    )
    with pytest.raises(
        lj.NonfiniteError, match="Step 10 was not finite: metric 'loss', gradient of '[bw]', gradient"
    ) as error:
        trainer.fit(linear_task(), bad_loader())
    assert "on_nonfinite='skip' leaves such steps out" in str(error.value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))


def test_a_finite_run_that_would_raise_trains_as_any_other():
    loader = lj.ArrayLoader(linear_data(40), 4)
    watched = quiet(max_epochs=2, on_nonfinite="raise").fit(linear_task(), loader)
    plain = quiet(max_epochs=2).fit(linear_task(), loader)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6),
        watched.state.params,
        plain.state.params,
    )
    assert not any("nonfinite" in name for row in watched.history for name in row)


def test_skip_goes_on_and_counts():
    result = quiet(max_epochs=2, on_nonfinite="skip").fit(linear_task(), bad_loader())
    assert int(result.state.skipped_steps) == 2
    assert result.metrics["train/skipped_steps"] == 2.0
    assert int(result.state.step) == 40
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state.params))


def test_a_loss_that_is_not_finite_is_noticed_where_its_gradient_is():
    def loss_fn(state, batch):
        return (state.params["w"] ** 2).sum() + jnp.log(jax.lax.stop_gradient(batch["x"]).sum() * 0), {}

    state = state_of().with_policy(on_nonfinite="skip")
    grads, _ = lj.grad(loss_fn)(state, BATCH)
    assert bits(state.apply_gradients(grads).params) == bits(state.params)


def test_under_loss_scaling_raise_waits_until_the_scale_is_not_to_blame():
    state = state_of(w=jnp.ones(1)).with_policy(
        precision=lj.Precision(compute="float16", loss_scaling=lj.LossScaling(4.0)), on_nonfinite="raise"
    )
    flags = []
    for _ in range(4):
        state = state.apply_gradients({"w": jnp.full(1, jnp.nan)})
        flags.append(bool(state.nonfinite.any()))
    assert flags == [False, False, True, True]  # scales of 4, 2, 1 and 0.5


# Rematerialization


@pytest.mark.parametrize("policy", ["full", "dots", "dots_no_batch", jax.checkpoint_policies.everything_saveable])
def test_remat_changes_no_gradient(policy):
    state = mlp_init(jax.random.key(0), digit_like_data(16))
    reference, _ = lj.grad(mlp_task_loss)(state, digit_like_data(16))
    grads, _ = lj.grad(mlp_task_loss)(state.with_policy(remat=policy), digit_like_data(16))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7), grads, reference)


def test_blocks_that_are_computed_again_keep_less():
    def bytes_of(block):
        def loss_fn(state, batch):
            def layer(hidden, kernel):
                return block(kernel, hidden), None

            return jnp.mean(jax.lax.scan(layer, batch["x"], state.params["w"])[0] ** 2), {}

        state = state_of(w=jnp.ones((16, 64, 64)))
        batch = {"x": jnp.ones((512, 64))}
        return jax.jit(lj.grad(loss_fn)).lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    def block(kernel, hidden):
        return jnp.tanh(jnp.tanh(jnp.tanh(hidden @ kernel) * 2.0) * 2.0)

    assert bytes_of(lj.remat(block)) < 0.6 * bytes_of(block)


# Escape hatches


def test_gradients_of_ones_own_go_through_the_policy():
    """Second order: the gradient of a gradient's norm, by jax.grad."""

    def train_step(state, batch):
        def penalty(params):
            return optax.tree.norm(jax.grad(lambda p: linear_loss(state.replace(params=p), batch)[0])(params))

        value, grads = jax.value_and_grad(penalty)(state.params)
        return state.apply_gradients(grads), {"penalty": value}

    task = lj.Task(linear_task().init, train_step)
    result = quiet(max_epochs=1, gradient_clip_val=1e-3, log_every_n_steps=1).fit(
        task, lj.ArrayLoader(linear_data(16), 8)
    )
    assert result.history[0]["train/grad_norm"] > 1e-3
    assert result.history[0]["train/penalty"] > 0


def test_a_users_multisteps_and_schedule_work_as_they_are():
    schedule = optax.piecewise_constant_schedule(0.1, {2: 0.1})
    optimizer = optax.MultiSteps(optax.sgd(schedule), every_k_schedule=2)

    def init(key, batch):
        return lj.TrainState.create(params={"w": jnp.ones(5), "b": jnp.zeros(())}, optimizer=optimizer)

    loader = lj.ArrayLoader(linear_data(32), 4)
    task = lj.Task.from_loss(init, linear_loss)
    state = quiet(max_epochs=1, on_nonfinite="skip").fit(task, loader).state
    start = init(None, None)
    params = start.params
    for step in range(4):
        batches = list(loader.epoch(0))[2 * step : 2 * step + 2]
        found = [
            jax.grad(lambda p, b=b: linear_loss(init(None, None).replace(params=p), b)[0])(params) for b in batches
        ]
        rate = float(schedule(step))
        params = jax.tree.map(lambda p, one, two, rate=rate: p - rate * (one + two) / 2, params, *found)
    assert int(state.step) == 8
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5), state.params, params)


def test_a_subclass_of_the_state_may_have_fields_of_its_own():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Averaged(lj.TrainState):
        average: jax.Array

    plain = state_of(w=jnp.ones(2))
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    state = Averaged(**fields, average=jnp.zeros(2)).with_policy(gradient_clip_val=1.0)
    assert isinstance(state.apply_gradients({"w": jnp.ones(2)}), Averaged)


def test_a_policy_that_changes_nothing_keeps_the_tree_of_the_state():
    state = state_of()
    assert len(jax.tree.leaves(state)) == 3
    assert bits(state.with_policy(lj.Policy())) == bits(state)


def test_the_same_arguments_leave_a_trained_state_as_it_is():
    arguments = dict(precision="16-mixed", trainable="w", gradient_clip_val=1.0, max_epochs=1)
    loader = lj.ArrayLoader(linear_data(16), 4)
    state = quiet(**arguments).fit(linear_task(), loader).state
    again = state.with_policy(precision="16-mixed", trainable="w", gradient_clip_val=1.0)
    assert bits(again) == bits(state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert int(quiet(**arguments).fit(linear_task(), loader, state=state).state.step) == 8


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, "precision='fp8' is unknown; there are '32-true', 'bf16-mixed', .* 'bf16', 64"),
        ({"precision": 8}, "precision=8 is unknown; there are '32-true'"),
        (
            {"precision": "64-true"},
            "param='float64' needs 64-bit numbers, which are off: set JAX_ENABLE_X64=1, or",
        ),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0: give a whole number from 1 on"),
        ({"accumulate_grad_batches": {0: 2, 3: 0}}, "accumulate_grad_batches={0: 2, 3: 0}: give {epoch: batches}"),
        ({"accumulate_grad_batches": {}}, "accumulate_grad_batches={}: give {epoch: batches}"),
        ({"microbatches": 0}, "microbatches=0: give a whole number from 1 on"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val=-1.0: give a number from 0 on"),
        (
            {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "max"},
            "gradient_clip_algorithm='max' is unknown: give 'norm' or 'value'",
        ),
        ({"on_nonfinite": "warn"}, "on_nonfinite='warn' is unknown: give 'ignore', 'skip' or 'raise'"),
        ({"remat": "some"}, "remat='some' is unknown: give 'full', 'dots', 'dots_no_batch' or a jax.checkpoint_pol"),
        ({"trainable": "("}, r"trainable='\(' is no regular expression"),
        ({"trainable": 3}, "trainable=3 is neither regular expressions nor a tree of bools"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(lj.ConfigurationError, match=message):
        lj.Trainer(**arguments)


def test_all_conflicts_are_told_together():
    with pytest.raises(lj.ConfigurationError) as error:
        lj.Trainer(precision="fp8", gradient_clip_val=-1, accumulate_grad_batches=0, max_epochs=-1)
    for name in ("precision", "gradient_clip_val", "accumulate_grad_batches", "max_epochs"):
        assert f"  {name}=" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"param": "int8"}, "param='int8' is no floating dtype: give 'float32', 'bfloat16'"),
        ({"compute": "complex64"}, "compute='complex64' is no floating dtype"),
        ({"output": "nothing"}, "output='nothing' is no floating dtype"),
        ({"keep": ["("]}, r"keep='\(' is no regular expression"),
    ],
)
def test_a_precision_that_cannot_be_is_named(arguments, message):
    with pytest.raises(lj.ConfigurationError, match=message):
        lj.Precision(**arguments)


def test_a_pattern_that_keeps_nothing_is_named():
    precision = lj.Precision(compute="bfloat16", keep=["w", "nrom"])
    with pytest.raises(lj.ConfigurationError, match=r"keep='nrom'\) is found in no parameter's path; there are "):
        quiet(max_epochs=1, precision=precision).fit(linear_task(), lj.ArrayLoader(linear_data(8), 4))


def test_a_loss_scaling_that_cannot_be_is_named():
    with pytest.raises(lj.ConfigurationError, match="initial=0: give a number above 0; backoff_factor=2: give a"):
        lj.LossScaling(initial=0, backoff_factor=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "bf16-mixed"}, r"asked for precision='bf16-mixed', .* \(dict\) holds no lj.TrainState; return"),
        ({"accumulate_grad_batches": 2}, "asked for accumulate_grad_batches, .* holds no lj.TrainState"),
        ({"gradient_clip_val": 1.0, "microbatches": 2}, "gradient_clip_val=1.0, .*microbatches=2, .* holds no"),
    ],
)
def test_a_state_without_a_train_state_cannot_have_a_policy(arguments, message):
    task = lj.Task(lambda key, batch: {"w": jnp.ones(3)}, lambda state, batch: (state, {}))
    with pytest.raises(lj.ConfigurationError, match=message):
        quiet(max_epochs=1, **arguments).fit(task, lj.ArrayLoader(linear_data(8), 4))


def test_a_batch_that_cannot_be_cut_says_both_numbers():
    with pytest.raises(lj.ConfigurationError, match="microbatches=3 .* batches have 8 examples, .* not divisible by 3"):
        quiet(max_epochs=1, microbatches=3).fit(linear_task(), lj.ArrayLoader(linear_data(16), 8))
    with pytest.raises(lj.StepError, match="A batch of 8 examples .* 3 equal microbatches, and 8 is not divisible"):
        lj.grad(linear_loss)(state_of().with_policy(microbatches=3), BATCH)


def test_a_shorter_last_batch_is_cut_into_parts_of_the_same_size():
    loader = lj.ArrayLoader(linear_data(21), 8)  # the last has 5: parts of 2, 2 and 1
    cut = quiet(max_epochs=1, microbatches=4).fit(linear_task(), loader)
    plain = quiet(max_epochs=1).fit(linear_task(), loader)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6),
        cut.state.params,
        plain.state.params,
    )


def test_leaves_that_share_no_first_axis_cannot_be_cut_or_joined():
    def loss_fn(state, batch):
        return (state.params["w"] * batch["scale"]).sum(), {}

    batch = {"x": jnp.zeros((4, 2)), "scale": jnp.ones(3)}
    with pytest.raises(lj.StepError, match=r"share none: 'scale' float32\[3\], 'x' float32\[4,2\]"):
        lj.grad(loss_fn)(state_of(w=jnp.ones(3)).with_policy(microbatches=2), batch)
    with pytest.raises(lj.DataError, match=r"joins batches of train_data .* share none: 'scale' float32\[3\]"):
        quiet(max_epochs=1, accumulate_grad_batches=2).fit(linear_task(), [batch, batch])


def test_what_microbatches_report_and_nobody_can_join_is_named():
    def loss_fn(state, batch):
        return (state.params["w"] ** 2).sum(), {"weights": state.params["w"]}

    with pytest.raises(lj.StepError, match=r"'weights' as float32\[5\], which nobody can join: .* \(4 here\)"):
        lj.grad(loss_fn)(state_of().with_policy(microbatches=2), BATCH)


def test_trainable_that_does_not_fit_the_parameters_is_named():
    with pytest.raises(lj.ConfigurationError, match="trainable='head' is found in no parameter's path; there are b, w"):
        state_of().with_policy(trainable="head")
    with pytest.raises(lj.ConfigurationError, match="a mask that is not shaped like the parameters: 'b' stands in"):
        state_of().with_policy(trainable={"w": True})
    with pytest.raises(lj.ConfigurationError, match="trains no parameter at all"):
        state_of().with_policy(trainable={"w": False, "b": False})


def test_an_integer_parameter_is_named():
    with pytest.raises(lj.StepError, match=r"cannot differentiate parameter 'table' of type int32\[3\]: .* trainable"):
        lj.grad(lambda state, batch: (0.0, {}))(state_of(w=jnp.ones(3), table=jnp.arange(3)), {})
