"""Trains one LightningModule on handwritten digits twice, in torch and ported to JAX, and compares curves and speed.

Run it with `python examples/port_to_jax.py`; `--help` lists what can be changed.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightjax as lj
from lightjax_torch import from_torch


class Classifier(nn.Module):
    """Written for Lightning; `self.log` is the trainer's."""

    def __init__(self, width: int, learning_rate: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )
        self.learning_rate = learning_rate

    def log(self, name: str, value: Any, **options: Any) -> None:
        pass

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        image, label = batch
        loss = F.cross_entropy(self.net(image), label)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        image, label = batch
        logits = self.net(image)
        self.log("loss", F.cross_entropy(logits, label))
        self.log("accuracy", (logits.argmax(1) == label).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)}


def train_in_torch(module: Any, loader: DataLoader[Any], epochs: int) -> tuple[list[float], float]:
    """Trains with the loop that a torch user writes; returns the mean loss of each epoch and seconds a step."""
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]
    curve, steps, began_s = [], 0, time.perf_counter()
    for _ in range(epochs):
        losses = []
        for index, batch in enumerate(loader):
            loss = module.training_step(batch, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        scheduler.step()
        steps += len(losses)
        curve.append(torch.stack(losses).mean().item())
    return curve, (time.perf_counter() - began_s) / steps


def main() -> None:
    """Trains twice and prints both curves side by side."""
    parser = argparse.ArgumentParser(description="Train a LightningModule in torch and in JAX.")
    parser.add_argument("--max-epochs", type=int, default=10, help="epochs (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="examples in a batch (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="units of a hidden layer (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of AdamW (default: %(default)s)")
    arguments = parser.parse_args()

    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, val = (TensorDataset(images[part], labels[part]) for part in (order[:1536], order[1536:]))
    loader = DataLoader(train, arguments.batch_size)

    # Threads that spin for work take the processor from JAX in the same process.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = Classifier(arguments.width, arguments.learning_rate)
    reference = copy.deepcopy(module)
    in_torch, torch_s = train_in_torch(reference, loader, arguments.max_epochs)

    task = from_torch(module, backend="jax")
    trainer = lj.Trainer(max_epochs=arguments.max_epochs, logger=False, enable_checkpointing=False)
    result = trainer.fit(task, loader, DataLoader(val, 261))
    in_jax = [row["train/loss_epoch"] for row in result.history if "train/loss_epoch" in row]
    began_s = time.perf_counter()
    lj.Trainer(
        max_epochs=arguments.max_epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False
    ).fit(task, loader)
    jax_s = (time.perf_counter() - began_s) / (arguments.max_epochs * len(loader))

    print("epoch  loss in torch  loss in JAX")
    for epoch, (theirs, ours) in enumerate(zip(in_torch, in_jax, strict=True)):
        print(f"{epoch:5}  {theirs:13.6f}  {ours:11.6f}")
    print(f"validation accuracy {result.metrics['val/accuracy']:.4f}")
    print(f"a step, start and compilation included: torch {torch_s * 1e6:.0f} us, JAX {jax_s * 1e6:.0f} us")
    weights = task.to_torch(result.state).state_dict()
    furthest = max(float((weights[name] - tensor).abs().max()) for name, tensor in reference.state_dict().items())
    print(f"the weights are {furthest:.1e} apart at most")


if __name__ == "__main__":
    main()
