"""What a module reads of its trainer, and what it makes of `log`, in every hook as with Lightning."""

import torch
from torch.utils.data import DataLoader, TensorDataset

import lightjax_torch
from tests.bridge.native.reference import QUIET, lightning, quietly

HOOKS = (
    "setup", "on_fit_start", "on_sanity_check_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start",
    "on_before_backward", "on_train_batch_end", "on_validation_start", "on_validation_batch_end", "on_validation_end",
    "on_train_epoch_end", "on_train_end", "on_fit_end", "on_test_start", "on_test_batch_end", "on_test_end",
    "on_predict_start", "on_predict_batch_end", "on_predict_end",
)  # fmt: skip


def loader(examples):
    generator = torch.Generator().manual_seed(examples)
    return DataLoader(TensorDataset(torch.randn(examples, 4, generator=generator)), batch_size=4)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.told = torch.nn.Linear(4, 2), [], []

    def loss(self, batch):
        return self.layer(batch[0]).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.loss(batch))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.layer(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def log(self, name, value, **arguments):
        """A `log` of its own, as some libraries have."""
        self.told.append(name)
        if self.trainer.state.stage is not None:
            super().log(f"mine/{name}", value, **arguments)

    def look(self, hook):
        trainer = self.trainer
        self.seen.append(
            (
                hook, trainer.state.fn, trainer.state.stage, trainer.state.stage.value, trainer.limit_val_batches,
                trainer.train_dataloader is None or len(trainer.train_dataloader.dataset),
                trainer.val_dataloaders is None or len(trainer.val_dataloaders.dataset),
                trainer.test_dataloaders is None or len(trainer.test_dataloaders.dataset),
                trainer.predict_dataloaders is None or len(trainer.predict_dataloaders.dataset),
            )
        )  # fmt: skip
        with trainer.profiler.profile("look"):
            assert trainer.early_stopping_callback is None
            assert trainer.checkpoint_callbacks == []


for name in HOOKS:
    setattr(Module, name, lambda self, *arguments, name=name, **keywords: self.look(name))


def lives(kind):
    torch.manual_seed(0)
    module, trainer = Module(), kind(max_epochs=2, num_sanity_val_steps=1, limit_val_batches=2, **QUIET)
    assert trainer.fit(module, loader(12), loader(16)) is not False
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.validate(module, loader(20), **({"verbose": False} if kind is lightning.Trainer else {}))
    trainer.test(module, loader(24), **({"verbose": False} if kind is lightning.Trainer else {}))
    trainer.predict(module, loader(28))
    return module, logged, trainer


def test_stages_functions_and_loaders_are_those_of_lightning_in_every_hook():
    with quietly():
        theirs, their_logged, _ = lives(lightning.Trainer)
    ours, logged, _ = lives(lightjax_torch.Trainer)
    # Lightning forgets loaders at other times: where it has one, ours is the same.
    assert [one[:5] for one in ours.seen] == [one[:5] for one in theirs.seen]
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        assert all(b is True or a == b for a, b in zip(mine[5:], other[5:], strict=True)), (mine, other)
    assert isinstance(ours.seen[0][2], type(theirs.seen[0][2]))
    assert ours.told == theirs.told
    assert logged == their_logged
    assert logged.keys() == {"mine/loss", "mine/val"}


def test_a_class_is_itself_again_after_a_run():
    module, _, _ = lives(lightjax_torch.Trainer)
    assert type(module) is Module
    assert "log" not in vars(module)
    assert module.trainer.state.status == "finished"
    assert module.trainer.state.stage is None


def test_words_compare_without_lightning():
    class Plain(lightjax_torch.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(4, 2), set()

        def training_step(self, batch, batch_idx):
            self.seen.add((self.trainer.state.fn, self.trainer.state.stage.value))
            return self.layer(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Plain()
    lightjax_torch.Trainer(max_epochs=1, **QUIET).fit(module, loader(8))
    assert module.seen == {("fit", "train")}


def test_every_default_logger_takes_images(tmp_path):
    class Drawing(Module):
        def on_train_epoch_end(self):
            for logger in self.loggers:
                logger.experiment.add_image("weights", self.layer.weight[None], self.current_epoch)

    trainer = lightjax_torch.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET | {"logger": True})
    trainer.fit(Drawing(), loader(8))
    (events,) = trainer.directory.rglob("events.out.tfevents*")
    assert b"weights" in events.read_bytes()
    assert (trainer.directory / "metrics.csv").exists()
