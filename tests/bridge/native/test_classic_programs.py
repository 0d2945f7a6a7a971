"""Programs as people have them, with only the import line changed."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset, random_split  # noqa: E402

import lightjax_torch as L  # noqa: E402  (the one line that changes)
from lightjax.errors import ConfigurationError  # noqa: E402
from lightjax_torch import LightningDataModule, LightningModule, Trainer  # noqa: E402
from lightjax_torch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402


def images(count: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (count,), generator=generator)
    x = torch.randn(count, 1, 28, 28, generator=generator) * 0.1
    x[torch.arange(count), 0, y, :] += 1.0
    return TensorDataset(x, y)


class LitModel(LightningModule):
    def __init__(self):
        super().__init__()
        self.l1 = nn.Linear(28 * 28, 10)

    def forward(self, x):
        return torch.relu(self.l1(x.view(x.size(0), -1)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class LitMLP(LightningModule):
    def __init__(self, hidden=32, lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.layer_1 = nn.Linear(28 * 28, hidden)
        self.layer_2 = nn.Linear(hidden, 10)

    def forward(self, x):
        return self.layer_2(torch.relu(self.layer_1(x.view(x.size(0), -1))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class MNISTDataModule(LightningDataModule):
    def __init__(self, batch_size=16):
        super().__init__()
        self.batch_size = batch_size
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage=None):
        self.calls.append(f"setup {stage}")
        self.train, self.val = random_split(images(), [64, 32], torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=self.batch_size)


def test_a_linear_model_on_a_loader():
    model = LitModel()
    before = F.cross_entropy(model(images().tensors[0]), images().tensors[1]).item()
    trainer = Trainer(max_epochs=3, logger=False, enable_checkpointing=False)
    trainer.fit(model, DataLoader(images(), batch_size=32))
    assert F.cross_entropy(model(images().tensors[0]), images().tensors[1]).item() < before / 2
    assert trainer.global_step == 9


def test_callbacks_take_their_arguments_in_the_order_of_lightning():
    stopper = EarlyStopping("val_loss", 0.1, 2, True, "max", check_on_train_epoch_end=False)
    assert (stopper.min_delta, stopper.patience, stopper.verbose, stopper.mode) == (0.1, 2, True, "max")
    assert stopper.check_on_train_epoch_end is False
    assert ModelCheckpoint(every_n_train_steps=10, save_on_train_epoch_end=False).every_n_epochs == 0
    assert ModelCheckpoint("models", "{epoch}", "val_loss", True, save_weights_only=False).every_n_epochs == 1


def test_an_mlp_with_a_data_module_checkpoints_and_early_stopping(tmp_path):
    data = MNISTDataModule()
    keeper = ModelCheckpoint(
        monitor="val_loss",
        dirpath=tmp_path / "best",
        filename="mnist-{epoch:02d}-{val_loss:.2f}",
        save_top_k=1,
        mode="min",
    )
    stopper = EarlyStopping(monitor="val_loss", patience=3, mode="min")
    trainer = Trainer(max_epochs=3, callbacks=[keeper, stopper], logger=True, log_every_n_steps=10)
    model = LitMLP()
    result = trainer.fit(model, data)
    assert data.calls == ["prepare_data", "setup fit"]
    assert result.metrics["val_loss"] < 1.5
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(result.metrics["val_loss"])
    assert (tmp_path / "best" / f"mnist-epoch=02-val_loss={keeper.best_model_score:.2f}").exists()
    again = LitMLP.load_from_checkpoint(keeper.best_model_path)
    assert again.hparams == model.hparams
    [validated] = trainer.validate(again, datamodule=data)
    assert validated["val_loss"] == pytest.approx(keeper.best_model_score)
    [validated] = trainer.validate(model, datamodule=data, ckpt_path=keeper.best_model_path)
    assert validated["val_loss"] == pytest.approx(keeper.best_model_score)


def test_the_old_style_with_outputs_of_an_epoch():
    class Old(LitMLP):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return {"loss": F.cross_entropy(self(x), y), "count": len(y)}

        def training_epoch_end(self, outputs):
            self.log("examples", float(sum(one["count"] for one in outputs)))
            self.log("mean_loss", torch.stack([one["loss"] for one in outputs]).mean())

        def validation_step(self, batch, batch_idx):
            return {"val": F.cross_entropy(self(batch[0]), batch[1])}

        def validation_epoch_end(self, outputs):
            self.log("val_loss", torch.stack([one["val"] for one in outputs]).mean())

    trainer = Trainer(max_epochs=2, accumulate_grad_batches=4, precision=16, logger=False, enable_checkpointing=False)
    result = trainer.fit(Old(), datamodule=MNISTDataModule())
    assert result.metrics["examples"] == 64.0
    assert {"mean_loss", "val_loss"} <= result.metrics.keys()
    assert trainer.global_step == 2


def test_old_arguments_name_the_new_ones():
    with pytest.raises(ConfigurationError, match=r"gpus=2 was an argument of an older Lightning: write device='cuda'"):
        Trainer(gpus=2)
    with pytest.raises(ConfigurationError, match="checkpoint_callback=False .* write enable_checkpointing="):
        Trainer(checkpoint_callback=False, max_nb_epochs=3)


def test_hyperparameters_are_kept_and_come_back_from_a_lightning_checkpoint(tmp_path):
    class Wide(LitMLP):
        def __init__(self, width=3, **kwargs):
            super().__init__(**kwargs)
            self.save_hyperparameters()

    model = Wide(hidden=8, lr=0.5)
    assert model.hparams == {"hidden": 8, "lr": 0.5, "width": 3}
    assert model.hparams.lr == 0.5
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": {"hidden": 8, "lr": 0.5}, "epoch": 3}, path)
    loaded = Wide.load_from_checkpoint(path)
    assert torch.equal(loaded.layer_1.weight, model.layer_1.weight)
    assert L.read_checkpoint(path)["epoch"] == 3


def test_a_plain_module_with_lightnings_methods_logs_and_knows_its_trainer():
    class Plain(nn.Linear):
        def training_step(self, batch, batch_idx):
            loss = self(batch[0].flatten(1)).square().mean()
            self.log("loss", loss)
            self.seen = (self.global_step, self.current_epoch, self.trainer.max_epochs, self.device.type)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Plain(784, 1)
    result = Trainer(max_epochs=2, logger=False, enable_checkpointing=False, accelerator="cpu").fit(
        model, DataLoader(images(), 32)
    )
    assert model.seen == (5, 1, 2, "cpu")
    assert "loss" in result.metrics
    assert type(model) is Plain
    assert not {"log", "_trainer"} & vars(model).keys()


def test_a_module_sees_its_loggers_and_can_stop_the_run(tmp_path):
    class Asking(LitMLP):
        def on_train_epoch_end(self):
            self.logger.log_metrics({"own": 1.0}, step=self.global_step)
            self.trainer.should_stop = True

    trainer = Trainer(
        max_epochs=50, default_root_dir=tmp_path, enable_checkpointing=False, logger=L.loggers.CSVLogger("logs")
    )
    result = trainer.fit(Asking(), datamodule=MNISTDataModule())
    assert result.stopped_by == "trainer.should_stop"
    with pytest.raises(AttributeError, match="self.trainer.nonsense was read, which lightjax's trainer does not have"):
        _ = trainer._engine.view.nonsense
