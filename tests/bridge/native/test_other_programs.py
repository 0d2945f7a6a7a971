"""Programs as other people write them, in lightning.Trainer and in lightjax: the same bits."""

from typing import Any

import pytest

from tests.bridge.native.reference import lightning, same_weights, train_in_both

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402


def data(examples: int = 40, shuffle: bool = True) -> DataLoader:
    x = torch.randn(examples, 12, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, shuffle=shuffle)


def check(make: Any, *loaders: Any, attribute: str | None = None, **arguments: Any) -> Any:
    first, second = train_in_both(make, *loaders, **({"max_epochs": 2, "log_every_n_steps": 2} | arguments))
    assert len(first.losses) >= 10
    assert first.losses == second.losses
    assert same_weights(first.module, second.module)
    assert first.metrics == second.metrics
    assert first.trainer.global_step == second.trainer.global_step
    if attribute is not None:
        assert getattr(first.module, attribute) == getattr(second.module, attribute) != []
    return second


class Plateau(lightning.LightningModule):
    """Two validation loaders; the scheduler looks at a value of the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rates = nn.Linear(12, 2), []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("loss", loss)
        self.log(f"own_{dataloader_idx}", loss, add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.3, factor=0.3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "own_1"}}


def test_a_scheduler_looks_at_a_value_of_the_second_of_two_validation_loaders():
    found = check(Plateau, data, lambda: [data(16, False), data(24, False)], attribute="rates", max_epochs=4)
    assert len(set(found.module.rates)) > 1
    assert {"loss/dataloader_idx_0", "loss/dataloader_idx_1", "own_0", "own_1"} == found.metrics.keys()


class Truncated(lightning.LightningModule):
    """Backpropagation through time, cut by hand: several steps of the optimizer on one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.rnn, self.out = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        hidden, optimizer, loss = None, self.optimizers(), None
        for part in batch[0].view(-1, 4, 3).split(2, 1):
            states, hidden = self.rnn(part, hidden)
            loss = functional.mse_loss(self.out(states), part)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.5, "norm")
            optimizer.step()
            hidden = hidden.detach()
            self.log("part", loss, prog_bar=True)
        if self.trainer.is_last_batch:
            self.lr_schedulers().step()
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("rate", self.optimizers().param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def test_backpropagation_through_time_cut_by_hand():
    assert check(Truncated, data).trainer.global_step == 20


class Accumulating(lightning.LightningModule):
    """A GAN whose discriminator steps on every second batch; two dicts with schedulers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12))
        self.critic = nn.Linear(12, 1)
        self.register_buffer("noise", torch.randn(8, 4))

    def judged(self, images: Any, real: bool) -> Any:
        return functional.binary_cross_entropy_with_logits(
            self.critic(images), torch.full((len(images), 1), float(real))
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = self.optimizers()
        noise = torch.randn(len(batch[0]), 4).type_as(batch[0])
        self.toggle_optimizer(first)
        loss = self.judged(self.generator(noise), True)
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        other = self.judged(batch[0], True) + self.judged(self.generator(noise).detach(), False)
        self.manual_backward(other)
        if (batch_idx + 1) % 2 == 0:
            second.step()
            second.zero_grad()
        self.untoggle_optimizer(second)
        self.log_dict({"generator": loss, "critic": other}, prog_bar=True)
        return loss + other

    def on_train_epoch_end(self) -> None:
        self.log("fake", self.generator(self.noise).mean().detach())
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.generator.parameters(), lr=0.01, betas=(0.5, 0.9))
        second = torch.optim.Adam(self.critic.parameters(), lr=0.01)
        return [
            {"optimizer": one, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(one, 0.9)}
            for one in (first, second)
        ]


def test_a_gan_that_accumulates_by_hand():
    check(Accumulating, data)


class Data(lightning.LightningDataModule):
    classes = 2

    def setup(self, stage: str) -> None:
        self.loaders = data(), data(16, False)

    def train_dataloader(self) -> Any:
        return self.loaders[0]

    def val_dataloader(self) -> Any:
        return self.loaders[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 1, batch[1]]


class Asking(Plateau):
    """Is made in setup, of what the data module says, and asks its trainer for numbers."""

    def setup(self, stage: str) -> None:
        self.head = nn.Linear(2, self.trainer.datamodule.classes)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = functional.cross_entropy(self.head(self.layer(batch[0])), batch[1])
        self.log("train", loss, on_step=True, on_epoch=True)
        self.rates.append((self.trainer.num_training_batches, self.trainer.estimated_stepping_batches))
        self.rates.append(self.trainer.callback_metrics["train"].item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_a_module_that_is_made_of_what_its_data_module_says():
    found = check(Asking, datamodule=Data, attribute="rates")
    assert found.module.rates[0] == (5, 10)


class Hooked(lightning.LightningModule):
    """Gradient norms, a warm-up, clipping and stepping of its own; looks at what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(12, 2), []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        losses = functional.cross_entropy(self.layer(batch[0]), batch[1], reduction="none")
        self.log("least", float(batch_idx), reduce_fx="min", on_epoch=True)
        self.log_dict({"mean": losses.mean(), "sum": losses.sum()})
        return losses.mean()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log_dict(lightning.utilities.grad_norm(self.layer, 2))

    def on_after_backward(self) -> None:
        self.log("largest", self.layer.weight.grad.abs().max(), on_step=True, on_epoch=True)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if self.trainer.global_step < 3:
            optimizer.param_groups[0]["lr"] = 0.1 * (self.trainer.global_step + 1) / 3
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        self.log("bias", self.layer.bias.grad.abs().max())
        self.clip_gradients(optimizer, gradient_clip_val=0.2, gradient_clip_algorithm="value")

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.seen.append(metric)
        scheduler.step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append({name: value.item() for name, value in self.trainer.callback_metrics.items()})

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": functional.cross_entropy(self.layer(batch[0]), batch[1])}

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", outputs["loss"], batch_size=3)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 2}]


def test_a_module_that_takes_over_what_hooks_allow_and_reads_what_it_logged():
    check(Hooked, data, lambda: data(16, False), attribute="seen")


class Stream(torch.utils.data.IterableDataset):
    """Draws its examples from the global generator, as dropout does: whoever reads at another moment has other ones."""

    def __init__(self, examples: int) -> None:
        self.examples = examples

    def __iter__(self) -> Any:
        for _ in range(self.examples):
            x = torch.randn(12)
            yield x, (x.sum() > 0).long()


class Dropping(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.mark.parametrize(("batches", "limit"), [(10**6, 6), (6, None), (6, 10)])
def test_a_stream_is_read_when_lightning_reads_it(batches, limit):
    check(Dropping, lambda: DataLoader(Stream(8 * batches), batch_size=8), limit_train_batches=limit)


def test_examples_changed_at_random_are_changed_when_lightning_changes_them():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 48

        def __getitem__(self, index: int) -> Any:
            return torch.full((12,), float(index)) / 48 + torch.randn(12), index % 2

    check(Dropping, lambda: DataLoader(Noisy(), batch_size=8, shuffle=True), accumulate_grad_batches=2)
