"""Every kind of data gives the same batches, however it is cut into stretches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightjax as lj
from lightjax.data.source import as_source
from tests.models import linear_data

DATA = linear_data(22)


def batches_of(source, epoch=0, start=0, most=1, capacity=1):
    cursor = source.epoch(epoch, start)
    batches = []
    while (stretch := cursor.take(most, capacity)) is not None:
        steps = stretch.steps
        assert stretch.count <= steps.capacity
        announced = {spec.signature for spec in source.specs(capacity)}
        assert steps.signature in announced or steps.capacity == 1
        batches += [jax.tree.map(np.asarray, steps.batch(i)) for i in range(stretch.count)]
    return batches


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def loader(**arguments):
    return lj.ArrayLoader(DATA, 4, shuffle=True, seed=5, **arguments)


def reusing_one_buffer():
    buffer = {name: np.empty((4, *leaf.shape[1:]), leaf.dtype) for name, leaf in DATA.items()}
    for batch in loader(drop_last=True).epoch(0):
        for name, leaf in batch.items():
            buffer[name][...] = leaf
        yield buffer


@pytest.mark.parametrize("most", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "kind", ["array loader", "list", "generator function", "device arrays", "reused buffer", "on device"]
)
def test_any_cut_gives_the_batches_of_the_loader(kind, most):
    full_only = kind == "reused buffer"
    expected = list(loader(drop_last=full_only).epoch(0))
    data = {
        "array loader": lambda: loader(),
        "on device": lambda: loader(on_device=True),
        "list": lambda: list(loader().epoch(0)),
        "generator function": lambda: lambda: loader().epoch(0),
        "device arrays": lambda: [jax.tree.map(jnp.asarray, batch) for batch in loader().epoch(0)],
        "reused buffer": lambda: reusing_one_buffer,
    }[kind]()
    source = as_source(data, "train_data")
    source.first()  # reading ahead must not lose a batch
    assert_same(batches_of(source, most=most, capacity=8), expected)


def test_an_epoch_can_be_entered_anywhere():
    for data in (loader(), list(loader().epoch(0))):
        source = as_source(data, "train_data")
        source.resume(0, 3, None, print, lambda: False)
        assert_same(batches_of(source, start=3, most=2, capacity=2), list(loader().epoch(0))[3:])


def test_epochs_have_their_own_order_and_passes_follow_them():
    ours = loader()
    first, second = [list(ours) for _ in range(2)]
    assert not np.array_equal(first[0]["x"], second[0]["x"])
    assert_same(second, list(loader().epoch(1)))
    rows = np.sort(np.concatenate([batch["y"] for batch in second]))
    np.testing.assert_array_equal(rows, np.sort(DATA["y"]))


def test_lengths_count_the_ragged_batch_unless_it_is_dropped():
    assert (len(loader()), len(loader(drop_last=True))) == (6, 5)
    assert [len(batch["y"]) for batch in loader()] == [4, 4, 4, 4, 4, 2]
    assert [len(batch["y"]) for batch in loader(drop_last=True)] == [4] * 5


@pytest.mark.parametrize("make", [loader, lambda: list(loader().epoch(0)), lambda: lambda: loader().epoch(0)])
def test_limits_cut_an_epoch(make):
    assert len(batches_of(as_source(make(), "train_data", 2), most=8, capacity=8)) == 2
    assert len(batches_of(as_source(make(), "train_data", 1.0))) == 6


def test_a_fraction_needs_a_length():
    assert len(batches_of(as_source(loader(), "train_data", 0.5))) == 3
    with pytest.raises(lj.DataError, match=r"0\.5 of train_data was asked for, but the loader has no length"):
        as_source(lambda: loader().epoch(0), "train_data", 0.5)


def test_wide_dtypes_become_what_the_device_holds():
    source = as_source([{"x": np.zeros((2, 3)), "n": np.arange(2)}], "train_data")
    assert {name: leaf.dtype for name, leaf in source.first().items()} == {"x": np.float32, "n": np.int32}
    wide = lj.ArrayLoader({"x": np.zeros((2, 3)), "n": np.arange(2)}, 2)
    assert as_source(wide, "train_data").first()["n"].dtype == np.int32


def test_torch_batches_are_taken_as_they_are():
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(DATA["x"]), torch.from_numpy(DATA["y"]))
    source = as_source(torch.utils.data.DataLoader(dataset, batch_size=4), "train_data")
    assert source.batches == 6
    batches = batches_of(source, most=4, capacity=4)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), DATA["x"])
