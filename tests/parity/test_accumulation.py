"""Accumulated and cut batches against one big batch, in float64 (1e-6 relative, far below) and float32."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import bits, digit_like_data, linear_data, linear_task, mlp_init, mlp_loss, quiet

# float32 sums in another order: each addition rounds to 6e-8, and gradients near zero are differences of larger ones.
FLOAT32 = dict(rtol=2e-5, atol=2e-6)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def masked_loss(state, batch):
    """Tokens with masks: examples weigh from 0 to all of their tokens."""
    hidden = jnp.tanh(batch["x"] @ state.params["in"])
    losses = (hidden @ state.params["out"] - batch["y"]) ** 2
    return lj.Mean(losses, batch["mask"]), {"loss": lj.Mean(losses, batch["mask"]), "largest": lj.Max(losses)}


def masked_batch(examples=24, tokens=7, dtype=np.float64):
    rng = np.random.default_rng(0)
    mask = np.arange(tokens) < rng.integers(0, tokens + 1, (examples, 1))
    mask[:6] = False  # a whole microbatch without weight
    return {
        "x": rng.normal(size=(examples, tokens, 3)).astype(dtype),
        "y": rng.normal(size=(examples, tokens)).astype(dtype),
        "mask": mask.astype(dtype),
    }


def masked_state(dtype=jnp.float64):
    rng = np.random.default_rng(1)
    params = {"in": jnp.asarray(rng.normal(size=(3, 5)), dtype), "out": jnp.asarray(rng.normal(size=5), dtype)}
    return lj.TrainState.create(params=params, optimizer=optax.sgd(0.1))


def close(ours, theirs, **tolerance):
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, **tolerance), ours, theirs)


@pytest.mark.parametrize("policy", [{"microbatches": 4}, {"microbatch_size": 6}, {"microbatch_size": 5}])
def test_microbatches_of_unequal_weight_give_the_gradient_of_the_whole_batch_in_float64(policy, x64):
    state, batch = masked_state(), masked_batch()

    def by_hand(params):
        losses = (jnp.tanh(batch["x"] @ params["in"]) @ params["out"] - batch["y"]) ** 2
        return (losses * batch["mask"]).sum() / batch["mask"].sum()

    value, reference = jax.value_and_grad(by_hand)(state.params)
    (loss, metrics), grads = jax.jit(lj.value_and_grad(masked_loss))(state.with_policy(**policy), batch)
    assert grads["in"].dtype == jnp.float64
    close(grads, reference, rtol=1e-12)
    assert float(loss) == pytest.approx(float(value), rel=1e-12)
    whole = masked_loss(state, batch)[1]
    assert float(metrics["loss"].compute()) == pytest.approx(float(value), rel=1e-12)
    assert float(metrics["largest"].compute()) == float(whole["largest"].compute())


def test_microbatches_in_float32_differ_by_rounding_only():
    state, batch = masked_state(jnp.float32), masked_batch(dtype=np.float32)
    reference, _ = lj.grad(masked_loss)(state, batch)
    grads, _ = jax.jit(lj.grad(masked_loss))(state.with_policy(microbatches=4), batch)
    close(grads, reference, **FLOAT32)


def test_a_mean_of_means_would_be_seen(x64):
    """The test above can fail: averaging the microbatches' means is off by percents."""
    state, batch = masked_state(), masked_batch()
    reference, _ = lj.grad(masked_loss)(state, batch)
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 6], batch) for i in range(6, 24, 6)]
    means = [lj.grad(masked_loss)(state, part)[0]["out"] for part in parts]
    assert not np.allclose(sum(means) / 3, reference["out"], rtol=1e-2)


def test_a_scalar_loss_over_equal_microbatches_is_that_of_the_batch(x64):
    batch = jax.tree.map(lambda leaf: leaf.astype(np.float64), linear_data(24))

    def loss_fn(state, batch):
        losses = (batch["x"] @ state.params["w"] - batch["y"]) ** 2
        return losses.mean(), {"loss": losses.mean(), "each": losses}

    state = lj.TrainState.create(params={"w": jnp.ones(5, jnp.float64)}, optimizer=optax.sgd(0.1))
    reference, whole = lj.grad(loss_fn)(state, batch)
    for policy in ({"microbatches": 3}, {"microbatch_size": 10}):
        grads, aux = lj.grad(loss_fn)(state.with_policy(**policy), batch)
        close(grads, reference, rtol=1e-12)
        close(aux, whole, rtol=1e-12)


# 150 examples in batches of 16: nine full ones and one of 6. Three a step: three groups of 48 and one of 6;
# four a step: two groups of 64 and one of 22, made of a full and the short batch.
@pytest.mark.parametrize(("accumulated", "on_device"), [(3, False), (4, False), (4, True), (16, False)])
def test_accumulated_batches_train_as_one_big_batch(accumulated, on_device):
    data = digit_like_data(150)
    data["weight"] = np.random.default_rng(3).integers(0, 3, 150).astype(np.float32)

    def loss_fn(state, batch):
        _, metrics = mlp_loss(state, batch, train=False)
        hidden = batch["x"]
        for i in range(3):
            layer = state.params[f"layer_{i}"]
            hidden = hidden @ layer["kernel"] + layer["bias"]
            hidden = jax.nn.relu(hidden) if i < 2 else hidden
        losses = optax.softmax_cross_entropy_with_integer_labels(hidden, batch["y"])
        return lj.Mean(losses, batch["weight"]), metrics | {"weighted": lj.Mean(losses, batch["weight"])}

    def init(key, batch):
        return mlp_init(key, batch).replace(optimizer=optimizer, opt_state=optimizer.init(mlp_init(key, batch).params))

    optimizer = optax.sgd(0.3, momentum=0.9)
    task = lj.Task.from_loss(init, loss_fn)
    arguments = dict(max_epochs=3, log_every_n_steps=2, steps_per_call=2)
    small = lj.ArrayLoader(data, 16, shuffle=True, seed=1, on_device=on_device)
    result = quiet(**arguments, accumulate_grad_batches=accumulated).fit(task, small)
    big = lj.ArrayLoader(data, 16 * accumulated, shuffle=True, seed=1)
    reference = quiet(**arguments).fit(task, big)
    assert int(result.state.step) == int(reference.state.step) == 3 * -(-150 // (16 * accumulated))
    close(result.state.params, reference.state.params, **FLOAT32)
    assert [row["step"] for row in result.history] == [row["step"] for row in reference.history]
    for ours, theirs in zip(result.history, reference.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_batches_of_any_loader_and_any_size_are_accumulated():
    data, task = linear_data(33), linear_task()
    for sizes, first in (((6, 6, 6, 6, 6, 3), 24), ((6, 3, 6, 6, 6, 6), 21)):
        batches = [
            {name: leaf[end - size : end] for name, leaf in data.items()}
            for size, end in zip(sizes, np.cumsum(sizes), strict=True)
        ]
        joined = [{name: leaf[rows] for name, leaf in data.items()} for rows in (slice(first), slice(first, None))]
        reference = quiet(max_epochs=2).fit(task, joined)
        for loader in (batches, lambda batches=batches: iter(batches)):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The train step is compiled for the 3. time")
                result = quiet(max_epochs=2, accumulate_grad_batches=4).fit(task, loader)
            assert int(result.state.step) == 4
            close(result.state.params, reference.state.params, **FLOAT32)


def test_the_cut_into_calls_never_changes_a_bit_of_an_accumulated_run():
    def fit(steps):
        loader = lj.ArrayLoader(digit_like_data(118), 16, shuffle=True, seed=1)
        val = lj.ArrayLoader(digit_like_data(37, seed=2), 8)
        task = lj.Task.from_loss(mlp_init, mlp_loss)
        trainer = quiet(max_epochs=3, accumulate_grad_batches=2, steps_per_call=steps, log_every_n_steps=3)
        return trainer.fit(task, loader, val)

    reference = fit(1)
    for steps in (3, 64):
        fused = fit(steps)
        assert bits(fused.state) == bits(reference.state)
        assert fused.history == reference.history


def test_a_schedule_of_accumulation_changes_the_groups_at_its_epochs():
    loader = lj.ArrayLoader(linear_data(48), 4)  # 12 batches
    trainer = quiet(max_epochs=4, accumulate_grad_batches={1: 3, 3: 5}, strict=True)
    result = trainer.fit(linear_task(), loader)
    assert int(result.state.step) == 12 + 4 + 4 + 3


def test_evaluations_within_an_epoch_wait_for_the_end_of_a_group():
    loader = lj.ArrayLoader(linear_data(52), 4)  # 13 batches, groups end at 4, 8, 12 and 13
    val = lj.ArrayLoader(linear_data(8), 4)
    result = quiet(max_epochs=1, accumulate_grad_batches=4, val_check_interval=5).fit(linear_task(), loader, val)
    assert [row["step"] for row in result.history if "val/loss" in row] == [2, 3, 4]


def test_a_step_sees_its_batches_as_one_batch():
    seen = []

    def train_step(state, batch):
        seen.append(batch["x"].shape)
        shifted = {**batch, "x": batch["x"] + 1.0}
        grads, metrics = lj.grad(linear_loss_of)(state, shifted)
        return state.apply_gradients(grads), metrics | {"mean": lj.Mean(batch["y"])}

    def linear_loss_of(state, batch):
        seen.append(("part", batch["x"].shape))
        losses = (batch["x"] @ state.params["w"] + state.params["b"] - batch["y"]) ** 2
        return losses.mean(), {"loss": lj.Mean(losses)}

    data = linear_data(24)
    task = lj.Task(linear_task().init, train_step)
    result = quiet(max_epochs=1, accumulate_grad_batches=3).fit(task, lj.ArrayLoader(data, 4))
    assert int(result.state.step) == 2
    assert (12, 5) in seen
    assert ("part", (4, 5)) in seen
    assert result.metrics["train/mean_epoch"] == pytest.approx(data["y"].mean(), rel=1e-5)


def test_batch_statistics_go_from_one_microbatch_to_the_next():
    def loss_fn(state, batch):
        mean = 0.5 * state.model_state["mean"] + 0.5 * batch["x"].mean(0)
        return ((batch["x"] - mean[None]) @ state.params["w"]).mean(), ({}, {"mean": mean})

    state = lj.TrainState.create(
        params={"w": jnp.ones(5)}, optimizer=optax.sgd(0.1), model_state={"mean": jnp.zeros(5)}
    ).with_policy(microbatches=2)
    batch = linear_data(8)
    _, (_, model_state) = lj.grad(loss_fn)(state, batch)
    expected = 0.25 * batch["x"][:4].mean(0) + 0.5 * batch["x"][4:].mean(0)
    np.testing.assert_allclose(model_state["mean"], expected, rtol=1e-5)


def test_every_microbatch_draws_its_own_numbers():
    def loss_fn(state, batch):
        noise = jax.random.uniform(state.key_for("noise"), ())
        return state.params["w"] * noise, {"noise": jnp.full(batch["x"].shape[0], noise)}

    state = lj.TrainState.create(params={"w": 1.0}, optimizer=optax.sgd(0.1), key=jax.random.key(0))
    grads, aux = lj.grad(loss_fn)(state.with_policy(microbatches=4), {"x": jnp.zeros(8)})
    assert len(set(aux["noise"].tolist())) == 4
    assert float(grads["w"]) == pytest.approx(float(aux["noise"].mean()), rel=1e-6)


def test_microbatches_of_a_convolution_are_those_of_the_batch():
    def loss_fn(state, batch):
        dimensions = ("NHWC", "HWIO", "NHWC")
        features = jax.lax.conv_general_dilated(
            batch["x"].reshape(-1, 4, 4, 1), state.params["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        return lj.Mean(features**2), {}

    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 4))
    state = lj.TrainState.create(params={"kernel": kernel}, optimizer=optax.sgd(0.1))
    batch = {"x": digit_like_data(12)["x"]}
    reference, _ = lj.grad(loss_fn)(state, batch)
    grad = jax.jit(lj.grad(loss_fn))
    close(grad(state.with_policy(microbatches=3), batch)[0], reference, **FLOAT32)
    # Inside of a loop a convolution is slow on the CPU.
    assert "while" not in grad.lower(state.with_policy(microbatches=3), batch).as_text()


def test_gradients_are_averaged_over_replicas_by_weight():
    state, batch = masked_state(jnp.float32), masked_batch(dtype=np.float32)
    reference, _ = lj.grad(masked_loss)(state, batch)
    replicas = jax.tree.map(lambda leaf: leaf.reshape(4, 6, *leaf.shape[1:]), batch)
    for policy in ({"microbatches": 1}, {"microbatches": 3}):
        split = state.with_policy(replica_axis="replica", **policy)
        grads, _ = jax.vmap(lj.grad(masked_loss), in_axes=(None, 0), axis_name="replica")(split, replicas)
        for replica in range(4):
            close(jax.tree.map(lambda leaf, i=replica: leaf[i], grads), reference, **FLOAT32)


def test_an_accumulated_run_resumes_at_the_place_of_a_torch_loader_bit_for_bit(tmp_path):
    data = pytest.importorskip("torch.utils.data")
    torch = pytest.importorskip("torch")
    arrays = linear_data(44)
    rows = [{name: leaf[i] for name, leaf in arrays.items()} for i in range(44)]

    def collate(rows):
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    class Stop(lj.Callback):
        every_n_steps = 3

        def on_train_batch_end(self, run):
            run.stop("interrupt")

    def fit(root, **arguments):
        generator = torch.Generator().manual_seed(0)
        loader = data.DataLoader(rows, batch_size=4, shuffle=True, generator=generator, collate_fn=collate)
        fixed = dict(max_epochs=2, accumulate_grad_batches=2, steps_per_call=2, enable_checkpointing=True)
        return quiet(**fixed, default_root_dir=tmp_path / root, **arguments).fit(linear_task(), loader)

    whole = fit("whole")
    assert int(fit("part", callbacks=[Stop()]).state.step) == 3
    assert bits(fit("part", resume="auto").state) == bits(whole.state)


@pytest.mark.parametrize("policy", [{}, {"microbatches": 4}, {"microbatch_size": 5}])
def test_a_batch_without_any_weight_has_no_gradient_and_a_mean_of_nothing_however_it_is_cut(policy):
    state, batch = masked_state(jnp.float32).with_policy(**policy), masked_batch(dtype=np.float32)
    (loss, _), grads = jax.jit(lj.value_and_grad(masked_loss))(state, batch | {"mask": np.zeros_like(batch["mask"])})
    assert np.isnan(loss)
    close(grads, jax.tree.map(jnp.zeros_like, state.params))
