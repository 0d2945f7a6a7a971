"""The summary of a state: every number counted once, from shapes alone, and short enough to read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lightjax.summary import Row, format_bytes, summarize


class State(NamedTuple):
    """A state with the fields of a TrainState."""

    step: Any
    params: Any
    opt_state: Any
    model_state: Any
    key: Any


def make_state() -> State:
    params = {
        "Dense_0": {"kernel": jnp.zeros((784, 10)), "bias": jnp.zeros(10)},
        "table": jnp.zeros((4, 2), jnp.bfloat16),
    }
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optax.sgd(0.1, momentum=0.9).init(params),
        model_state={"BatchNorm_0": {"mean": jnp.zeros(10)}},
        key=jax.random.key(0),
    )


PARAMETER_BYTES = 7840 * 4 + 10 * 4 + 8 * 2


def test_train_state_rows_are_parameters_then_model_state():
    summary = summarize(make_state())
    assert summary.rows == (
        Row("Dense_0/bias", (10,), "float32", 10, 40),
        Row("Dense_0/kernel", (784, 10), "float32", 7840, 31360),
        Row("table", (4, 2), "bfloat16", 8, 16),
        Row("model_state/BatchNorm_0/mean", (10,), "float32", 0, 40),
    )


def test_train_state_sums_count_every_leaf_once():
    summary = summarize(make_state())
    assert summary.parameters == 7858
    assert summary.parameter_bytes == PARAMETER_BYTES
    assert summary.optimizer_bytes == PARAMETER_BYTES  # the momentum
    assert summary.model_state_bytes == 40
    assert summary.bytes == 2 * PARAMETER_BYTES + 40 + 4 + 8  # and step and key


def test_abstract_state_gives_the_same_summary_without_an_array():
    abstract = jax.eval_shape(make_state)
    assert summarize(abstract) == summarize(make_state())


def test_no_value_is_read():
    state = make_state()
    jax.tree.map(lambda leaf: leaf.delete(), state)
    assert summarize(state).parameters == 7858


@pytest.mark.parametrize(("impl", "size"), [("threefry2x32", 8), ("rbg", 16)])
def test_typed_keys_count_the_bytes_of_their_data(impl, size):
    keys = jax.random.split(jax.random.key(0, impl=impl), 3)
    [row] = summarize({"keys": keys}).rows
    assert (row.path, row.shape, row.parameters, row.bytes) == ("keys", (3,), 0, 3 * size)
    assert jax.random.key_data(keys).nbytes == 3 * size


def test_any_pytree_has_every_leaf_as_a_row_and_its_floats_as_parameters():
    summary = summarize({"w": [np.zeros((2, 3)), np.zeros(2, np.int8)], "b": jnp.zeros(3, jnp.complex64), "n": 1})
    assert [row.path for row in summary.rows] == ["b", "n", "w/0", "w/1"]
    assert [row.parameters for row in summary.rows] == [3, 0, 6, 0]
    assert summary.parameters == 9
    assert summary.bytes == 3 * 8 + 4 + 6 * 8 + 2


def test_several_train_states_in_one_state_are_summed():
    one = summarize(make_state())
    summary = summarize({"generator": make_state(), "critic": make_state(), "temperature": jnp.zeros(())})
    assert summary.parameters == 2 * one.parameters
    assert summary.optimizer_bytes == 2 * one.optimizer_bytes
    assert summary.bytes == 2 * one.bytes + 4
    assert "generator/Dense_0/kernel" in [row.path for row in summary.rows]
    assert "critic/model_state/BatchNorm_0/mean" in [row.path for row in summary.rows]


def test_the_train_state_of_this_package_is_recognised():
    state = pytest.importorskip("lightjax.state")
    params = {"w": jnp.zeros((3, 2))}
    made = state.TrainState.create(params=params, optimizer=optax.adam(0.1), key=jax.random.key(0))
    summary = summarize(made)
    assert summary.rows == (Row("w", (3, 2), "float32", 6, 24),)
    assert summary.optimizer_bytes == 2 * 24 + 4
    assert summary.model_state_bytes == 0


def test_sharded_array_counts_its_global_size():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for spec in (jax.P("data"), jax.P()):
        array = jax.device_put(jnp.zeros((16, 3)), jax.NamedSharding(mesh, spec))
        assert summarize({"w": array}).bytes == 16 * 3 * 4


def test_table_is_aligned_and_says_all_sums():
    lines = str(summarize(make_state())).splitlines()
    assert lines == [
        "Name                          Shape   Dtype     Parameters     Size",
        "-------------------------------------------------------------------",
        "Dense_0                                              7,850  31.4 kB",
        "  bias                        10      float32           10     40 B",
        "  kernel                      784x10  float32        7,840  31.4 kB",
        "table                         4x2     bfloat16           8     16 B",
        "model_state/BatchNorm_0/mean  10      float32            -     40 B",
        "-------------------------------------------------------------------",
        "Parameters       7,858   31.4 kB",
        "Model state                 40 B",
        "Optimizer state          31.4 kB",
        "Whole state              62.9 kB",
    ]


def test_long_table_folds_deep_modules_without_losing_a_number():
    block = {"attention": {"query": jnp.zeros((8, 8)), "key": jnp.zeros((8, 8), jnp.bfloat16)}, "bias": jnp.zeros(8)}
    summary = summarize({f"block_{number}": block for number in range(25)})
    assert len(summary.rows) == 75
    lines = str(summary).splitlines()
    assert lines[2:5] == [
        "block_0                                    136  416 B",
        "  attention/...  2 arrays  mixed           128  384 B",
        "  bias           8         float32           8   32 B",
    ]
    assert lines[-1].startswith("50 arrays are folded into modules; print(lj.summarize(state).table(max_rows=None)) sh")
    assert len(summary.table(max_rows=None).splitlines()) == 75 + 50 + len(lines) - 75 - 1
    assert "block_0/..." in summary.table(max_rows=30)
    assert "3 arrays" in summary.table(max_rows=30)


def test_depth_folds_what_lies_as_deep():
    inner = {"query": jnp.zeros((8, 8)), "key": jnp.zeros((8, 8))}
    summary = summarize({"encoder": {"attention": inner, "bias": jnp.zeros(8)}, "head": jnp.zeros((8, 2))})
    names = {depth: [line[:18].strip() for line in summary.table(depth=depth).splitlines()[2:]] for depth in (1, 2, 3)}
    assert [name.split("  ")[0] for name in names[1][:2]] == ["encoder/...", "head"]
    assert [name.split("  ")[0] for name in names[2][:4]] == ["encoder", "attention/...", "bias", "head"]
    assert [name.split("  ")[0] for name in names[3][:5]] == ["encoder", "attention", "key", "query", "bias"]
    for depth in (1, 2, 3):
        assert [summary.table(depth=depth).count(number) for number in ("136", "152")] == [1, 1]
    assert "folded" not in summary.table(depth=3)


def test_names_that_are_part_of_others_stay_apart():
    summary = summarize([{"a": jnp.zeros(2)}, {"a": {"b": jnp.zeros(3)}}])
    assert [line.split()[0] for line in str(summary).splitlines()[2:4]] == ["0/a", "1/a/b"]


@pytest.mark.parametrize("max_rows", [1, 5, 60])
def test_table_is_never_longer_than_asked_for(max_rows):
    summary = summarize({f"w{number:03}": jnp.zeros(2) for number in range(300)})
    lines = summary.table(max_rows).splitlines()
    rows = lines[2 : lines.index(lines[1], 2)]
    assert len(rows) == max_rows
    folded = 301 - max_rows
    assert rows[-1].split()[:5] == ["...", f"{folded}", "arrays", "float32", f"{2 * folded}"]


@pytest.mark.parametrize("state", [{}, None, jnp.zeros(3)])
def test_smallest_states_have_a_table(state):
    assert "Whole state" in str(summarize(state))


def test_leaf_that_is_no_array_is_named():
    with pytest.raises(TypeError, match=r"leaf 'params/name' is a str, 'resnet'.*pytree of arrays.*static"):
        summarize({"params": {"name": "resnet"}})


def test_sizes_are_decimal_with_three_digits():
    sizes = [0, 999, 1000, 1001, 999_500, 1_234_567, 2_000_000_000, 5 * 10**12]
    assert [format_bytes(size) for size in sizes] == [
        "0 B", "999 B", "1 kB", "1 kB", "1 MB", "1.23 MB", "2 GB", "5 TB"
    ]  # fmt: skip
