"""What cannot be trained says why, and what to write."""

import sys
import types
from typing import Any

import pytest

import lightjax as lj
from lightjax.errors import CheckpointError, ConfigurationError, DataError, MetricError, StepError

torch = pytest.importorskip("torch")

from lightjax_torch import LightningModule, from_torch, read_checkpoint  # noqa: E402

DATA = [torch.ones(4, 3)] * 3


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Any, data: Any = DATA, **arguments: Any) -> Any:
    trainer = lj.Trainer(**({"max_epochs": 1, "barebones": True} | arguments))
    return trainer.fit(from_torch(module, device="cpu"), data)


def refused(error: type[Exception], text: str, **methods: Any) -> None:
    with pytest.raises(error, match=text):
        fit(type("Broken", (Model,), methods)())


def test_a_module_without_a_step_or_an_optimizer():
    class Empty(LightningModule):
        pass

    with pytest.raises(ConfigurationError, match=r"Empty has no training_step\(self, batch, batch_idx\)"):
        fit(Empty())

    class Half(LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return batch

    with pytest.raises(ConfigurationError, match=r"Half has no configure_optimizers\(self\)"):
        fit(Half())
    with pytest.raises(ConfigurationError, match=r"Model has no validation_step"):
        lj.Trainer(barebones=True).validate(from_torch(Model()), DATA)


def test_optimizers_that_cannot_be():
    stranger = torch.nn.Linear(2, 2)
    refused(
        ConfigurationError,
        r"SGD \(optimizer 0\) whose group 0 holds parameters that Broken does not have \(shapes \[\(2, 2\), \(2,\)\]\)",
        configure_optimizers=lambda self: torch.optim.SGD(stranger.parameters(), lr=0.1),
    )
    refused(ConfigurationError, "no documented form; return an optimizer", configure_optimizers=lambda self: "adam")
    refused(
        ConfigurationError,
        "2 optimizers, which leaves open which one steps when; set self.automatic_optimization = False",
        configure_optimizers=lambda self: [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)],
    )

    def plateau(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]

    refused(ConfigurationError, "ReduceLROnPlateau without the metric it looks at", configure_optimizers=plateau)

    def unknown_key(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "every": 2}}

    refused(ConfigurationError, r"a scheduler dict with the keys \['every'\]", configure_optimizers=unknown_key)

    def missing_metric(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}

    refused(MetricError, "looks at 'val_loss', which nobody logged", configure_optimizers=missing_metric)


def test_backends_and_devices_that_are_not_there(monkeypatch):
    with pytest.raises(
        ConfigurationError, match="backend='inductr' is none of this torch: it offers .*eager.*inductor"
    ):
        from_torch(Model(), backend="inductr")
    with pytest.raises(ConfigurationError, match="device='cuda:77' is not there; there are: cpu"):
        from_torch(Model(), device="cuda:77")
    with pytest.raises(ConfigurationError, match="device='toaster' is no device of torch"):
        from_torch(Model(), device="toaster")
    with pytest.raises(ConfigurationError, match="from_torch got a dict, which is no torch.nn.Module"):
        from_torch({})


def test_malicious_releases_of_lightning_are_refused(monkeypatch):
    false = types.ModuleType("lightning")
    false.__version__ = "2.6.3"
    monkeypatch.setitem(sys.modules, "lightning", false)
    with pytest.raises(
        ConfigurationError, match="lightning 2.6.3 is installed: .* were malicious .*install lightning>=2.6.6"
    ):
        from_torch(Model())


def test_a_loss_that_is_not_a_number():
    class Nan(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).mean() * float("nan")

    arguments = {"log_every_n_steps": 1, "barebones": False, "logger": False, "enable_checkpointing": False}
    arguments |= {"enable_progress_bar": False, "enable_model_summary": False}
    with pytest.warns(UserWarning, match="The loss of Nan.training_step is nan at step 1"):
        fit(Nan(), **arguments)
    with pytest.raises(StepError, match="nan at step 1: .* on_nonfinite='raise' ends the run here"):
        fit(Nan(), on_nonfinite="raise", **arguments)


def test_steps_that_return_or_log_nonsense():
    refused(StepError, "returned str; return the loss as a tensor", training_step=lambda self, batch, batch_idx: "0.3")
    refused(
        StepError, r"a dict without 'loss' \(\['value'\]\)", training_step=lambda self, batch, batch_idx: {"value": 1}
    )

    def logging(name: str, value: Any, **keywords: Any) -> Any:
        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            self.log(name, value, **keywords)
            return self.layer(batch).mean()

        return training_step

    refused(MetricError, r"a tensor of shape \(2,\); log scalars", training_step=logging("a", torch.ones(2)))
    refused(MetricError, "got 'high'; log a number", training_step=logging("a", "high"))

    def in_a_silent_hook(self: Any) -> None:
        self.log("a", 1.0)

    refused(MetricError, "was called in on_fit_start, where nothing is gathered", on_fit_start=in_a_silent_hook)


def test_data_that_is_none():
    with pytest.raises(DataError, match="train_data is empty"):
        fit(Model(), [])
    with pytest.raises(ConfigurationError, match="fit got no training data"):
        fit(Model(), None)
    with pytest.raises(DataError, match="train_data is a int, which is no loader"):
        fit(Model(), 3)


def test_arguments_that_are_for_jax_or_for_optimizers_of_the_trainer():
    with pytest.raises(ConfigurationError, match="microbatches, which belongs to gradients of JAX"):
        fit(Model(), microbatches=2)

    class Manual(Model):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ConfigurationError, match="Manual optimizes by itself"):
        fit(Manual(), gradient_clip_val=1.0)


def test_checkpoints_that_want_a_pickle_are_not_read(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "callbacks": types.SimpleNamespace(a=1)}, path)
    with pytest.raises(CheckpointError, match="holds types.SimpleNamespace, which only a pickle can make"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="is not there"):
        read_checkpoint(tmp_path / "none.ckpt")
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
