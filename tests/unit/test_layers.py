"""The layers of a model, and what a summary says of split and frozen parameters."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

import lightjax as lj
from tests.models import mlp_task, quiet


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        for i, width in enumerate((8, 16)):
            x = nn.max_pool(Block(width, name=f"block_{i}")(x, train), (2, 2), (2, 2))
        shared = nn.Dense(16, name="shared")
        return nn.Dense(10, name="head")(shared(shared(x.mean((1, 2)))))


def test_the_layers_of_a_cnn_have_their_shapes_and_known_counts():
    image = jax.ShapeDtypeStruct((4, 28, 28, 1), jnp.float32)
    found = lj.summarize_layers(CNN(), image, train=False)
    layers = {one.path: one for one in found.layers if one.parameters}
    counts = {path: one.parameters for path, one in layers.items()}
    assert counts == {
        "": 72 + 16 + 1152 + 32 + 272 + 170,
        "block_0": 72 + 16,
        "block_0/conv": 3 * 3 * 1 * 8,
        "block_0/norm": 2 * 8,
        "block_1": 1152 + 32,
        "block_1/conv": 3 * 3 * 8 * 16,
        "block_1/norm": 2 * 16,
        "shared": 16 * 16 + 16,
        "head": 16 * 10 + 10,
    }
    params = CNN().init(jax.random.key(0), jnp.zeros(image.shape))["params"]
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert layers["block_1/conv"].inputs == ("float32[4,14,14,8]",)
    assert layers["block_1/conv"].outputs == ("float32[4,14,14,16]",)
    assert [one.path for one in found.layers][:3] == ["", "block_0", "block_0/conv"]
    assert [one.parameters for one in found.layers if one.path == "shared"] == [272, 0]
    assert "conv" not in found.table(depth=1)
    assert "block_1" in found.table(depth=1)


def test_what_is_no_flax_module_is_refused():
    with pytest.raises(lj.ConfigurationError, match="got dict, which is no flax.linen.Module; lj.summarize\\(state\\)"):
        lj.summarize_layers({}, jnp.zeros(3))


def test_frozen_parameters_are_marked_and_counted():
    result = quiet(max_steps=1, trainable="layer_2", devices=1).fit(
        mlp_task(), lj.ArrayLoader({"x": jnp.zeros((8, 16)), "y": jnp.zeros(8, jnp.int32)}, 8)
    )
    summary = lj.summarize(result.state)
    assert {row.path for row in summary.rows if row.trained} == {"layer_2/bias", "layer_2/kernel"}
    assert summary.frozen == summary.parameters - 330
    assert str(summary).count("frozen") == 4
    assert "Frozen" in str(summary)
    assert "partly frozen" in summary.table(max_rows=1)


def test_a_summary_without_frozen_or_split_leaves_says_nothing_of_them():
    state = lj.TrainState.create(params={"w": jnp.zeros(3)}, optimizer=optax.sgd(0.1))
    assert "rozen" not in str(lj.summarize(state))
    assert "Each device" not in str(lj.summarize(state))


def test_split_leaves_show_what_lies_on_each_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(jnp.zeros((8, 1024)), jax.NamedSharding(mesh, jax.P(None, "data")))
    summary = lj.summarize({"w": split, "b": jax.device_put(jnp.zeros(3), jax.NamedSharding(mesh, jax.P()))})
    assert {row.path: row.shard for row in summary.rows} == {"b": None, "w": (8, 128)}
    assert summary.bytes == 4 * (8 * 1024 + 3)
    assert "8x128" in str(summary)
