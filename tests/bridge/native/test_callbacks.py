"""The trainer's own callbacks beside a torch module."""

import csv
from typing import Any

import numpy as np
import pytest

import lightjax as lj
from lightjax.errors import ConfigurationError

torch = pytest.importorskip("torch")

from lightjax_torch import LightningModule, from_torch  # noqa: E402
from tests.test_loggers import read_events  # noqa: E402

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
BATCHES = [torch.ones(4, 3) * (1 + i) for i in range(6)]


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return {"y": self.layer(batch)}

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.layer.weight], "lr": 0.02, "name": "w"}, {"params": [self.layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.5)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def test_they_report_what_they_report_of_states_of_jax():
    timer = lj.Timer("00:12:00:00")
    callbacks = [
        lj.LearningRateMonitor(log_momentum=True),
        lj.ThroughputMonitor(tokens=lambda batch: 7, flops_per_step=1e6),
        lj.DeviceStatsMonitor(),
        lj.SpikeDetection("loss", rtol=1e9),
        lj.GradientAccumulationScheduler({0: 1, 1: 2}),
        timer,
    ]
    trainer = lj.Trainer(max_epochs=2, callbacks=callbacks, log_every_n_steps=2, logger=False, **QUIET)
    result = trainer.fit(from_torch(Model(), device="cpu"), BATCHES)
    rates = [row["learning_rate/w"] for row in result.history if "learning_rate/w" in row]
    assert rates == [0.02, 0.02, 0.01, 0.01]
    assert result.metrics["momentum/pg2"] == 0.5
    assert result.metrics["host/peak_bytes_in_use"] > 0
    assert result.metrics["throughput/tokens_per_s"] == 7 * result.metrics["throughput/steps_per_s"]
    assert result.state.step == 9
    assert timer.elapsed_s > 0


def test_what_the_optimizer_does_not_have_is_not_reported():
    class Plain(Model):
        def configure_optimizers(self) -> Any:
            return torch.optim.Rprop(self.parameters())

    trainer = lj.Trainer(max_epochs=1, callbacks=[lj.LearningRateMonitor(log_momentum=True)], logger=False, **QUIET)
    with pytest.raises(ConfigurationError, match="found no momentum in the module's optimizers; leave out log_"):
        trainer.fit(from_torch(Plain(), device="cpu"), BATCHES)


def test_predictions_are_written(tmp_path):
    trainer = lj.Trainer(callbacks=[lj.PredictionWriter(tmp_path, interval="epoch")], logger=False, **QUIET)
    outputs = trainer.predict(from_torch(Model(), device="cpu"), BATCHES)
    written = np.load(tmp_path / "predictions.npz")["y"]
    np.testing.assert_array_equal(written, torch.cat([one["y"] for one in outputs]).numpy())


def test_what_an_error_leaves_is_saved_and_the_learning_rates_are_logged_by_themselves(tmp_path):
    class Failing(Model):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step == 4:
                raise ValueError("no more")

    arguments = QUIET | {"logger": "csv", "log_every_n_steps": 1, "default_root_dir": tmp_path}
    trainer = lj.Trainer(max_epochs=1, callbacks=[lj.OnExceptionCheckpoint(tmp_path)], **arguments)
    with pytest.raises(ValueError, match="no more"):
        trainer.fit(from_torch(Failing(), device="cpu"), BATCHES)
    assert (tmp_path / "step_4").exists()
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        assert any(row.get("learning_rate/pg2") == "0.01" for row in csv.DictReader(file))


class Telling(Model):
    """Logs by its logger wherever Lightning's programs do."""

    def tell(self, name: str) -> None:
        for one in self.loggers:
            one.log_metrics({f"own/{name}": 2.0})

    def setup(self, stage: str) -> None:
        self.tell("setup")

    def on_fit_start(self) -> None:
        self.logger.log_hyperparams({"width": 3}, {"begins": 1.0})

    def on_train_start(self) -> None:
        self.logger.experiment.add_scalar("drawn/start", 5.0, self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.logger.experiment.add_scalar("drawn/step", float(batch_idx), self.global_step)
        loss = super().training_step(batch, batch_idx)
        self.log("once", loss, sync_dist=True, rank_zero_only=True)
        assert self.trainer.callback_metrics["once"] == self.trainer.logged_metrics["loss"]
        if batch_idx == 3:
            self.trainer.should_stop = True
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.logger.experiment.add_scalar("drawn/validation", 1.0, self.global_step)
        self.tell("validation")


def test_what_a_module_tells_its_logger_is_in_the_files(tmp_path):
    loggers = ["tensorboard", "csv"]
    trainer = lj.Trainer(max_epochs=2, logger=loggers, default_root_dir=tmp_path, **QUIET)
    module = Telling()
    trainer.validate(from_torch(module, device="cpu"), BATCHES[:1])  # there is no run to log to
    result = trainer.fit(from_torch(module, device="cpu"), BATCHES, BATCHES[:1])
    assert (result.stopped_by, result.state.step) == ("trainer.should_stop", 4)
    values = [
        (event.step, one)
        for path in tmp_path.rglob("events*")
        for event in read_events(path)
        for one in event.summary.value
    ]
    scalars = [(one.tag, step, one.simple_value) for step, one in values if one.HasField("simple_value")]
    assert [one for one in scalars if one[0] == "drawn/step"] == [("drawn/step", i, float(i)) for i in range(4)]
    assert {("drawn/start", 0, 5.0), ("drawn/validation", 4, 1.0), ("begins", 0, 1.0)} <= set(scalars)
    assert {("own/setup", 0, 2.0), ("own/validation", 4, 2.0)} <= set(scalars)
    assert result.directory is not None
    with open(result.directory / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["own/validation"]] == ["4"]
    text = next(
        one for _, one in values if one.tag == "hyperparameters/text_summary" and b"width" in one.tensor.string_val[0]
    )
    assert b"| 3 |" in text.tensor.string_val[0]


def test_the_client_of_a_logger_in_the_background_is_the_modules_experiment(tmp_path):
    class Client:
        def __init__(self) -> None:
            self.client: Any = None
            self.calls: list[Any] = []

        def start(self, run_dir: Any) -> None:
            self.client = []

        def log_metrics(self, step: int, metrics: Any) -> None:
            self.calls.append((step, metrics))

        log_hyperparams = finish = lambda self, *_: None

    class Asking(Model):
        def setup(self, stage: str) -> None:
            with pytest.raises(RuntimeError, match="experiment of Client was asked for before the run has a directory"):
                self.logger.experiment.append(0)

        def on_train_start(self) -> None:
            self.logger.experiment.append(1)
            self.logger.log_metrics({"own": 4.0})

    logger: Any = Client()
    trainer = lj.Trainer(max_epochs=1, logger=logger, default_root_dir=tmp_path, **QUIET)
    trainer.fit(from_torch(Asking(), device="cpu"), BATCHES)
    assert logger.client == [1]
    assert (0, {"own": 4.0}) in logger.calls
