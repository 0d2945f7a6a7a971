"""A torch training that was interrupted and resumed ends bit for bit where the uninterrupted one does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lightjax as lj
from lightjax.errors import CheckpointError

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, Dataset  # noqa: E402

from lightjax_torch import LightningModule, from_torch, seed_everything  # noqa: E402
from tests.models import StopAt  # noqa: E402

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class Noisy(Dataset):
    """Augments with torch's and numpy's global generators: the order of every draw matters."""

    def __init__(self) -> None:
        self.x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        x = self.x[i] + 0.1 * torch.randn(6) + float(np.random.rand())
        return x, (self.x[i].sum() > 0).long()


class Model(LightningModule):
    def __init__(self, optimizer: str = "adam", manual: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = not manual
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.4), torch.nn.Linear(8, 2)
        )
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.layers(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.seen.append(loss.item())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.lr_schedulers().step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = list(self.seen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen = list(checkpoint["seen"])

    def configure_optimizers(self) -> Any:
        optimizer = {
            "adam": lambda: torch.optim.Adam(self.parameters(), lr=0.01),
            "sgd": lambda: torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9),
            "lbfgs": lambda: torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=2),
        }[self.hparams["optimizer"]]()
        if self.hparams["optimizer"] == "sgd":
            return {
                "optimizer": optimizer,
                "lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5),
                "monitor": "val_loss",
            }
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], 0.5)]


def fit(directory: Path, stop_at: int | None = None, resume: str | None = None, **model: Any) -> tuple[Model, Any]:
    seed_everything(3)
    module = Model(**model)
    if resume is not None:
        seed_everything(99)  # nothing may depend on the random numbers of the new process
    callbacks = [lj.ModelCheckpoint("val_loss", mode="max"), *([] if stop_at is None else [StopAt(stop_at)])]
    trainer = lj.Trainer(max_epochs=3, callbacks=callbacks, default_root_dir=directory, log_every_n_steps=3, **QUIET)
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    return module, trainer.fit(from_torch(module, device="cpu"), loader, DataLoader(Noisy(), 10), resume=resume)


@pytest.mark.parametrize(
    ("model", "stop_at"),
    [({}, 3), ({}, 8), ({"optimizer": "sgd"}, 13), ({"optimizer": "lbfgs"}, 3), ({"manual": True}, 3)],
    ids=str,
)
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(tmp_path, model, stop_at):
    whole, expected = fit(tmp_path / "whole", **model)
    fit(tmp_path / "cut", stop_at=stop_at, **model)
    resumed, result = fit(tmp_path / "cut", resume="auto", **model)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert resumed.seen == whole.seen
    assert result.metrics == expected.metrics
    # The cut reported its part of an epoch; everything else is as it would have been.
    assert all(any(row.items() <= one.items() for one in result.history) for row in expected.history)
    assert result.stopped_by == "max_epochs"


def test_the_best_state_comes_back_and_the_last_one_stays(tmp_path):
    module, result = fit(tmp_path)
    last = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    task = from_torch(module, device="cpu")
    best = result.checkpoint.best.restore(result.state)
    assert best.step == result.checkpoint.best.step
    assert task.to_torch(best) is module
    assert any(not torch.equal(last[name], tensor) for name, tensor in module.state_dict().items())
    task.to_torch(result.state)
    assert best.step <= result.state.step == 24


def test_evaluating_another_state_leaves_the_trained_one_as_it_is(tmp_path):
    seed_everything(3)
    module = Model()
    trainer = lj.Trainer(max_epochs=2, default_root_dir=tmp_path, callbacks=[lj.ModelCheckpoint("val_loss")], **QUIET)
    task = from_torch(module, device="cpu")
    loader = DataLoader(Noisy(), batch_size=5)
    result = trainer.fit(task, loader, loader)
    before = {name: array.copy() for name, array in result.state.params.items()}
    first = result.checkpoint.best
    trainer.validate(task, loader, state=first)
    trainer.validate(task, loader, state="last")
    for name, array in result.state.params.items():
        assert np.array_equal(array, before[name])


def test_a_checkpoint_has_arrays_and_json_and_no_pickle(tmp_path):
    _, result = fit(tmp_path)
    files = [path for path in Path(result.checkpoint.last.path).rglob("*") if path.is_file()]
    assert files
    assert not any(path.read_bytes()[:2] in (b"\x80\x04", b"\x80\x02", b"PK") for path in files)
    leaves = result.checkpoint.last.about()["leaves"]
    assert leaves["params/layers.0.weight"] == "float32[8,6]"
    assert leaves["buffers/layers.1.num_batches_tracked"] == "int64[]"
    assert leaves["optimizers/0/0/exp_avg"] == "float32[8,6]"


def test_what_needs_a_pickle_is_refused_by_name(tmp_path):
    class Keeping(Model):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["object"] = object()

    trainer = lj.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(CheckpointError, match="arrays and JSON, never pickles, but the module of Keeping hold object"):
        trainer.fit(from_torch(Keeping(), device="cpu"), DataLoader(Noisy(), 10))


def test_a_checkpoint_of_another_model_is_refused_leaf_by_leaf(tmp_path):
    fit(tmp_path, stop_at=3)

    class Wider(Model):
        def __init__(self) -> None:
            super().__init__()
            self.layers[3] = torch.nn.Linear(8, 3)

    trainer = lj.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(CheckpointError, match=r"params/layers.3.bias: float32\[2\] in the checkpoint, float32\[3\] in"):
        trainer.fit(from_torch(Wider(), device="cpu"), DataLoader(Noisy(), 10), resume="auto")
