"""Keras on JAX: `fit` with nothing but the loss, around the same pure forward pass."""

from __future__ import annotations

from typing import Any

import jax
import keras
from gate import Gate
from models import LEARNING_RATE, Model

from contestants import Setup
from contestants.handwritten import val_loss


class Pure(keras.layers.Layer):
    """A layer that owns the weights and runs the same jax function as everybody else."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.weights_by_name = {
            name: self.add_weight(shape=array.shape, initializer=keras.initializers.Constant(array), name=name)
            for name, array in model.initial().items()
        }
        self.built = True

    def call(self, inputs: Any) -> Any:
        return self.model.logits({name: weight.value for name, weight in self.weights_by_name.items()}, inputs)


class AtGate(keras.callbacks.Callback):
    """Stops at the gate; Keras has waited for the epoch's loss by then."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.gate.epoch_starts(lambda: None)


def make_model(model: Model, inputs: Any, steps_per_execution: int) -> tuple[keras.Model, Pure]:
    """Returns a compiled Keras model and the layer in it that holds the weights."""
    if keras.config.backend() != "jax":
        raise RuntimeError(f"Keras runs on {keras.config.backend()}; set KERAS_BACKEND=jax")
    layer = Pure(model)
    built = keras.Sequential([keras.Input(inputs.shape[1:], dtype=str(inputs.dtype)), layer])
    built.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
        jit_compile=True,
    )
    return built, layer


def train(setup: Setup, gate: Gate) -> float:
    """Trains; returns the last loss."""
    model = setup.model
    (inputs, labels), val = model.data(setup.steps)
    built, layer = make_model(model, inputs, setup.options["steps_per_execution"])
    built.fit(
        inputs,
        labels,
        batch_size=model.batch,
        epochs=setup.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[AtGate(gate)],
    )
    params = {name: jax.device_get(weight.value) for name, weight in layer.weights_by_name.items()}
    return val_loss(model, params, val)
