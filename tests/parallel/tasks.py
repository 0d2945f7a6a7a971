"""Three kinds of models that many devices have to train as one does: dropout, batch statistics, attention."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import PartitionSpec as P

import lightjax as lj
from tests.models import digit_like_data

EXAMPLES, BATCH = 70, 16  # four full batches and one of 6, which 8 devices do not divide


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, axis_name):
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, axis_name):
        x = nn.Conv(32, (3, 3))(x.reshape(-1, 4, 4, 1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis_name)(x)
        return nn.Dense(10)(nn.Conv(32, (3, 3))(nn.relu(x)).mean((1, 2)))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, axis_name):
        x = lj.shard_batch(nn.Dense(32)(x.reshape(-1, 4, 4)))
        x = x + nn.MultiHeadDotProductAttention(4, use_bias=False)(nn.LayerNorm()(x))
        x = x + nn.Dense(32, name="down")(nn.gelu(nn.Dense(64, name="up")(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


def make_task(model: nn.Module, optimizer: optax.GradientTransformation) -> lj.Task:
    """Writes a model down as pure functions; batch statistics are those of the whole batch under pmap, too."""

    def init(key: jax.Array, batch: Any) -> lj.TrainState:
        variables = model.init(key, batch["x"], train=False, axis_name=None)
        return lj.TrainState.create(
            params=variables["params"], optimizer=optimizer, key=key, model_state=variables.get("batch_stats", {})
        )

    def loss_fn(state: lj.TrainState, batch: Any, *, train: bool) -> Any:
        variables = {"params": state.params, "batch_stats": state.model_state}
        axis_name = state.policy.replica_axis if train else None
        logits, changed = model.apply(variables, batch["x"], train=train, axis_name=axis_name, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        metrics = {"loss": lj.Mean(losses), "accuracy": lj.Accuracy(logits, batch["y"]), "worst": lj.Max(losses)}
        return losses.mean(), (metrics, changed.get("batch_stats", {}))

    return lj.Task.from_loss(init, loss_fn, lambda state, batch: loss_fn(state, batch, train=False)[1][0]["loss"])


TASKS = {
    "mlp": lambda: make_task(MLP(), optax.adam(3e-3)),
    "cnn": lambda: make_task(CNN(), optax.sgd(0.1, momentum=0.9)),
    "transformer": lambda: make_task(Transformer(), optax.adamw(3e-3)),
}

# Which leaves the tensor axis splits: columns of what widens, rows of what narrows, the heads of attention.
TENSOR_RULES = {
    "mlp": [("Dense_0/kernel", P(None, "tensor")), ("Dense_1/kernel", P("tensor", None))],
    "cnn": [("Conv_0/kernel", P(None, None, None, "tensor")), ("Conv_1/kernel", P(None, None, "tensor"))],
    "transformer": [
        ("up/kernel", P(None, "tensor")),
        ("down/kernel", P("tensor", None)),
        ("(query|key|value)/kernel", P(None, "tensor", None)),
        ("out/kernel", P("tensor", None, None)),
    ],
}


def tensor_parallel(name: str, **more: Any) -> lj.Sharded:
    return lj.Sharded(mesh={"data": 2, "tensor": 4}, rules=TENSOR_RULES[name], **more)


def train(name: str, **arguments: Any) -> lj.FitResult:
    """Trains 20 steps: 4 epochs of 4 full batches and a short one, evaluated on 37 examples in batches of 16."""
    off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lj.Trainer(**{"max_epochs": 4, "log_every_n_steps": 1, **off, "steps_per_call": 4, **arguments})
    train_data = lj.ArrayLoader(digit_like_data(EXAMPLES), BATCH, shuffle=True, seed=3)
    return trainer.fit(TASKS[name](), train_data, lj.ArrayLoader(digit_like_data(37, seed=1), BATCH))


def assert_same_training(result: lj.FitResult, reference: lj.FitResult) -> None:
    """Compares every reported number and the final state.

    Sums over a batch are added up in another order on several devices: the last of 24 bits differ, and 20 steps of
    Adam, which divides by second moments near zero, make them up to some hundred times larger. Where a gradient is
    zero but for rounding (that of the bias of attention's keys), Adam would make steps of noise: no model here has one.
    """
    assert [row.keys() for row in result.history] == [row.keys() for row in reference.history]
    for row, expected in zip(result.history, reference.history, strict=True):
        for metric, value in expected.items():
            np.testing.assert_allclose(row[metric], value, rtol=2e-4, atol=1e-6, err_msg=f"{metric} {row['step']}")
    leaves = [
        jax.tree_util.tree_leaves_with_path((one.state.params, one.state.model_state)) for one in (result, reference)
    ]
    for (path, leaf), (_, expected) in zip(*leaves, strict=True):
        np.testing.assert_allclose(
            np.asarray(leaf), np.asarray(expected), rtol=2e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path)
        )
    assert int(result.state.step) == int(reference.state.step) == 20


def bytes_on_one_device(tree: Any) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
