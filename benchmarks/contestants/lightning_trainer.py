"""PyTorch Lightning with the same features on or off."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from gate import Gate
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import LEARNING_RATE
from torch import nn
from torch_models import loader, loss_of, make_module, val_loss

from contestants import Setup


class Module(pl.LightningModule):
    """The model; logs the loss and further scalars, or nothing."""

    def __init__(self, module: nn.Module, scalars: int = 1) -> None:
        super().__init__()
        self.module, self.scalars = module, scalars

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = loss_of(self.module, batch)
        if self.scalars:
            value = loss.detach()
            further = {f"train/scalar_{i}": value * i for i in range(1, self.scalars)}
            self.log_dict({"train/loss": value, **further})
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        value = loss_of(self.module, batch)
        # Scaled as in training: the evaluation logs as many scalars as a step does.
        self.log_dict({"val/loss": value, **{f"val/scalar_{i}": value * i for i in range(1, self.scalars)}})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


class AtGate(pl.Callback):
    """Stops at the gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.gate.epoch_starts(lambda: None)


def train(setup: Setup, gate: Gate) -> float:
    """Trains; returns the last loss."""
    model, options = setup.model, setup.options
    data, val = model.data(setup.steps)
    collate = options.get("collate", False)
    callbacks: list[pl.Callback] = [AtGate(gate)]
    arguments: dict[str, Any] = {"max_epochs": setup.epochs, "default_root_dir": setup.directory, "accelerator": "cpu"}
    if options["features"]:
        callbacks.append(EarlyStopping("val/loss", patience=1_000_000))
        arguments["logger"] = [CSVLogger(setup.directory), TensorBoardLogger(setup.directory)]
    else:
        arguments |= {"logger": False, "enable_checkpointing": False}
        arguments |= {"enable_progress_bar": False, "enable_model_summary": False}
    lit = Module(make_module(setup.model_name, model.initial()), options.get("scalars", 1))
    pl.Trainer(callbacks=callbacks, **arguments).fit(
        lit, loader(model, data, collate=collate), loader(model, val, collate=collate) if options["features"] else None
    )
    return val_loss(lit.module, val)
