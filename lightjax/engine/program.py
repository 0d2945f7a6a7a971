"""The programs that are compiled: a stretch of train steps, a stretch of eval steps.

Every step of a run goes through the same body, however the run is cut into calls, so that the cut never changes a
number. The body runs inside a loop with a dynamic trip count: one program serves every length up to its capacity, and
a loop of one step gives the bits of a loop of many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightjax.data.stretch import Gathered, Stacked
from lightjax.engine.packing import Packing, Vectors

Steps = Stacked | Gathered


def train_program(
    step: Callable[[Any, Any], tuple[Any, Any]], packing: Packing, *, looped: bool, log_every_n_steps: int
) -> Callable[..., tuple[Any, Any, Vectors]]:
    """Builds the program of a stretch of train steps.

    Args:
      step: `(state, batch) -> (state, metrics)`.
      packing: of the step's metrics.
      looped: whether the step runs in a loop. Without one the program runs exactly one step.
      log_every_n_steps: the length of the windows that metrics are merged over.

    Returns:
      `(state, totals, steps, control) -> (state, totals, rows)`. `steps` gives the batch of each step.
      `control` is int32[3]: steps to run, optimizer steps done before, batches of the epoch done before. `totals` is
      `(window, epoch)`: metrics merged since the last window and epoch began, as packed vectors. `rows` is
      [capacity, length]: `window` as it stood after each step.
    """

    def program(state: Any, totals: tuple[Vectors, Vectors], steps: Steps, control: jax.Array) -> Any:
        count, steps_before, epoch_before = control[0], control[1], control[2]
        capacity = steps.capacity

        def run(i: Any, carry: tuple[Any, Vectors]) -> tuple[Any, Vectors]:
            state, raw = carry
            new_state, metrics = step(state, steps.batch(i))
            return new_state, _put(raw, i, packing.pack(metrics))

        def gather(i: Any, carry: tuple[Vectors, Vectors, Vectors]) -> tuple[Vectors, Vectors, Vectors]:
            window, epoch, rows = carry
            metrics = _at(raw, i)
            epoch_begins = epoch_before + i == 0
            window_begins = epoch_begins | ((steps_before + i) % log_every_n_steps == 0)
            window = _joined(packing, window, metrics, window_begins)
            return window, _joined(packing, epoch, metrics, epoch_begins), _put(rows, i, window)

        raw = packing.zeros(capacity)
        if looped:
            state, raw = lax.fori_loop(0, count, run, (state, raw))
            window, epoch, rows = lax.fori_loop(0, count, gather, (*totals, packing.zeros(capacity)))
        else:
            state, raw = run(0, (state, raw))
            window, epoch, rows = gather(0, (*totals, packing.zeros(capacity)))
        return state, (window, epoch), rows

    return program


def eval_program(
    step: Callable[[Any, Any], Any], packing: Packing, *, looped: bool
) -> Callable[[Any, Vectors, Steps, jax.Array], Vectors]:
    """Builds the program of a stretch of eval steps.

    Returns:
      `(state, totals, steps, control) -> totals`, with `control` int32[2]: batches to evaluate, batches evaluated
      before.
    """

    def program(state: Any, totals: Vectors, steps: Steps, control: jax.Array) -> Vectors:
        def run(i: Any, totals: Vectors) -> Vectors:
            metrics = packing.pack(step(state, steps.batch(i)))
            return _joined(packing, totals, metrics, control[1] + i == 0)

        return lax.fori_loop(0, control[0], run, totals) if looped else run(0, totals)

    return program


def _joined(packing: Packing, gathered: Vectors, metrics: Vectors, begins: jax.Array) -> Vectors:
    """Merges metrics into what was gathered, or begins anew with them."""
    merged = packing.merge(gathered, metrics)
    return jax.tree.map(lambda first, both: jnp.where(begins, first, both), metrics, merged)


def _at(stack: Any, i: Any) -> Any:
    return jax.tree.map(lambda rows: lax.dynamic_index_in_dim(rows, i, keepdims=False), stack)


def _put(stack: Any, i: Any, row: Any) -> Any:
    return jax.tree.map(lambda rows, new: lax.dynamic_update_index_in_dim(rows, new, i, 0), stack, row)
