"""A module trained by lightning.Trainer and by lightjax: the same bits."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bridge.native.reference import QUIET, boring_classes, lightning, quietly, same_weights, train_in_both

torch = pytest.importorskip("torch")

from lightning.pytorch.demos import lstm, transformer  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import lightjax_torch  # noqa: E402

SENTENCE = "the quick brown fox jumps over the lazy dog and runs away from all the hounds of the old mill\n"


def random_images() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(torch.randn(22, 32, generator=generator), batch_size=4, shuffle=True)


def digits(shuffle: bool = True, batch_size: int = 8, examples: int = 45) -> DataLoader:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(examples, 12, generator=generator)
    y = (x[:, :3].sum(1) > 0).long()
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)


class Classifier(lightning.LightningModule):
    """Batch norm, dropout, logged values of every kind."""

    def __init__(self, optimizer: str = "adam") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(12, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(16, 2),
        )

    def losses(self, batch: Any) -> Any:
        x, y = batch
        return torch.nn.functional.cross_entropy(self.layers(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.losses(batch)
        self.log("train_loss", loss, prog_bar=True)
        self.log("both", loss * 2, on_step=True, on_epoch=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("summed", loss, on_step=False, on_epoch=True, reduce_fx=torch.sum)
        self.log_dict({"a": loss.detach(), "b": 3.0}, on_epoch=True, on_step=False, batch_size=2)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.losses(batch), prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.losses(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layers(batch[0]).argmax(-1)

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.hparams["optimizer"]](self)


def _plateau(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.5)
    return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}


def _by_step(module: Any) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.05, total_steps=int(module.trainer.estimated_stepping_batches)
    )
    return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 2, "name": "lr"}]


def _several_schedulers(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return [optimizer], [
        torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7),
        {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99), "interval": "step"},
    ]


OPTIMIZERS = {
    "adam": lambda module: torch.optim.Adam(module.parameters(), lr=0.01),
    "list": lambda module: [torch.optim.RMSprop(module.parameters(), lr=0.01)],
    "dict": lambda module: {"optimizer": torch.optim.SGD(module.parameters(), lr=0.1, nesterov=True, momentum=0.9)},
    "lbfgs": lambda module: torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3),
    "plateau": _plateau,
    "by step": _by_step,
    "several schedulers": _several_schedulers,
}


class Gan(lightning.LightningModule):
    """Two optimizers, stepped by hand, with toggling, clipping and schedulers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = torch.nn.Linear(4, 12), torch.nn.Linear(12, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, _ = batch
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        loss = self.critic(self.generator(torch.randn(len(real), 4))).mean()
        self.log("generator", loss, prog_bar=True)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)
        with second.toggle_model():
            fake = self.generator(torch.randn(len(real), 4)).detach()
            loss = self.critic(real).mean() - self.critic(fake).mean()
            second.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(second, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            second.step()
        self.log("critic", loss)
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.generator.parameters(), lr=0.01)
        second = torch.optim.RMSprop(self.critic.parameters(), lr=0.01)
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(one, 0.9) for one in (first, second)]
        return [first, second], schedulers


def assert_same(first: Any, second: Any, *, steps: int) -> None:
    assert len(first.losses) == steps
    assert first.losses == second.losses
    assert same_weights(first.module, second.module)
    assert first.metrics == second.metrics
    assert first.trainer.global_step == second.trainer.global_step


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("name", ["BoringModel", "ManualOptimBoringModel"])
def test_boring_models_that_make_their_own_random_data(name, sanity):
    first, second = train_in_both(getattr(boring_classes, name), max_epochs=2, num_sanity_val_steps=sanity)
    assert_same(first, second, steps=128)


@pytest.mark.parametrize("name", ["BoringDataModule", "BoringDataModuleNoLen"])
def test_boring_data_modules(name):
    module = getattr(boring_classes, name)
    first, second = train_in_both(boring_classes.BoringModel, datamodule=module, max_epochs=2, limit_train_batches=40)
    assert_same(first, second, steps=80)


def test_several_loaders_at_once():
    class Several(boring_classes.BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch[0] + batch[1], batch_idx)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            self.log("val_loss", self.step(batch) + dataloader_idx)

    def loaders() -> list[Any]:
        return [DataLoader(boring_classes.RandomDataset(4, 8)), DataLoader(boring_classes.RandomDataset(4, 5))]

    first, second = train_in_both(Several, loaders, loaders, max_epochs=2)
    assert_same(first, second, steps=16)
    assert "val_loss/dataloader_idx_1" in first.metrics


def test_demo_model_with_a_shuffling_loader():
    first, second = train_in_both(boring_classes.DemoModel, random_images, max_epochs=3)
    assert_same(first, second, steps=18)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_language_models_with_a_text_of_our_own(name, monkeypatch):
    Path("data").mkdir()
    Path("data/wikitext-2.txt").write_text(SENTENCE * 130)
    small = {"nhid": 16, "nlayers": 2, "ninp": 16, "vocab_size": 18}
    if name == "lstm":
        monkeypatch.setattr(lstm, "SimpleLSTM", partial(lstm.SimpleLSTM, **small))
        make = lstm.LightningLSTM
    else:
        monkeypatch.setattr(transformer, "Transformer", partial(transformer.Transformer, **small, nhead=2))
        make = transformer.LightningTransformer
    first, second = train_in_both(lambda: make(vocab_size=18), max_epochs=2, limit_train_batches=3)
    assert_same(first, second, steps=6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_form_of_configure_optimizers_and_every_kind_of_logged_value(optimizer):
    first, second = train_in_both(lambda: Classifier(optimizer), digits, digits, max_epochs=3, log_every_n_steps=1)
    assert_same(first, second, steps=len(first.losses) if optimizer == "lbfgs" else 18)


def test_gan_that_optimizes_by_itself():
    first, second = train_in_both(Gan, digits, max_epochs=2)
    assert_same(first, second, steps=12)
    assert first.trainer.global_step == 24


@pytest.mark.parametrize(
    "arguments",
    [
        {"accumulate_grad_batches": 4},
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"precision": 16},
        {"max_steps": 12, "max_epochs": -1},
        {"limit_train_batches": 0.5, "limit_val_batches": 2},
        {"val_check_interval": 2},
        {"check_val_every_n_epoch": 2, "max_epochs": 3},
    ],
    ids=str,
)
def test_arguments_of_the_trainer_mean_the_same(arguments):
    first, second = train_in_both(Classifier, digits, digits, **({"max_epochs": 2} | arguments))
    assert_same(first, second, steps=len(first.losses))
    assert len(first.losses) >= 6


def test_validate_test_and_predict_give_the_same_numbers():
    torch.manual_seed(0)
    module = Classifier()
    results = []
    for trainer_class in (lightning.Trainer, lightjax_torch.Trainer):
        torch.manual_seed(1)
        with quietly():
            trainer = trainer_class(**QUIET)
            validated = trainer.validate(module, digits(), verbose=False)
            tested = trainer.test(module, digits(), verbose=False)
            predicted = trainer.predict(module, digits())
        results.append((validated, tested, torch.cat(predicted)))
        assert module.training
    assert results[0][:2] == results[1][:2]
    assert torch.equal(results[0][2], results[1][2])


def test_a_step_may_skip_its_batch_and_a_hook_the_rest_of_the_epoch():
    class Skipping(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 and self.current_epoch == 0 else None

    first, second = train_in_both(Skipping, digits, max_epochs=2)
    assert same_weights(first.module, second.module)
    assert len(first.losses) == len(second.losses) == 9


def test_torchmetrics_objects_logged():
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=2)
            self.val_accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=2)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            logits = self.layers(x)
            self.accuracy(logits, y)
            self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
            return torch.nn.functional.cross_entropy(logits, y)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.val_accuracy.update(self.layers(batch[0]), batch[1])
            self.log("val_accuracy", self.val_accuracy)

    first, second = train_in_both(Measured, digits, digits, max_epochs=2)
    assert_same(first, second, steps=12)
    assert {"accuracy_step", "accuracy_epoch", "accuracy", "val_accuracy"} <= first.metrics.keys()


def test_values_logged_at_the_ends_of_epochs():
    class Late(Classifier):
        def on_validation_epoch_end(self) -> None:
            self.log("at_val_end", 2.5)

        def on_train_epoch_end(self) -> None:
            self.log("at_train_end", float(self.current_epoch))

    first, second = train_in_both(Late, digits, digits, max_epochs=2)
    assert_same(first, second, steps=12)
    assert second.metrics["at_train_end"] == 1.0


def test_a_metric_of_the_sanity_check_is_there_in_its_hooks_and_forgotten_after_it():
    class Reading(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.read: list[float] = []

        def on_validation_epoch_end(self) -> None:
            self.read.append(self.trainer.callback_metrics["val_loss"].item())

        def on_train_start(self) -> None:
            self.read.append(float("val_loss" in self.trainer.callback_metrics))

    first, second = train_in_both(Reading, digits, digits, max_epochs=1)
    assert first.module.read == second.module.read
    assert len(first.module.read) == 3


def test_loaders_made_anew_every_epoch_and_the_same_batches_again():
    class Data(lightning.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return digits()

        def val_dataloader(self) -> DataLoader:
            return digits(shuffle=False)

    first, second = train_in_both(Classifier, datamodule=Data, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert_same(first, second, steps=18)
    first, second = train_in_both(Classifier, digits, digits, max_epochs=2, overfit_batches=2)
    assert_same(first, second, steps=4)
