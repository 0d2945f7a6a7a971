"""Several loaders in one training: how long an epoch is, what its batches are, and where a resumed one goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import bits, quiet


def rows(examples, offset=0):
    return np.arange(examples, dtype=np.float32) + offset


def members(kind):
    """A short and a long loader, of one example a batch."""
    short, long = rows(3), rows(5, 10)
    return {
        "array": lambda: {"a": lj.ArrayLoader(short, 1), "b": lj.ArrayLoader(long, 1)},
        "list": lambda: {"a": [row[None] for row in short], "b": [row[None] for row in long]},
        "generator": lambda: {"a": lambda: (row[None] for row in short), "b": lambda: (row[None] for row in long)},
    }[kind]()


MODES = {
    "min_size": [(0, 10), (1, 11), (2, 12)],
    "max_size": [(0, 10), (1, 11), (2, 12), (None, 13), (None, 14)],
    "max_size_cycle": [(0, 10), (1, 11), (2, 12), (0, 13), (1, 14)],
    "sequential": [0, 1, 2, 10, 11, 12, 13, 14],
}


def values(batch):
    if isinstance(batch, dict):
        return tuple(None if leaf is None else int(leaf[0]) for leaf in batch.values())
    return int(batch[0])


@pytest.mark.parametrize("kind", ["array", "list", "generator"])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_gives_its_batches_from_any_start(mode, kind):
    combined = lj.CombinedLoader(members(kind), mode)
    assert [values(batch) for batch in combined] == MODES[mode]
    for start in range(len(MODES[mode]) + 1):
        assert [values(batch) for batch in combined.epoch(0, start)] == MODES[mode][start:]
    if kind != "generator":
        assert len(combined) == len(MODES[mode])
    else:
        with pytest.raises(TypeError, match="no length"):
            len(combined)


def test_a_loader_that_is_begun_anew_has_another_order():
    short = lj.ArrayLoader(rows(4), 1, shuffle=True)
    combined = lj.CombinedLoader([short, lj.ArrayLoader(rows(12), 1)], "max_size_cycle")
    seen = [int(batch[0][0]) for batch in combined.epoch(0)]
    rounds = [tuple(seen[i : i + 4]) for i in (0, 4, 8)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in rounds)
    assert len(set(rounds)) > 1
    assert [int(batch[0][0]) for batch in combined.epoch(0, 6)] == seen[6:]


def task():
    def init(key, batch):
        return lj.TrainState.create(params={"w": jnp.zeros(())}, optimizer=optax.sgd(0.01), key=key)

    def loss(state, batch):
        parts = [jnp.mean((state.params["w"] - leaf) ** 2) for leaf in jax.tree.leaves(batch)]
        return sum(parts), {}

    return lj.Task.from_loss(
        init, lambda state, batch: (loss(state, batch)[0], {"loss": lj.Mean(loss(state, batch)[0])})
    )


def by_hand(batches):
    w = np.float32(0)
    for batch in batches:
        leaves = [leaf for leaf in batch if leaf is not None] if isinstance(batch, tuple) else [batch]
        w = w - np.float32(0.01) * sum(2 * (w - leaf) for leaf in leaves)
    return w


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps_per_call", [1, 8])
def test_a_training_on_combined_loaders_is_that_of_a_loop_written_by_hand(mode, steps_per_call):
    trainer = quiet(max_epochs=2, steps_per_call=steps_per_call)
    result = trainer.fit(task(), lj.CombinedLoader(members("list"), mode))
    assert int(result.state.step) == 2 * len(MODES[mode])
    assert float(result.state.params["w"]) == pytest.approx(by_hand(MODES[mode] * 2), rel=1e-5)


@pytest.mark.parametrize("kind", ["array", "list", "generator"])
def test_a_resumed_training_goes_on_with_the_batch_after(kind, tmp_path):
    def fit(directory, max_steps):
        data = members(kind)
        if kind == "array":
            data = {name: lj.ArrayLoader(one.arrays, 1, shuffle=True) for name, one in data.items()}
        arguments = dict(enable_checkpointing=True, default_root_dir=directory, resume="auto")
        return quiet(max_steps=max_steps, **arguments).fit(task(), lj.CombinedLoader(data, "max_size_cycle"))

    whole = fit(tmp_path / "whole", 13)
    for steps in (4, 8, 13):
        parts = fit(tmp_path / "parts", steps)
    assert bits(parts.state) == bits(whole.state)


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(lj.DataError, match="mode='longest'; write one of min_size, max_size"):
        lj.CombinedLoader({"a": []}, "longest")
    with pytest.raises(lj.DataError, match="got no loaders"):
        lj.CombinedLoader({})
    once = lj.CombinedLoader([iter([rows(1)]), [rows(1)] * 3], "max_size_cycle")
    with pytest.raises(lj.DataError, match="begun anew; an iterator can be passed over only once"):
        quiet(max_epochs=1).fit(task(), once)
    with pytest.raises(lj.DataError, match="train_data is a dict, which is no loader"):
        quiet(max_epochs=1).fit(task(), {"a": [rows(1)], "b": [rows(1)]})


def test_a_step_that_reports_other_names_for_a_loader_that_ended_is_told():
    def train_step(state, batch):
        return state, {name: jnp.mean(leaf) for name, leaf in batch.items() if leaf is not None}

    one = lj.Task(task().init, train_step)
    with pytest.raises(lj.MetricError, match=r"reported the metrics b for one batch and a, b for another"):
        quiet(max_epochs=1).fit(one, lj.CombinedLoader(members("list"), "max_size"))
