"""Task: the pure functions that say what is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from lightjax.gradient import check_loss, grad

State = TypeVar("State")
Batch = TypeVar("Batch")


@runtime_checkable
class TaskLike(Protocol):
    """What `Trainer` takes: a `Task`, or any object with these methods.

    `eval_step(state, batch) -> metrics` is needed to evaluate (an argument `batch_idx` gets the number of the batch,
    int32 scalar, an argument `dataloader_idx` that of the loader, a Python int), `predict_step(state, batch) ->
    outputs` to predict.
    Every method is traced and compiled: it sees arrays without values, and runs in Python only once.
    """

    def init(self, key: Any, batch: Any, /) -> Any:
        """Returns the state of step 0 from a key and one real batch."""
        ...

    def train_step(self, state: Any, batch: Any, /) -> tuple[Any, Any]:
        """Returns the next state and the metrics of this batch."""
        ...


@dataclass(frozen=True)
class Task(Generic[State, Batch]):
    """A model to train, as pure functions.

    Attributes:
      init: `(key, batch) -> state`; compiled; `key` is `jax.random.key(trainer.seed)`, `batch` a real batch.
      train_step: `(state, batch) -> (state, metrics)`; compiled, the state is donated.
      eval_step: `(state, batch) -> metrics`, for `validate`, `test` and the evaluation in `fit`. An argument
        `batch_idx` gets the number of the batch in its loader, int32 scalar; an argument `dataloader_idx` that of the
        loader, a Python int.
      predict_step: `(state, batch) -> outputs`, for `predict`; every output leaf has the batch as its first axis.

    Example:
      >>> import jax.numpy as jnp, optax, lightjax as lj
      >>> def init(key, batch):
      ...     return lj.TrainState.create(params={"w": jnp.zeros(())}, optimizer=optax.sgd(0.1), key=key)
      >>> def train_step(state, batch):
      ...     return state.apply_gradients({"w": state.params["w"] - batch["x"].mean()}), {}
      >>> task = lj.Task(init, train_step)
    """

    init: Callable[[Any, Batch], State]
    train_step: Callable[[State, Batch], tuple[State, Any]]
    eval_step: Callable[..., Any] | None = None
    predict_step: Callable[[State, Batch], Any] | None = None

    @classmethod
    def from_loss(
        cls,
        init: Callable[[Any, Batch], State],
        loss_fn: Callable[..., tuple[Any, Any]],
        predict_step: Callable[[State, Batch], Any] | None = None,
    ) -> Task[State, Batch]:
        """Writes the usual train and eval step around a loss function.

        The train step differentiates the loss with `lj.grad` and applies the gradients; the eval step reports the
        same metrics. `aux` of the loss function is the metrics, or `(metrics, model_state)`, where the new model
        state is kept in training and dropped in evaluation. The loss joins the metrics as "loss" unless they have it.

        Args:
          init: `(key, batch) -> TrainState`.
          loss_fn: `(state, batch) -> (loss, aux)`. One that has a parameter `train` is called with `train=True` or
            `train=False`, for dropout and batch statistics.
          predict_step: `(state, batch) -> outputs`.

        Example:
          >>> import jax, jax.numpy as jnp, optax, lightjax as lj
          >>> def init(key, batch):
          ...     return lj.TrainState.create(params={"w": 1.0}, optimizer=optax.sgd(0.1), key=key)
          >>> def loss_fn(state, batch):
          ...     return ((state.params["w"] * batch["x"]) ** 2).mean(), {}
          >>> task = lj.Task.from_loss(init, loss_fn)
          >>> batch = {"x": jnp.ones(4)}
          >>> state, metrics = task.train_step(task.init(jax.random.key(0), batch), batch)
          >>> round(float(state.params["w"]), 3), float(metrics["loss"])
          (0.8, 1.0)
        """
        name = getattr(loss_fn, "__name__", "loss_fn")
        says_train = "train" in inspect.signature(loss_fn).parameters

        def in_mode(train: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
            mode = {"train": train} if says_train else {}

            def loss_and_report(state: Any, batch: Any) -> tuple[Any, Any]:
                loss, aux = check_loss(loss_fn(state, batch, **mode), name)
                metrics, model_state = aux if isinstance(aux, tuple) else (aux, state.model_state)
                if isinstance(metrics, Mapping):
                    metrics = {"loss": loss, **metrics}
                return loss, (metrics, model_state)

            loss_and_report.__name__ = name
            return loss_and_report

        gradient = grad(in_mode(train=True))
        evaluate = in_mode(train=False)

        def train_step(state: Any, batch: Any) -> tuple[Any, Any]:
            grads, (metrics, model_state) = gradient(state, batch)
            return state.apply_gradients(grads, model_state=model_state), metrics

        def eval_step(state: Any, batch: Any) -> Any:
            return evaluate(state, batch)[1][0]

        return cls(init, train_step, eval_step, predict_step)
