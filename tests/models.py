"""Small tasks and data that the tests share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lightjax as lj


def linear_data(examples: int, features: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns inputs and noisy linear targets, float32."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, features)).astype(np.float32)
    y = x @ np.arange(features, dtype=np.float32) + 0.1 * rng.normal(size=examples).astype(np.float32)
    return {"x": x, "y": y}


def linear_init(key: jax.Array, batch: Any) -> lj.TrainState:
    features = batch["x"].shape[-1]
    params = {"w": 0.1 * jax.random.normal(key, (features,)), "b": jnp.zeros(())}
    return lj.TrainState.create(params=params, optimizer=optax.adam(1e-2), key=key)


def linear_loss(state: lj.TrainState, batch: Any) -> tuple[jax.Array, dict[str, Any]]:
    losses = (batch["x"] @ state.params["w"] + state.params["b"] - batch["y"]) ** 2
    return losses.mean(), {"loss": lj.Mean(losses)}


def linear_task() -> lj.Task:
    return lj.Task.from_loss(linear_init, linear_loss, lambda state, batch: batch["x"] @ state.params["w"])


def mlp_init(key: jax.Array, batch: Any) -> lj.TrainState:
    keys = jax.random.split(key, 3)
    widths = (batch["x"].shape[-1], 32, 32, 10)
    params = {
        f"layer_{i}": {
            "kernel": jax.random.normal(k, (before, after)) / np.sqrt(before),
            "bias": jnp.zeros((1, after)),
        }
        for i, (k, before, after) in enumerate(zip(keys, widths, widths[1:], strict=False))
    }
    return lj.TrainState.create(params=params, optimizer=optax.adamw(3e-3), key=key)


def mlp_loss(state: lj.TrainState, batch: Any, *, train: bool = True) -> tuple[jax.Array, dict[str, Any]]:
    hidden = batch["x"]
    for i in range(3):
        layer = state.params[f"layer_{i}"]
        hidden = hidden @ layer["kernel"] + layer["bias"]
        if i < 2:
            hidden = jax.nn.relu(hidden)
            if train:
                hidden *= jax.random.bernoulli(state.key_for(f"dropout_{i}"), 0.9, hidden.shape) / 0.9
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden, batch["y"])
    return losses.mean(), {"loss": lj.Mean(losses), "accuracy": lj.Accuracy(hidden, batch["y"])}


def mlp_task() -> lj.Task:
    """A classifier with dropout, so that a key used wrongly shows."""
    return lj.Task.from_loss(mlp_init, mlp_loss)


def digit_like_data(examples: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns ten noisy clusters in 16 dimensions."""
    centers = np.random.default_rng(7).normal(size=(10, 16))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, examples)
    return {
        "x": (centers[labels] + rng.normal(size=(examples, 16))).astype(np.float32),
        "y": labels.astype(np.int32),
    }


def quiet(**arguments: Any) -> lj.Trainer:
    """A trainer without files and output, unless they are asked for."""
    off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return lj.Trainer(**{**off, **arguments})


def bits(tree: Any) -> list[bytes]:
    """The exact content of a state, keys included."""
    leaves = jax.tree.leaves(tree)
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf).tobytes()
        for leaf in leaves
    ]


class StopAt(lj.Callback):
    """Ends a run after a step as a scheduler's signal does: at once, to be resumed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, run: lj.Run) -> None:
        if run.step == self.step:
            run.stop("preempted", at_once=True)
