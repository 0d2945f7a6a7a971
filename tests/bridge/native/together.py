"""What two processes do that torchrun started: the tests read what they write."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import lightjax  # noqa: E402
import lightjax_torch  # noqa: E402
from lightjax.errors import ConfigurationError  # noqa: E402
from tests.bridge.native.reference import QUIET, lightning, train  # noqa: E402
from tests.models import StopAt  # noqa: E402

RANK = int(os.environ["RANK"])


def digits() -> DataLoader:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(45, 12, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, :3].sum(1) > 0).long()), batch_size=8, shuffle=True)


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(12, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("loss", loss, sync_dist=True, on_step=True, on_epoch=True)
        self.log("most", loss, sync_dist=True, on_step=False, on_epoch=True, reduce_fx="max")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.layers(batch[0])
        assert self.all_gather(logits).shape == (2, *logits.shape)
        self.log("val_loss", torch.nn.functional.cross_entropy(logits, batch[1]), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch[1]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Gan(Classifier):
    """Optimizes by hand, part of its parameters at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        # Without buffers: those of a process are shared before evaluations, which Lightning leaves out here.
        self.layers = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        self.critic = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, sign in zip(self.optimizers(), (1.0, -1.0), strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(sign * self.critic(self.layers(batch[0])).square().mean())
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(one.parameters(), lr=0.01) for one in (self.layers, self.critic)]


def weights(module: torch.nn.Module) -> list[float]:
    return [value for tensor in module.state_dict().values() for value in tensor.double().flatten().tolist()]


def as_lightning(make: Any, **arguments: Any) -> list[Any]:
    """Returns what a training comes to in each trainer."""
    found = []
    given = {"strategy": "ddp", "devices": 2, "max_epochs": 2, "seed": 7 + RANK} | arguments
    for trainer_class in (lightning.Trainer, lightjax_torch.Trainer):
        outcome = train(trainer_class, make, digits, digits, **given)
        found.append([outcome.losses, outcome.metrics, [one.tolist() for one in outcome.module.parameters()]])
    return found


def resumed(directory: Path) -> list[Any]:
    """Trains in one go, and in two with a checkpoint between."""
    found = []
    for name, callbacks, resume in (("whole", [], None), ("cut", [StopAt(4)], None), ("cut", [], "last")):
        torch.manual_seed(7 + RANK if resume is None else 99)
        arguments = {**QUIET, "enable_checkpointing": True, "default_root_dir": directory / name}
        trainer = lightjax_torch.Trainer(max_epochs=3, callbacks=callbacks, **arguments)
        module = Classifier()
        trainer.fit(module, digits(), digits(), ckpt_path=resume)
        found.append(weights(module))
    return found[::2]


class Frozen(Classifier):
    """Computes the same on a batch as on its halves, but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))


def thawed() -> list[Any]:
    """Trains a layer from the second epoch on: on half of each batch here, and by hand on whole ones."""
    generator = torch.Generator().manual_seed(3)
    batches = [(x := torch.randn(8, 12, generator=generator), (x[:, :3].sum(1) > 0).long()) for _ in range(3)]
    module, alone = Frozen(), Frozen()
    callbacks = [lightjax.Finetuning({r"layers\.0": 1})]
    trainer = lightjax_torch.Trainer(max_epochs=2, callbacks=callbacks, use_distributed_sampler=False, **QUIET)
    trainer.fit(module, [(x[RANK::2], y[RANK::2]) for x, y in batches])
    optimizer: Any = alone.configure_optimizers()
    for epoch in range(2):
        alone.layers[0].requires_grad_(epoch == 1)
        for x, y in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(alone.layers(x), y).backward()
            optimizer.step()
    return [weights(module), weights(alone)]


def refused() -> str:
    data = [(torch.zeros(2, 12), torch.zeros(2).long())]
    try:
        lightjax_torch.Trainer(max_epochs=1, **QUIET).fit(Classifier(), data)
    except ConfigurationError as error:
        return str(error)
    return ""


def main() -> None:
    directory = Path(sys.argv[1])
    torch.set_num_threads(1)
    trainer = lightjax_torch.Trainer(**QUIET)
    predicted = torch.cat(trainer.predict(Classifier(), digits())).tolist()
    found = {
        "automatic": as_lightning(Classifier, accumulate_grad_batches=2),
        "manual": as_lightning(Gan, strategy="ddp_find_unused_parameters_true"),
        "resumed": resumed(directory),
        "thawed": thawed(),
        "predicted": predicted,
        "refused": refused(),
    }
    (directory / f"{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
