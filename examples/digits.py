"""Trains a small classifier on scikit-learn's handwritten digits: fit, early stopping, best checkpoint, test.

Run it with `python examples/digits.py`; `--help` lists what can be changed.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import lightjax as lj


class Classifier(nn.Module):
    """Two hidden layers with dropout between them."""

    width: int = 128
    classes: int = 10

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, 64] to logits [batch, classes]."""
        hidden = nn.relu(nn.Dense(self.width)(image))
        hidden = nn.Dropout(0.2, deterministic=not train)(hidden)
        hidden = nn.relu(nn.Dense(self.width)(hidden))
        return nn.Dense(self.classes)(hidden)


def make_task(learning_rate: float, width: int) -> lj.Task:
    """Writes the model down as pure functions."""
    model = Classifier(width)

    def init(key: jax.Array, batch: Any) -> lj.TrainState:
        params = model.init(key, batch["image"], train=False)["params"]
        return lj.TrainState.create(params=params, optimizer=optax.adamw(learning_rate), key=key)

    def loss_fn(state: lj.TrainState, batch: Any, *, train: bool) -> tuple[jax.Array, dict[str, lj.Metric]]:
        logits = model.apply(
            {"params": state.params},
            batch["image"],
            train=train,
            rngs={"dropout": state.key_for("dropout")},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {"loss": lj.Mean(losses), "accuracy": lj.Accuracy(logits, batch["label"])}

    return lj.Task.from_loss(init, loss_fn)


def load_splits(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns train, validation and test examples: 70, 15 and 15 percent of 1,797 digits of 8 x 8 pixels."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = (digits.data[order] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int32)
    ends = int(0.7 * len(order)), int(0.85 * len(order))
    parts = zip(np.split(images, ends), np.split(labels, ends), strict=True)
    train, val, test = ({"image": image, "label": label} for image, label in parts)
    return train, val, test


def main() -> None:
    """Trains, restores the best checkpoint, tests."""
    parser = argparse.ArgumentParser(description="Train a classifier of handwritten digits.")
    parser.add_argument("--max-epochs", type=int, default=60, help="epochs at most (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="examples in a batch (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of AdamW (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="units of a hidden layer (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split, the model and the order (default: %(default)s)"
    )
    arguments = parser.parse_args()

    train, val, test = load_splits(arguments.seed)
    task = make_task(arguments.learning_rate, arguments.width)
    trainer = lj.Trainer(
        max_epochs=arguments.max_epochs,
        seed=arguments.seed,
        callbacks=[lj.EarlyStopping("val/loss", patience=8), lj.ModelCheckpoint("val/accuracy", mode="max")],
    )
    result = trainer.fit(
        task,
        lj.ArrayLoader(train, arguments.batch_size, shuffle=True, seed=arguments.seed),
        lj.ArrayLoader(val, 256),
    )
    best = result.checkpoint.best
    assert best is not None
    metrics = trainer.test(task, lj.ArrayLoader(test, 256), state=best.restore())
    print(f"test accuracy {metrics['test/accuracy']:.4f} with the checkpoint of step {best.step}")


if __name__ == "__main__":
    main()
