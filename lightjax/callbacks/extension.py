"""A task with what callbacks keep in its state, and evaluate instead of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from lightjax.callbacks.callback import Callback
from lightjax.task import Task, TaskLike


def extended_task(task: TaskLike, callbacks: Sequence[Callback]) -> TaskLike:
    """Returns the task with the callbacks' extensions inside of its functions; the task itself where there are none."""
    if not any(one.overrides("extend_state", "evaluated_state") for one in callbacks):
        return task

    def init(key: Any, batch: Any) -> Any:
        return extended_state(task.init(key, batch), callbacks)

    def on_evaluated(name: str) -> Any:
        step = getattr(task, name, None)
        if step is None:
            return None

        @functools.wraps(step)  # which arguments it asks for is read from its signature
        def evaluated(state: Any, batch: Any, **position: Any) -> Any:
            return step(evaluated_state(state, callbacks), batch, **position)

        return evaluated

    return Task(init, task.train_step, on_evaluated("eval_step"), on_evaluated("predict_step"))


def extended_state(state: Any, callbacks: Sequence[Callback]) -> Any:
    """Adds to a state what callbacks keep in it."""
    for callback in sorted(callbacks, key=lambda one: one.outermost):
        state = callback.extend_state(state)
    return state


def evaluated_state(state: Any, callbacks: Sequence[Callback]) -> Any:
    """Returns the state that evaluation and prediction see."""
    for callback in callbacks:
        state = callback.evaluated_state(state)
    return state
