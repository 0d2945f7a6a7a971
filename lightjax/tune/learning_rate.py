"""Finding a learning rate: a short training at growing rates (Smith, 2017)."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lightjax.callbacks.around_optimizer import Scaled, nodes_of, put_around, replace_nodes, scaling
from lightjax.data.source import as_source
from lightjax.engine.contract import checked_init, checked_train_step
from lightjax.errors import ConfigurationError, MetricError
from lightjax.learning_rate import learning_rates
from lightjax.policy_request import PolicyRequest
from lightjax.task import TaskLike
from lightjax.train_states import map_train_states, train_states
from lightjax.tune.untouched import untouched


@dataclass(frozen=True)
class LearningRateFinding:
    """What a search for a learning rate found.

    Attributes:
      suggestion: the rate at which the smoothed loss falls steepest; None where it never falls.
      learning_rates: those tried, float64 [steps].
      losses: at each of them, float64 [steps].
      smoothed: their exponential mean.
    """

    suggestion: float | None
    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draws loss over learning rate, with the suggestion, into an image file such as a PNG.

        Raises:
          ConfigurationError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigurationError("plot needs matplotlib: pip install 'lightjax[plot]'.") from error
        axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).subplots()
        axes.plot(self.learning_rates, self.losses, color="0.8", label="loss")
        axes.plot(self.learning_rates, self.smoothed, label="smoothed")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color="C3", linestyle="--", label=f"suggestion {self.suggestion:.3g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend()
        figure.savefig(path)
        return Path(path)


def find_lr(
    task: TaskLike,
    data: Any,
    *,
    min_lr: float = 1e-8,
    max_lr: float = 1.0,
    num_training: int = 100,
    mode: Literal["exponential", "linear"] = "exponential",
    early_stop_threshold: float | None = 4.0,
    monitor: str = "loss",
    smoothing: float = 0.98,
    seed: int = 0,
) -> LearningRateFinding:
    """Trains a few steps from scratch, each at a higher learning rate, and suggests one.

    The optimizer's own updates are scaled to each rate, so it must be one whose updates are proportional to its
    learning rate, as those of optax are. The task, the data and the random generators of the program are left as they
    were.

    Args:
      task: the task; its `init` is called with `jax.random.key(seed)`.
      data: training data, as for `fit`; begun anew when it ends.
      min_lr: the first rate.
      max_lr: the last rate.
      num_training: steps.
      mode: how the rates grow.
      early_stop_threshold: end when the smoothed loss is so many times the best; None never ends.
      monitor: name of the metric of the train step that is the loss.
      smoothing: weight of the past in the smoothed loss.
      seed: of the key.

    Returns:
      The suggestion and the curve; `.plot(path)` draws it. Waits for the device.

    Raises:
      ConfigurationError: an argument is out of range, the state has no `TrainState`, or its optimizer no learning rate
        that can be found.
      MetricError: the train step does not report `monitor`.

    Example:
      >>> import lightjax as lj, optax
      >>> def init(key, batch):
      ...     return lj.TrainState.create(params={"w": jnp.zeros(())}, optimizer=optax.sgd(0.1), key=key)
      >>> def loss_fn(state, batch):
      ...     return ((state.params["w"] * batch["x"] - batch["y"]) ** 2).mean(), {}
      >>> data = lj.ArrayLoader({"x": np.ones(8, np.float32), "y": np.full(8, 3, np.float32)}, batch_size=4)
      >>> found = lj.tune.find_lr(lj.Task.from_loss(init, loss_fn), data, num_training=50)
      >>> 1e-3 < found.suggestion < 1
      True
    """
    if not 0 < min_lr < max_lr or num_training < 2 or mode not in ("exponential", "linear"):
        raise ConfigurationError(
            f"find_lr got min_lr={min_lr}, max_lr={max_lr}, num_training={num_training}, mode={mode!r}; rates grow "
            "from above 0, in 2 steps at least, 'exponential' or 'linear'."
        )
    space = np.geomspace if mode == "exponential" else np.linspace
    rates = space(min_lr, max_lr, num_training)
    with untouched(data):
        losses = _losses(task, data, rates, monitor, seed, smoothing, early_stop_threshold)
    smoothed = _smoothed(losses, smoothing)
    return LearningRateFinding(_steepest(rates, smoothed), rates[: len(losses)], losses, smoothed)


def _losses(
    task: TaskLike, data: Any, rates: np.ndarray, monitor: str, seed: int, smoothing: float, threshold: float | None
) -> np.ndarray:
    source = as_source(data, "data")
    state = _initial_state(task, jax.random.key(seed), source.first())
    one_step = checked_train_step(task)

    def step(state: Any, batch: Any, rate: jax.Array) -> tuple[Any, jax.Array]:
        state, metrics = one_step(_at_rate(state, rate), batch)
        if monitor not in metrics:
            raise MetricError(
                f"find_lr monitors {monitor!r}, which train_step does not report; it reports: "
                f"{', '.join(metrics) or 'nothing'}. Name one of these: find_lr(..., monitor=...)."
            )
        return state, jnp.float32(metrics[monitor].compute())

    compiled, losses = jax.jit(step, donate_argnums=0), []
    batches = itertools.chain.from_iterable(_batches(source, epoch) for epoch in itertools.count())
    for rate, batch in zip(rates, batches, strict=False):
        state, loss = compiled(state, batch, np.float32(rate))
        losses.append(float(loss))
        smoothed = _smoothed(np.array(losses), smoothing)
        if not math.isfinite(losses[-1]) or (threshold is not None and smoothed[-1] > threshold * abs(smoothed.min())):
            break
    return np.array(losses)


def _initial_state(task: TaskLike, key: jax.Array, batch: Any) -> Any:
    def init(key: jax.Array, batch: Any) -> Any:
        return put_around(checked_init(task, PolicyRequest())(key, batch), Scaled, scaling, "find_lr")

    return jax.tree.map(jnp.copy, jax.jit(init)(key, batch))


def _at_rate(state: Any, rate: jax.Array) -> Any:
    """Scales the updates of every optimizer to a learning rate."""

    def one(train_state: Any) -> Any:
        found = learning_rates(train_state.optimizer, train_state.opt_state)
        if list(found) != [""]:
            raise ConfigurationError(
                f"find_lr found {len(found) or 'no'} learning rates in the optimizer, so it cannot scale its updates "
                "to one; use an optax optimizer with one rate, or optax.inject_hyperparams."
            )
        own = found[""]
        scale = jnp.where(own > 0, rate / jnp.where(own > 0, own, 1.0), 0.0)
        return train_state.replace(
            opt_state=replace_nodes(train_state.opt_state, Scaled, lambda node: node._replace(scale=jnp.float32(scale)))
        )

    assert nodes_of(list(train_states(state).values()), Scaled)
    return map_train_states(one, state)


def _batches(source: Any, epoch: int) -> Any:
    cursor = source.epoch(epoch)
    while (stretch := cursor.take(1, 1)) is not None:
        yield stretch.steps.batch(0)


def _smoothed(losses: np.ndarray, weight: float) -> np.ndarray:
    mean, found = 0.0, []
    for i, loss in enumerate(losses):
        mean = weight * mean + (1 - weight) * loss
        found.append(mean / (1 - weight ** (i + 1)))
    return np.array(found)


def _steepest(rates: np.ndarray, smoothed: np.ndarray, skip_first: int = 10, skip_last: int = 1) -> float | None:
    """Returns the rate at which the loss falls most a step, between the beginning of the curve and its lowest point.

    A loss that has exploded falls, too, when it comes down again.
    """
    if not np.isfinite(smoothed).any():
        return None
    usable = smoothed[skip_first : min(len(smoothed) - skip_last, int(np.nanargmin(smoothed)) + 1)]
    if len(usable) < 2:
        return None
    slopes = np.gradient(usable)
    return float(rates[skip_first + int(slopes.argmin())]) if slopes.min() < 0 else None
