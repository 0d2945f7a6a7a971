"""The same step gives the same training on one device and on eight, however they are arranged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

import lightjax as lj
from tests.models import bits, digit_like_data, mlp_task, quiet
from tests.parallel.tasks import TASKS, assert_same_training, bytes_on_one_device, tensor_parallel, train

STRATEGIES = {
    "jit x 8": lambda name: {"strategy": "jit", "devices": 8},
    "pmap x 8": lambda name: {"strategy": "pmap", "devices": 8},
    "fsdp x 8": lambda name: {"strategy": "fsdp", "devices": 8},
    "data 2 x tensor 4": lambda name: {"strategy": tensor_parallel(name), "devices": 8},
    "fsdp 2 x tensor 4": lambda name: {"strategy": tensor_parallel(name, fsdp=True), "devices": 8},
}


@pytest.fixture(scope="module")
def on_one_device():
    found = {}

    def reference(name):
        if name not in found:
            found[name] = train(name, devices=1)
        return found[name]

    return reference


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        (name, strategy)
        for name in TASKS
        for strategy in STRATEGIES
        if name == "transformer" or "x tensor" not in strategy
    ]
    + [("mlp", "data 2 x tensor 4"), ("cnn", "data 2 x tensor 4")],
)
def test_eight_devices_train_as_one_does_with_a_ragged_batch(name, strategy, on_one_device):
    assert_same_training(train(name, **STRATEGIES[strategy](name)), on_one_device(name))


@pytest.mark.parametrize("strategy", ["fsdp", "pmap"])
def test_how_steps_are_cut_changes_no_bit_on_many_devices(strategy):
    def run(steps_per_call):
        data = lj.ArrayLoader(digit_like_data(70), 16, shuffle=True)
        return quiet(max_epochs=2, strategy=strategy, devices=8, steps_per_call=steps_per_call).fit(mlp_task(), data)

    assert bits(run(1).state) == bits(run(3).state)


def test_dropout_draws_the_same_numbers_on_any_number_of_devices():
    def run(**arguments):
        data = lj.ArrayLoader(digit_like_data(64), 16)
        return quiet(max_epochs=3, **arguments).fit(mlp_task(), data).state.params

    for devices in (2, 8):
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
            run(strategy="jit", devices=devices),
            run(devices=1),
        )


def test_data_that_stays_on_the_devices_gives_the_same_training():
    def run(on_device, **arguments):
        data = lj.ArrayLoader(digit_like_data(70), 16, shuffle=True, on_device=on_device)
        return quiet(max_epochs=2, steps_per_call=4, **arguments).fit(mlp_task(), data).state.params

    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
        run(True, strategy="fsdp", devices=8),
        run(False, devices=1),
    )


def test_fsdp_splits_parameters_and_optimizer_state_to_an_eighth():
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.relu(nn.Dense(512)(nn.relu(nn.Dense(512)(x)))))

    def init(key, batch):
        params = Wide().init(key, batch["x"])["params"]
        return lj.TrainState.create(params=params, optimizer=optax.adam(1e-3), key=key)

    def loss_fn(state, batch):
        logits = Wide().apply({"params": state.params}, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean(), {}

    data = lj.ArrayLoader(digit_like_data(32), 16)
    state = quiet(max_epochs=1, strategy="fsdp", devices=8).fit(lj.Task.from_loss(init, loss_fn), data).state
    whole, small = 0, 0
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        whole += leaf.nbytes
        if leaf.size < 1024:
            small += leaf.nbytes
            assert leaf.sharding.is_fully_replicated
        else:
            assert leaf.addressable_shards[0].data.size == leaf.size // 8
    assert small < 0.03 * whole
    assert bytes_on_one_device((state.params, state.opt_state)) == (whole - small) // 8 + small


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_predictions_of_all_devices_are_joined_and_written_in_the_order_of_the_data(strategy, tmp_path):
    def predict_step(state, batch):
        return {"row": batch["x"][:, 0], "twice": 2 * batch["x"]}

    task = lj.Task(mlp_task().init, mlp_task().train_step, predict_step=predict_step)
    arrays = digit_like_data(37)
    state = jax.jit(task.init)(jax.random.key(0), {"x": arrays["x"], "y": arrays["y"]})
    trainer = quiet(strategy=strategy, devices=8, callbacks=lj.PredictionWriter(tmp_path))
    found = trainer.predict(task, lj.ArrayLoader(arrays, 16), state=state)
    np.testing.assert_array_equal(found["row"], arrays["x"][:, 0])
    np.testing.assert_array_equal(found["twice"], 2 * arrays["x"])
    written = [np.load(path)["row"] for path in sorted(tmp_path.iterdir())]
    assert [len(rows) for rows in written] == [16, 16, 5]
    np.testing.assert_array_equal(np.concatenate(written), found["row"])


def test_a_checkpoint_of_eight_devices_goes_on_on_one_and_back(tmp_path):
    data = lj.ArrayLoader(digit_like_data(70), 16, shuffle=True)

    def run(max_steps, resume=None, **arguments):
        trainer = lj.Trainer(
            max_steps=max_steps, default_root_dir=tmp_path / str(max_steps), logger=False,
            enable_progress_bar=False, enable_model_summary=False, **arguments,
        )  # fmt: skip
        return trainer.fit(mlp_task(), data, resume=resume)

    uninterrupted = run(12, devices=1)
    first = run(7, strategy="fsdp", devices=8)
    # Nothing that was split is put together on one device when a checkpoint is read.
    back = first.checkpoint.last.restore()
    assert bits(back) == bits(first.state)
    assert jax.tree.map(lambda leaf: leaf.sharding, back) == jax.tree.map(lambda leaf: leaf.sharding, first.state)
    second = run(9, first.checkpoint.last, devices=1)
    third = run(12, second.checkpoint.last, strategy="jit", devices=4)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
        third.state.params,
        uninterrupted.state.params,
    )


def boxed_task(init_fn):
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(16, kernel_init=init_fn(nn.initializers.lecun_normal()), use_bias=False)(x)

    def init(key, batch):
        params = Boxed().init(key, batch["x"])["params"]
        return lj.TrainState.create(params=params, optimizer=optax.adam(1e-3), key=key)

    def loss_fn(state, batch):
        return (Boxed().apply({"params": state.params}, batch["x"]) ** 2).mean(), {}

    return lj.Task.from_loss(init, loss_fn)


@pytest.mark.parametrize("logical", [False, True])
def test_flax_partitioning_metadata_says_where_leaves_lie(logical):
    def annotate(initializer):
        if logical:
            return nn.with_logical_partitioning(initializer, ("embed", "mlp"))
        return nn.with_partitioning(initializer, (None, "tensor"))

    strategy = lj.Sharded(mesh={"data": 2, "tensor": 4}, logical_axes=[("embed", None), ("mlp", "tensor")])
    data = lj.ArrayLoader(digit_like_data(32), 16)
    state = quiet(max_epochs=1, strategy=strategy, devices=8).fit(boxed_task(annotate), data).state
    kernels = [leaf for leaf in jax.tree.leaves((state.params, state.opt_state)) if leaf.ndim == 2]
    assert len(kernels) == 3
    assert all(leaf.sharding.spec == P(None, "tensor") for leaf in kernels)


def test_a_logical_axis_nobody_maps_is_an_error():
    def annotate(initializer):
        return nn.with_logical_partitioning(initializer, ("embed", "mlp"))

    strategy = lj.Sharded(mesh={"data": 2, "tensor": 4}, logical_axes=[("embed", None)])
    with pytest.raises(lj.ConfigurationError, match=r"params/Dense_0/kernel.*logical axes 'mlp'.*logical_axes="):
        quiet(max_epochs=1, strategy=strategy, devices=8).fit(
            boxed_task(annotate), lj.ArrayLoader(digit_like_data(32), 16)
        )


def test_every_conflict_of_rules_is_listed_with_path_and_shape():
    rules = [
        ("layer_0/kernel", P("model")),
        ("layer_2/kernel", P(None, "tensor")),
        ("layer_1/bias", P(None, None, "tensor")),
        ("layr_1", P("tensor")),
    ]
    strategy = lj.Sharded(mesh={"data": 2, "tensor": 4}, rules=rules)
    with pytest.raises(lj.ConfigurationError) as raised:
        quiet(max_epochs=1, strategy=strategy, devices=8).fit(mlp_task(), lj.ArrayLoader(digit_like_data(32), 16))
    text = str(raised.value)
    assert "leaf 'params/layer_0/kernel' float32[16,32]" in text
    assert "axis 'model', which the mesh does not have: it has data, tensor" in text
    assert "leaf 'params/layer_2/kernel' float32[32,10]" in text
    assert "dimension 1 of size 10 does not divide by 4" in text
    assert "rule 'layer_1/bias' applies to no leaf" in text
    assert "speaks of 3 dimensions of 'params/layer_1/bias' float32[1,32]" in text
    assert "rule 'layr_1' matches no leaf; there are: step, params/layer_0/bias" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"strategy": "ddp"}, "strategy='ddp': write one of 'auto', 'jit', 'fsdp'"),
        ({"devices": 0}, "devices=0: write 'auto' or -1"),
        ({"strategy": "pmap", "mesh": {"data": 8}}, "strategy='pmap' has one axis"),
        ({"strategy": lj.Sharded(), "mesh": {"data": 8}}, "mesh and lj.Sharded.mesh=.* both"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused_before_anything_runs(arguments, text):
    with pytest.raises(lj.ConfigurationError, match=text):
        lj.Trainer(max_epochs=1, **arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"devices": 9}, "devices=9 were asked for, and there are 8"),
        ({"devices": [0, 8]}, "there is no device 8"),
        ({"mesh": {"data": 3}, "devices": 8}, "mesh={'data': 3} for 8 devices: 3 are not 8"),
        ({"mesh": {"model": 8}, "devices": 8}, "axes model and none named 'data'"),
    ],
)
def test_devices_that_are_not_there_are_refused_with_those_that_are(arguments, text):
    with pytest.raises(lj.ConfigurationError, match=text):
        quiet(max_epochs=1, **arguments).fit(mlp_task(), lj.ArrayLoader(digit_like_data(32), 16))


def test_all_devices_are_used_unless_a_default_device_is_set():
    data = lj.ArrayLoader(digit_like_data(32), 16)
    state = quiet(max_epochs=1).fit(mlp_task(), data).state
    assert len(state.step.sharding.device_set) == 1
    with jax.default_device(None):
        state = quiet(max_epochs=1).fit(mlp_task(), data).state
    assert len(state.step.sharding.device_set) == 8


def test_shard_batch_holds_a_value_to_the_batch_axis_and_does_nothing_off_the_mesh():
    x = jnp.ones((16, 4))
    assert lj.shard_batch(x) is x
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices())
    with jax.set_mesh(mesh):
        held = jax.jit(lambda x: lj.shard_batch(x * 2))(x)
    assert held.sharding.spec == P("data")
    np.testing.assert_array_equal(held, 2 * x)


def test_pmap_weighs_unequal_shards_exactly_and_replicas_draw_different_dropout():
    def loss_fn(state, batch):
        losses = (batch["x"] @ state.params["w"] - batch["y"]) ** 2
        noise = jax.random.uniform(state.key_for("noise"))
        return lj.Mean(losses, batch["weight"]), {"loss": lj.Mean(losses, batch["weight"]), "least": lj.Min(noise)}

    def init(key, batch):
        return lj.TrainState.create(params={"w": jnp.zeros(3)}, optimizer=optax.sgd(0.1), key=key)

    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(44, 3)).astype(np.float32),
        "y": rng.normal(size=44).astype(np.float32),
        "weight": rng.integers(0, 3, 44).astype(np.float32) * (np.arange(44) > 16),  # whole shards without weight
    }

    def run(**arguments):
        data = lj.ArrayLoader(arrays, 16)
        return quiet(max_epochs=3, log_every_n_steps=1, **arguments).fit(lj.Task.from_loss(init, loss_fn), data)

    pmap, one = run(strategy="pmap", devices=8), run(devices=1)
    np.testing.assert_allclose(pmap.state.params["w"], one.state.params["w"], rtol=1e-5)
    losses = [[row["train/loss"] for row in result.history] for result in (pmap, one)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    # The least of eight different numbers is below the one that eight equal ones would be.
    assert np.mean([row["train/least"] for row in pmap.history]) < 0.25


def test_pmap_needs_a_train_state():
    task = lj.Task(lambda key, batch: {"w": jnp.zeros(3)}, lambda state, batch: (state, {}))
    with pytest.raises(lj.ConfigurationError, match=r"strategy='pmap'.*holds no lj.TrainState.*strategy='jit'"):
        quiet(max_epochs=1, strategy="pmap", devices=8).fit(task, lj.ArrayLoader(digit_like_data(32), 16))
