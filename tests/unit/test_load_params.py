"""Parameters of one model in another: what fits is loaded, what does not is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import bits, digit_like_data, mlp_task, quiet


@pytest.fixture
def trained(tmp_path):
    trainer = quiet(max_epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    return trainer.fit(mlp_task(), lj.ArrayLoader(digit_like_data(32), 16))


def fresh_state(params=None, seed=5):
    key = jax.random.key(seed)
    params = mlp_task().init(key, digit_like_data(4)).params if params is None else params
    return lj.TrainState.create(params=params, optimizer=optax.sgd(0.1), key=key)


@pytest.mark.parametrize("given", ["checkpoint", "run"])
def test_only_the_parameters_are_loaded(trained, given):
    into = fresh_state()
    path = trained.checkpoint.last if given == "checkpoint" else trained.directory
    state, report = lj.load_params(path, into)
    assert bits(state.params) == bits(trained.state.params)
    assert int(state.step) == 0
    assert bits(state.key) == bits(into.key)
    assert report.complete
    assert len(report.matched) == 6
    params, _ = lj.load_params(path, into.params)
    assert bits(params) == bits(trained.state.params)
    # What was loaded trains.
    assert (
        int(quiet(max_epochs=1).fit(mlp_task(), lj.ArrayLoader(digit_like_data(32), 16), state=state).state.step) == 2
    )


def test_leaves_take_the_dtype_and_place_of_those_they_replace(trained):
    devices = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    split = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("data"))
    into = {"layer_0": {"kernel": jax.device_put(jnp.zeros((16, 32), jnp.bfloat16), split), "bias": np.zeros((1, 32))}}
    params, _ = lj.load_params(trained.directory, into, strict=False)
    kernel, bias = params["layer_0"]["kernel"], params["layer_0"]["bias"]
    assert kernel.dtype == jnp.bfloat16
    assert kernel.sharding == split
    expected = trained.state.params["layer_0"]
    np.testing.assert_array_equal(np.asarray(kernel), np.asarray(expected["kernel"].astype(jnp.bfloat16)))
    assert isinstance(bias, np.ndarray)
    assert bias.dtype == np.float64
    np.testing.assert_array_equal(bias, np.asarray(expected["bias"], np.float64))


def test_names_are_mapped_and_leaves_left_out(trained):
    theirs = trained.state.params
    blank = jax.tree.map(jnp.zeros_like, theirs)
    into = {"backbone": {"block_0": blank["layer_0"], "block_1": blank["layer_1"]}, "head": jnp.ones(3)}
    params, report = lj.load_params(
        trained.directory, into, {"layer_2/": None, r"layer_(\d+)/": r"backbone/block_\1/"}, strict=False
    )
    assert bits(params["backbone"]["block_1"]) == bits(theirs["layer_1"])
    assert params["head"].tolist() == [1, 1, 1]
    assert report.matched["layer_0/kernel"] == "backbone/block_0/kernel"
    assert report.missing == ["head"]
    assert report.extra == []
    assert "layer_0/bias -> backbone/block_0/bias" in str(report)


def test_what_does_not_fit_is_listed_whole(trained):
    into = {
        "layer_0": {"kernel": jnp.zeros((16, 8)), "bias": jnp.zeros((1, 32))},
        "layer_1": trained.state.params["layer_1"],
        "extra": jnp.zeros(2),
    }
    with pytest.raises(lj.CheckpointError) as caught:
        lj.load_params(trained.directory, into)
    text = str(caught.value)
    assert "layer_0/kernel: float32[16,32] in the checkpoint, float32[16,8] in the model" in text
    assert "not in the checkpoint, left as they are:\n    extra" in text
    assert "not in the model, left out:\n    layer_2/bias\n    layer_2/kernel" in text
    assert "strict=False" in text
    params, report = lj.load_params(trained.directory, into, strict=False)
    assert bits(params["layer_1"]) == bits(trained.state.params["layer_1"])
    assert not params["layer_0"]["kernel"].any()
    assert not report.complete


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"encoder/": "x/"}, r"mapping has \['encoder/'\], but no parameter of .* begins so; it has: layer_0/bias"),
        ({r"layer_\d/": "same/"}, "gives several leaves of .* the same name: same/bias, same/kernel"),
        ({"layer": "other"}, "The parameters do not fit"),
    ],
)
def test_mappings_that_lead_nowhere_are_refused(trained, mapping, text):
    with pytest.raises(lj.CheckpointError, match=text):
        lj.load_params(trained.directory, fresh_state(), mapping)


def test_a_damaged_checkpoint_is_refused(trained):
    file = max((trained.checkpoint.last.path / "state").rglob("*"), key=lambda one: one.stat().st_size)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(lj.CheckpointError, match=f"is damaged: state/.*{file.name} is not what was written"):
        lj.load_params(trained.checkpoint.last, fresh_state())


def saved(tmp_path, state):
    checkpointer = lj.Checkpointer(tmp_path)
    checkpoint = checkpointer.save(1, state, metrics={})
    checkpointer.close()
    return checkpoint


def test_another_precision_is_restored_where_it_is_asked_for(tmp_path):
    state = {"w": jnp.linspace(0, 1, 5), "n": jnp.arange(3), "key": jax.random.key(1)}
    checkpoint = saved(tmp_path, state)
    like = state | {"w": state["w"].astype(jnp.bfloat16)}
    with pytest.raises(lj.CheckpointError, match=r"w: float32\[5\] in the checkpoint, bfloat16\[5\](.|\n)*cast=True"):
        lj.restore(checkpoint, like)
    for back in (lj.restore(checkpoint, like, cast=True), lj.Checkpoint.open(checkpoint).restore(like, cast=True)):
        assert bits(back) == bits(like)
    with pytest.raises(lj.CheckpointError, match=r"n: int32\[3\] in the checkpoint, float32\[3\] in the state"):
        lj.restore(checkpoint, like | {"n": jnp.zeros(3)}, cast=True)


def test_host_arrays_and_numbers_come_back_as_they_were(tmp_path):
    wide = np.array([2**40, -1])
    state = {"wide": wide, "narrow": np.arange(2, dtype=np.float32), "count": 3, "rate": 0.1, "w": jnp.ones(2)}
    expected = {"wide": wide.copy(), **{name: value for name, value in state.items() if name != "wide"}}
    checkpointer = lj.Checkpointer(tmp_path)
    checkpointer.save(1, {"x": 0}, metrics={})  # so that the next one waits in memory
    checkpoint = checkpointer.save(2, state, metrics={})
    wide[:] = 0
    checkpointer.close()
    back = lj.restore(checkpoint, state)
    assert isinstance(back["wide"], np.ndarray)
    assert isinstance(back["narrow"], np.ndarray)
    assert (back["count"], back["rate"]) == (3, 0.1)
    assert isinstance(back["w"], jax.Array)
    np.testing.assert_array_equal(back["wide"], expected["wide"])
    np.testing.assert_array_equal(checkpoint.restore()["wide"], expected["wide"])


def test_a_checkpoint_is_restored_onto_another_mesh(tmp_path):
    def split(devices):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    rows = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    checkpoint = saved(tmp_path, {"w": jax.device_put(rows, split(8))})
    for devices in (1, 2, 4):
        like = {"w": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=split(devices))}
        back = lj.Checkpoint.open(checkpoint).restore(like)["w"]
        assert back.sharding == split(devices)
        np.testing.assert_array_equal(np.asarray(back), rows)
