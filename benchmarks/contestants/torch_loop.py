"""A torch loop without a framework."""

from __future__ import annotations

import torch
from gate import Gate
from models import LEARNING_RATE
from torch_models import loader, loss_of, make_module, val_loss

from contestants import Setup


def train(setup: Setup, gate: Gate) -> float:
    """Trains; returns the last loss."""
    model = setup.model
    data, val = model.data(setup.steps)
    module = make_module(setup.model_name, model.initial())
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    batches = loader(model, data, collate=setup.options.get("collate", False))
    for _ in range(setup.epochs):
        gate.epoch_starts(lambda: None)
        for batch in batches:
            optimizer.zero_grad()
            loss_of(module, batch).backward()
            optimizer.step()
    return val_loss(module, val)
