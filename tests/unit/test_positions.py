"""Every kind of loader is found again where it was: the rest of the epoch and the epochs after are the same batches."""

import json

import grain
import jax
import numpy as np
import pytest

import lightjax as lj
from lightjax.data.position import decode, encode
from lightjax.data.source import as_source
from tests.models import linear_data, linear_task, quiet

torch = pytest.importorskip("torch")
stateful = pytest.importorskip("torchdata.stateful_dataloader")
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

ROWS = np.arange(22, dtype=np.float32)
TENSORS = torch.utils.data.TensorDataset(torch.from_numpy(ROWS))


def seeded():
    return torch.Generator().manual_seed(3)


class Counting:
    """A loader of one's own, with a place of one's own."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        while self.next < 6:
            self.next += 1
            yield np.full(4, self.next, np.float32)
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Reshuffling:
    """Shuffles anew in each pass and tells nobody how."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __iter__(self):
        order = self.random.permutation(ROWS)
        return (order[i : i + 4] for i in range(0, 22, 4))


def grain_loader():
    sampler = grain.samplers.IndexSampler(22, shuffle=True, seed=0, num_epochs=1)
    return grain.DataLoader(data_source=ROWS, sampler=sampler, operations=[grain.transforms.Batch(4)])


def sampled(sampler):
    return torch.utils.data.DataLoader(TENSORS, batch_size=4, sampler=sampler)


LOADERS = {
    "array": lambda: lj.ArrayLoader(ROWS, 4, shuffle=True),
    "list": lambda: [ROWS[i : i + 4] for i in range(0, 22, 4)],
    "grain": lambda: grain.MapDataset.source(ROWS).shuffle(seed=1).batch(4),
    "grain iterable": lambda: grain.MapDataset.source(ROWS).shuffle(seed=1).to_iter_dataset().batch(4),
    "grain loader": grain_loader,
    "torchdata": lambda: stateful.StatefulDataLoader(TENSORS, batch_size=4, shuffle=True),
    "torchdata seeded": lambda: stateful.StatefulDataLoader(TENSORS, batch_size=4, shuffle=True, generator=seeded()),
    "torch seeded": lambda: torch.utils.data.DataLoader(TENSORS, batch_size=4, shuffle=True, generator=seeded()),
    "torch in order": lambda: torch.utils.data.DataLoader(TENSORS, batch_size=4),
    "torch distributed": lambda: sampled(torch.utils.data.DistributedSampler(TENSORS, 2, 1, seed=5)),
    "torch weighted": lambda: sampled(
        torch.utils.data.WeightedRandomSampler([1.0] * 22, num_samples=22, generator=seeded())
    ),
    "own": Counting,
    "reshuffling": Reshuffling,
    "generator function": lambda: lambda: iter([ROWS[i : i + 4] for i in range(0, 22, 4)]),
    "function of a loader": lambda: lambda: grain.MapDataset.source(ROWS).shuffle(seed=1).batch(4),
}


def flat(batch):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(batch)]).tolist()


def read(source, epoch, start=0, most=2):
    """Returns the batches of an epoch, and after each stretch how many there were and the place."""
    cursor, batches, places = source.epoch(epoch, start), [], []
    while (stretch := cursor.take(most, most)) is not None:
        batches += [flat(stretch.steps.batch(i)) for i in range(stretch.count)]
        places.append((len(batches), json.loads(json.dumps(stretch.place))))
    return batches, places


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_goes_on_where_it_was(kind, most, limit):
    said = []

    def resumed(epoch, batch, place):
        source = as_source(LOADERS[kind](), "train_data", limit)
        source.first()
        source.resume(epoch, batch, place, said.append, lambda: False)
        return source

    source = as_source(LOADERS[kind](), "train_data", limit)
    source.first()
    first, places = read(source, 0, most=most)
    between = json.loads(json.dumps(source.after_pass(places[-1][1])))
    second, places_in_second = read(source, 1, most=most)
    third, _ = read(source, 2, most=most)
    for epoch, batches, after, marked in ((0, first, second, places), (1, second, third, places_in_second)):
        for batch, place in marked:
            again = resumed(epoch, batch, place)
            assert read(again, epoch, batch, most)[0] == batches[batch:]
            assert read(again, epoch + 1, most=most)[0] == after
    again = resumed(1, 0, between)
    assert read(again, 1, most=most)[0] == second
    assert read(again, 2, most=most)[0] == third
    read_again = kind in ("reshuffling", "generator function")
    assert bool(said) == read_again
    assert not read_again or "train_data was read again up to batch" in said[0]


def test_an_order_of_chance_is_said_at_the_start_and_refused_in_the_middle(tmp_path):
    source = as_source(torch.utils.data.DataLoader(TENSORS, batch_size=4, shuffle=True), "train_data")
    source.first()
    assert "generator=torch.Generator().manual_seed(0)" in source.inexact()
    with pytest.raises(lj.CheckpointError, match=r"nobody can say which batches those were: train_data shuffles by"):
        source.resume(1, 3, None, print)
    source.resume(1, 0, None, print)
    assert sorted(np.concatenate(read(source, 1)[0])) == ROWS.tolist()


def test_a_run_with_checkpoints_says_at_the_start_that_its_order_is_of_chance(tmp_path, capsys):
    rows = [{"x": x, "y": y} for x, y in zip(*linear_data(8).values(), strict=True)]
    for shuffle in (True, False):
        loader = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=shuffle)
        quiet(max_epochs=1, enable_checkpointing=True, default_root_dir=tmp_path).fit(linear_task(), loader)
        said = "resumed, this run would see other batches: train_data shuffles by" in capsys.readouterr().out
        assert said == shuffle


def test_another_kind_of_loader_is_refused():
    source = as_source(LOADERS["grain"](), "train_data")
    source.first()
    _, places = read(source, 0)
    for kind in ("list", "torch seeded"):
        other = as_source(LOADERS[kind](), "train_data")
        other.first()
        with pytest.raises(lj.CheckpointError, match="saved while train_data was another kind of loader"):
            other.resume(0, 2, places[0][1], print)


@pytest.mark.parametrize("on_device", [False, True])
def test_another_array_loader_is_noted(on_device):
    def source(**changes):
        arguments = {"batch_size": 4, "shuffle": True, "on_device": on_device} | changes
        return as_source(lj.ArrayLoader(linear_data(22), **arguments), "train_data")

    first = source()
    (_, (batch, place), *_) = read(first, 1)[1]
    for kept in (place, json.loads(json.dumps(first.after_pass(place)))):
        said = []
        source().resume(1, batch, kept, said.append, lambda: False)
        assert not said
        source(batch_size=2, seed=3).resume(1, batch, kept, said.append, lambda: False)
        assert "another ArrayLoader than before (batch_size=4, now 2, seed=0, now 3)" in said[0]


def test_data_that_became_shorter_is_refused():
    loader = torch.utils.data.DataLoader(TENSORS, batch_size=4, generator=seeded())
    source = as_source(loader, "train_data")
    source.first()
    batch, place = read(source, 0)[1][1]
    shorter = torch.utils.data.DataLoader(torch.utils.data.Subset(TENSORS, range(8)), batch_size=4, generator=seeded())
    source = as_source(shorter, "train_data")
    source.first()
    with pytest.raises(lj.CheckpointError, match="ended before batch 4 of epoch 0"):
        source.resume(0, batch, place, print)


def test_positions_survive_json():
    position = {
        "generator": torch.arange(3, dtype=torch.uint8),
        "rng": np.random.default_rng(0).bit_generator.state,
        1: [(b"bytes", None), 2.5, True],
        "array": np.arange(4, dtype=np.int16).reshape(2, 2),
    }
    back = decode(json.loads(json.dumps(encode(position))))
    assert torch.equal(back["generator"], position["generator"])
    assert back["rng"] == position["rng"]
    assert back[1] == position[1]
    np.testing.assert_array_equal(back["array"], position["array"])


@pytest.mark.parametrize("value", [object(), np.array([None]), {1, 2}])
def test_what_would_need_a_pickle_is_refused(value):
    with pytest.raises(lj.CheckpointError, match="at '/a/0', which a checkpoint cannot keep"):
        encode({"a": [value]})
