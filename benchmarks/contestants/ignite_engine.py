"""PyTorch Ignite: a bare engine around the same step."""

from __future__ import annotations

import torch
from gate import Gate
from ignite.engine import Engine, Events
from models import LEARNING_RATE
from torch_models import loader, loss_of, make_module, val_loss

from contestants import Setup


def train(setup: Setup, gate: Gate) -> float:
    """Trains; returns the last loss."""
    model = setup.model
    data, val = model.data(setup.steps)
    module = make_module(setup.model_name, model.initial())
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)

    def step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(module, batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: gate.epoch_starts(lambda: None))
    engine.run(loader(model, data, collate=setup.options.get("collate", False)), max_epochs=setup.epochs)
    return val_loss(module, val)
