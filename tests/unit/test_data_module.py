"""Data modules: what is called when, and what a checkpoint keeps of them; loaders of other libraries."""

import dataclasses
import sys
import types
from contextlib import nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightjax as lj
from lightjax.data import module
from lightjax.data.workers import iterate
from tests.models import bits, linear_data, linear_task, quiet


def loader(examples=20, batch_size=4, **arguments):
    return lj.ArrayLoader(linear_data(examples), batch_size, **arguments)


class Recording(lj.DataModule):
    def __init__(self):
        self.calls = []
        self.seen = 0

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage):
        self.calls.append(("setup", stage))

    def train_dataloader(self):
        self.calls.append(("train", self.seen, self.trainer.current_epoch))
        return loader()

    def val_dataloader(self):
        return {"clean": loader(8), "noisy": loader(12)}

    def test_dataloader(self):
        return loader(8)

    def predict_dataloader(self):
        return loader(8)

    def teardown(self, stage):
        self.calls.append(("teardown", stage))

    def state_dict(self):
        return {"seen": self.seen + 1}

    def load_state_dict(self, state):
        self.calls.append("load_state_dict")
        self.seen = state["seen"]


def test_every_stage_sets_its_data_up_and_tears_it_down():
    data, trainer, task = Recording(), quiet(max_epochs=1), linear_task()
    result = trainer.fit(task, datamodule=data)
    assert {"val/clean/loss", "val/noisy/loss"} <= result.metrics.keys()
    assert data.calls == ["prepare_data", ("setup", "fit"), ("train", 0, 0), ("teardown", "fit")]
    for stage in ("validate", "test", "predict"):
        data.calls.clear()
        getattr(trainer, stage)(task, datamodule=data)
        assert data.calls == ["prepare_data", ("setup", stage), ("teardown", stage)]


def test_an_error_tears_the_data_down_as_well():
    class Failing(Recording):
        def train_dataloader(self):
            raise OSError("no such bucket")

    data = Failing()
    with pytest.raises(OSError, match="no such bucket"):
        quiet(max_epochs=1).fit(linear_task(), datamodule=data)
    assert data.calls[-1] == ("teardown", "fit")
    with pytest.raises(lj.ConfigurationError, match=r"Recording has no train_dataloader\(\) that returns a loader"):
        quiet(max_epochs=1).fit(linear_task(), datamodule=type("Recording", (lj.DataModule,), {})())


def test_a_resumed_data_module_takes_its_state_back_before_it_makes_loaders(tmp_path):
    def fit(max_epochs):
        data = Recording()
        arguments = dict(enable_checkpointing=True, default_root_dir=tmp_path, resume="auto")
        quiet(max_epochs=max_epochs, **arguments).fit(linear_task(), datamodule=data)
        return data.calls

    assert "load_state_dict" not in fit(1)
    assert fit(2)[:4] == ["prepare_data", ("setup", "fit"), "load_state_dict", ("train", 1, 1)]


@pytest.mark.parametrize(("process", "prepares"), [(0, True), (1, False), (2, True), (3, False)])
def test_one_process_of_every_machine_prepares(process, prepares, monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(module.multihost_utils, "process_allgather", lambda own: np.array([7, 7, 9, 9]))
    monkeypatch.setattr(module.multihost_utils, "sync_global_devices", waited.append)
    data = Recording()
    module.set_up(data, "fit")
    assert ("prepare_data" in data.calls) == prepares
    assert len(waited) == 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
    x: np.ndarray
    y: np.ndarray


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


KINDS = {
    "dict": (lambda x, y: {"x": x, "y": y}, lambda batch: batch),
    "tuple": (lambda x, y: (x, y), lambda batch: {"x": batch[0], "y": batch[1]}),
    "dataclass": (Batch, lambda batch: {"x": batch.x, "y": batch.y}),
    "named tuple": (Pair, Pair._asdict),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_any_pytree(kind):
    make, read = KINDS[kind]
    plain = linear_task()
    task = lj.Task(
        lambda key, batch: plain.init(key, read(batch)),
        lambda state, batch: plain.train_step(state, read(batch)),
        lambda state, batch: plain.eval_step(state, read(batch)),
    )
    batches = [make(batch["x"], batch["y"]) for batch in loader()]
    result = quiet(max_epochs=2).fit(task, batches, batches)
    assert bits(result.state) == bits(quiet(max_epochs=2).fit(plain, loader()).state)


class Rows:
    """A torch dataset, without torch: an object with a length and rows."""

    def __init__(self, examples=20):
        self.data = linear_data(examples)

    def __len__(self):
        return len(self.data["y"])

    def __getitem__(self, index):
        return {name: leaf[index] for name, leaf in self.data.items()}


def test_workers_of_torch_loaders_are_not_forked_beside_the_threads_of_jax():
    torch = pytest.importorskip("torch")
    jax.devices()  # from here on jax warns of every fork, and warnings are errors
    data = torch.utils.data.DataLoader(Rows(), batch_size=4, num_workers=1, persistent_workers=True)
    result = quiet(max_epochs=2).fit(linear_task(), data)
    assert bits(result.state) == bits(quiet(max_epochs=2).fit(linear_task(), loader()).state)
    assert data.multiprocessing_context is None
    data._iterator = None


UNGUARDED = "import torch\nfor batch in loader: step(batch)\n"
GUARDED = "def main(): ...\nif __name__ == '__main__': main()\n"


@pytest.mark.parametrize(
    ("rows", "program", "reason"),
    [
        (Rows(), GUARDED, None),
        (Rows(), UNGUARDED, r"program.py has no `if __name__ == '__main__':` around what it runs"),
        ([lambda row: row], GUARDED, r"what they need cannot be pickled \("),
        (Rows(), None, None),  # an interactive session
        (["of __main__"], None, "what they need is defined in this session"),
        (np.broadcast_to(np.float32(0), (2**27, 2)), GUARDED, "1.07 GB of arrays they need would be copied to each"),
    ],
)
def test_workers_that_have_to_be_forked_are_told_why(rows, program, reason, tmp_path, monkeypatch):
    main = types.ModuleType("__main__")
    if program is not None:
        main.__file__ = str(tmp_path / "program.py")
        (tmp_path / "program.py").write_text(program)
    monkeypatch.setitem(sys.modules, "__main__", main)
    began = []

    class Loader:  # what torch's DataLoader is to its workers
        dataset, num_workers, collate_fn, multiprocessing_context = rows, 2, None, None

        def __iter__(self):
            began.append(self.multiprocessing_context)
            return iter(())

    data = Loader()
    with nullcontext() if reason is None else pytest.warns(UserWarning, match=reason):
        iterate(data)
    assert began == ["forkserver" if reason is None else None]
    assert data.multiprocessing_context is None


def test_a_torch_loader_without_length_trains():
    torch = pytest.importorskip("torch")

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (Rows()[i] for i in range(20))

    data = torch.utils.data.DataLoader(Stream(), batch_size=4)
    result = quiet(max_epochs=2).fit(linear_task(), data)
    assert bits(result.state) == bits(quiet(max_epochs=2).fit(linear_task(), loader()).state)


@pytest.mark.parametrize("kind", ["map", "iter"])
def test_grain_datasets_train(kind):
    grain = pytest.importorskip("grain")
    data = grain.MapDataset.source(Rows()).batch(4)
    if kind == "iter":
        data = data.to_iter_dataset()
    result = quiet(max_epochs=2).fit(linear_task(), data)
    assert bits(result.state) == bits(quiet(max_epochs=2).fit(linear_task(), loader()).state)


def test_what_the_iterator_of_a_tensor_library_gives_is_read_by_its_arrays():
    class Tensor:
        def __init__(self, value):
            self.value = value

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.value, dtype)

    class Dataset:
        def __iter__(self):
            return ({name: Tensor(leaf) for name, leaf in batch.items()} for batch in loader())

    result = quiet(max_epochs=2).fit(linear_task(), Dataset())
    assert bits(result.state) == bits(quiet(max_epochs=2).fit(linear_task(), loader()).state)
    assert jnp.isfinite(result.state.params["w"]).all()
