"""The contract of a task's functions, checked by tracing them before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lightjax import _tree
from lightjax.errors import ConfigurationError, MetricError, StepError
from lightjax.metrics import Metric, as_metrics
from lightjax.policy_request import PolicyRequest
from lightjax.train_states import for_compute, policy_metrics, precision_of

Metrics = dict[str, Metric]


def checked_train_step(task: Any) -> Callable[[Any, Any], tuple[Any, Metrics]]:
    """Wraps a task's train step for the engine: `(state, batch) -> (state, metrics)`, metrics that merge.

    The returned function checks the step's contract while it is traced.

    Raises:
      StepError: (when traced) the step does not return `(state, metrics)`, or changes the tree, a shape or a dtype of
        the state.
      MetricError: (when traced) a reported value is neither a number nor a metric, or a metric changes its shape when
        it is merged.
    """

    def train_step(state: Any, batch: Any) -> tuple[Any, Metrics]:
        returned = _call("train_step", task.train_step, state, batch)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise StepError(
                f"train_step returned {_kind(returned)}; it has to return the next state and the metrics: "
                "`return state, metrics`."
            )
        new_state, reported = returned
        if change := _tree.difference(state, new_state):
            raise StepError(
                f"train_step changed the state: {change}. One compiled step runs for the whole training, so the state "
                "it returns has the tree, shapes and dtypes of the state it was given; keep them "
                "(`new.astype(old.dtype)`), and report what is new in each step as a metric."
            )
        metrics = policy_metrics(new_state, _mergeable(as_metrics(reported, batch, "train_step"), "train_step"))
        return jax.tree.map(strong, new_state), metrics

    return train_step


def checked_eval_step(task: Any, dataloader_idx: int = 0) -> Callable[[Any, Any], Metrics]:
    """Wraps a task's eval step for the engine: `(state, (batch, batch_idx)) -> metrics`, metrics that merge.

    The step sees parameters and batch in the dtype that the state's precision computes with.

    Args:
      task: the task.
      dataloader_idx: the number of the loader, for a step that asks for it.

    Raises:
      ConfigurationError: the task has no eval step.
      MetricError: (when traced) as for the train step.
    """
    if getattr(task, "eval_step", None) is None:
        raise ConfigurationError(
            "The task has no eval_step, which evaluation needs; write `eval_step(state, batch) -> metrics` and pass "
            "it, lj.Task(init, train_step, eval_step), or give no val_data."
        )

    wanted = position_arguments(task.eval_step)

    def eval_step(state: Any, numbered: Any) -> Metrics:
        batch, batch_idx = numbered
        position = {"batch_idx": batch_idx, "dataloader_idx": dataloader_idx}
        step = partial(task.eval_step, **{name: position[name] for name in wanted})
        reported = _call("eval_step", step, *_cast(state, batch))
        return _mergeable(as_metrics(reported, batch, "eval_step"), "eval_step")

    return eval_step


def position_arguments(eval_step: Callable[..., Any]) -> tuple[str, ...]:
    """Returns which of `batch_idx` and `dataloader_idx` an eval step asks for."""
    try:
        known = inspect.signature(eval_step).parameters
    except (TypeError, ValueError):  # callables of other languages have none
        return ()
    return tuple(name for name in ("batch_idx", "dataloader_idx") if name in known)


def checked_predict_step(task: Any) -> Callable[[Any, Any], Any]:
    """Wraps a task's predict step for the engine: it computes, and gives its outputs, in the state's precision.

    Raises:
      ConfigurationError: the task has none.
    """
    if getattr(task, "predict_step", None) is None:
        raise ConfigurationError(
            "The task has no predict_step, which predict needs; write `predict_step(state, batch) -> outputs` and pass "
            "it, lj.Task(init, train_step, eval_step, predict_step)."
        )

    def predict_step(state: Any, batch: Any) -> Any:
        return precision_of(state).to_output(_call("predict_step", task.predict_step, *_cast(state, batch)))

    return predict_step


def checked_init(task: Any, request: PolicyRequest) -> Callable[[Any, Any], Any]:
    """Wraps a task's init: the state is under the policy that is asked for.

    Its leaves are arrays of a definite type (a Python number has a weak one).
    """

    def init(key: Any, batch: Any) -> Any:
        state = request.apply(_call("init", task.init, key, batch))
        for path, leaf in _tree.named_leaves(state).items():
            if not isinstance(leaf, bool | int | float | complex) and not hasattr(leaf, "shape"):
                raise StepError(
                    f"init returned a state with {leaf!r} ({type(leaf).__name__}) at {path!r}, which is no array; keep "
                    "what is not trained or checkpointed outside of the state."
                )
        return jax.tree.map(strong, state)

    return init


def strong(leaf: Any) -> Any:
    """Makes a leaf an array of a definite type; keys stay keys."""
    array = jnp.asarray(leaf)
    return (
        array if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(array, array.dtype)
    )


def _cast(state: Any, batch: Any) -> tuple[Any, Any]:
    return for_compute(state), precision_of(state).batch_to_compute(batch)


def _call(name: str, function: Callable[..., Any], state: Any, batch: Any) -> Any:
    try:
        return function(state, batch)
    except Exception as error:
        leaves = ", ".join(
            f"{path or 'batch'} {_tree.describe(leaf)}" for path, leaf in _tree.named_leaves(batch).items()
        )
        error.add_note(f"This happened in {name}, called with the batch: {leaves}.")
        raise


def _mergeable(metrics: Metrics, step_name: str) -> Metrics:
    for name, metric in metrics.items():
        merged = jax.eval_shape(lambda one: one.merge(one), metric)
        if change := _tree.difference(metric, merged):
            raise MetricError(
                f"{step_name} reported metric {name!r} ({type(metric).__name__}), which changes when two of it are "
                f"merged: {change}. Metrics are gathered inside the compiled loop, where shapes stay; use one whose "
                "accumulators have a fixed shape, or return the values from predict_step."
            )
    return metrics


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
