"""The loop a good engineer writes by hand: one jitted step with donated buffers, and no logging at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from gate import Gate
from models import LEARNING_RATE, Model, cross_entropy

from contestants import Setup


def make_step(model: Model) -> tuple[Callable[..., Any], optax.GradientTransformation]:
    """Returns the compiled step and its optimizer."""
    optimizer = optax.adam(LEARNING_RATE)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, inputs: Any, labels: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda params: cross_entropy(model.logits(params, inputs), labels))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step, optimizer


def val_loss(model: Model, params: Any, data: Any) -> float:
    """Returns the loss on validation data."""
    return float(cross_entropy(model.logits(params, data[0]), data[1]))


def train(setup: Setup, gate: Gate) -> float:
    """Trains; returns the last loss."""
    model = setup.model
    (inputs, labels), val = model.data(setup.steps)
    step, optimizer = make_step(model)
    params = jax.device_put(model.initial())
    opt_state = optimizer.init(params)
    for _ in range(setup.epochs):
        gate.epoch_starts(partial(jax.block_until_ready, params))
        for start in range(0, len(inputs), model.batch):
            batch = slice(start, start + model.batch)
            params, opt_state, _ = step(params, opt_state, inputs[batch], labels[batch])
    return val_loss(model, params, val)
