"""Trains one LightningModule on handwritten digits twice, with lightning.Trainer and with lightjax, side by side.

Run it with `python examples/lightning_digits.py`; it needs `lightning>=2.6.6` and scikit-learn.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import lightjax_torch


class Digits(pl.LightningDataModule):
    """Handwritten digits, 8x8, a fifth of them for validation."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
        self.train, self.val = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 256)


class Classifier(pl.LightningModule):
    """Written for Lightning, and not changed."""

    def __init__(self, width: int = 64, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10)
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        logits = self.net(images)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True)
        self.log("val_accuracy", (logits.argmax(-1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def train(trainer_class: Any, arguments: argparse.Namespace) -> tuple[Classifier, dict[str, float], float]:
    """Trains with one of the trainers: the line that is another is the one that names it."""
    pl.seed_everything(arguments.seed, verbose=False)
    module, begun = Classifier(), time.perf_counter()
    trainer = trainer_class(max_epochs=arguments.epochs, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(module, datamodule=Digits(arguments.batch_size))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return module, metrics, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    first, by_lightning, lightning_s = train(pl.Trainer, arguments)
    second, by_lightjax, lightjax_s = train(lightjax_torch.Trainer, arguments)
    print(f"\n{'':14} {'Lightning':>12} {'lightjax':>12}")
    for name, value in by_lightning.items():
        print(f"{name:14} {value:12.6f} {by_lightjax[name]:12.6f}")
    print(f"{'seconds':14} {lightning_s:12.1f} {lightjax_s:12.1f}")
    same = all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    print("The weights are the same, bit for bit." if same else "The weights differ.")


if __name__ == "__main__":
    main()
