"""The programs that are compiled: a stretch of train steps, a stretch of eval steps.

Every step of a run goes through the same body, however the run is cut into calls, so that the cut never changes a
number. The body runs inside a loop with a dynamic trip count: one program serves every length up to its capacity, and
a loop of one step gives the bits of a loop of many. Where loops are slow (convolutions on the CPU), the body is a
program of its own, always.
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
    step: Callable[[Any, Any], tuple[Any, Any]], packing: Packing, *, log_every_n_steps: int
) -> Callable[..., tuple[Any, Any, Vectors]]:
    """Builds the program of a stretch of train steps.

    Args:
      step: `(state, batch) -> (state, metrics)`.
      packing: of the step's metrics.
      log_every_n_steps: the length of the windows that metrics are merged over.

    Returns:
      `(state, totals, steps, control) -> (state, totals, rows)`. `steps` gives the batch of each step.
      `control` is int32[3]: steps to run, optimizer steps done before, batches of the epoch done before. `totals` is
      `(window, epoch)`: metrics merged since the last window and epoch began, as packed vectors. `rows` is
      [capacity, length]: `window` as it stood after each step.
    """
    merge = _merging(packing, log_every_n_steps)

    def program(state: Any, totals: tuple[Vectors, Vectors], steps: Steps, control: jax.Array) -> Any:
        count, steps_before, epoch_before = control[0], control[1], control[2]

        def run(i: Any, carry: tuple[Any, Vectors]) -> tuple[Any, Vectors]:
            state, raw = carry
            new_state, metrics = step(state, _batch(steps, i))
            return new_state, _put(raw, i, packing.pack(metrics))

        def gather(i: Any, carry: tuple[tuple[Vectors, Vectors], Vectors]) -> tuple[tuple[Vectors, Vectors], Vectors]:
            totals, rows = carry
            totals = merge(totals, _at(raw, i), steps_before + i, epoch_before + i)
            return totals, _put(rows, i, totals[0])

        state, raw = lax.fori_loop(0, count, run, (state, packing.zeros(steps.capacity)))
        totals, rows = lax.fori_loop(0, count, gather, (totals, packing.zeros(steps.capacity)))
        return state, totals, rows

    return program


def train_step_program(
    step: Callable[[Any, Any], tuple[Any, Any]], packing: Packing, *, log_every_n_steps: int
) -> Callable[..., tuple[Any, Any, Vectors, jax.Array]]:
    """Builds the program of one train step outside of a loop, called once for each step of a stretch.

    What it needs to know of the place in the stretch goes from call to call on the device: the batches of a stretch are
    moved there together, and nothing else is.

    Args:
      step: `(state, batch) -> (state, metrics)`.
      packing: of the step's metrics.
      log_every_n_steps: the length of the windows that metrics are merged over.

    Returns:
      `(state, totals, rows, steps, control) -> (state, totals, rows, control)`, as for `train_program`; but `control`
      is int32[3]: the number of the step in the stretch, optimizer steps done before, batches of the epoch done before.
    """
    merge = _merging(packing, log_every_n_steps)

    def program(state: Any, totals: Any, rows: Vectors, steps: Steps, control: jax.Array) -> Any:
        state, metrics = step(state, steps.batch(control[0]))
        totals = merge(totals, packing.pack(metrics), control[1], control[2])
        return state, totals, _put(rows, control[0], totals[0]), control + 1

    return program


def eval_program(
    step: Callable[[Any, Any], Any], packing: Packing
) -> Callable[[Any, Vectors, Steps, jax.Array], Vectors]:
    """Builds the program of a stretch of eval steps, `(state, (batch, number of the batch)) -> metrics`.

    Returns:
      `(state, totals, steps, control) -> totals`, with `control` int32[2]: batches to evaluate, batches evaluated
      before.
    """

    def program(state: Any, totals: Vectors, steps: Steps, control: jax.Array) -> Vectors:
        def run(i: Any, totals: Vectors) -> Vectors:
            number = control[1] + i
            metrics = packing.pack(step(state, (_batch(steps, i), number)))
            return _joined(packing, totals, metrics, number == 0)

        return lax.fori_loop(0, control[0], run, totals)

    return program


def eval_step_program(
    step: Callable[[Any, Any], Any], packing: Packing
) -> Callable[[Any, Vectors, Steps, jax.Array], tuple[Vectors, jax.Array]]:
    """Builds the program of one eval step outside of a loop, called once for each step of a stretch.

    Returns:
      `(state, totals, steps, control) -> (totals, control)`, with `control` int32[2]: the number of the batch in the
      stretch, batches evaluated before.
    """

    def program(state: Any, totals: Vectors, steps: Steps, control: jax.Array) -> tuple[Vectors, jax.Array]:
        metrics = packing.pack(step(state, (steps.batch(control[0]), control[1])))
        return _joined(packing, totals, metrics, control[1] == 0), control + 1

    return program


def _merging(packing: Packing, log_every_n_steps: int) -> Callable[..., tuple[Vectors, Vectors]]:
    """Returns `(totals, metrics, steps_before, epoch_before) -> totals`, which begins windows and epochs anew."""

    def merge(totals: tuple[Vectors, Vectors], metrics: Vectors, steps_before: Any, epoch_before: Any) -> Any:
        window, epoch = totals
        epoch_begins = epoch_before == 0
        window_begins = epoch_begins | (steps_before % log_every_n_steps == 0)
        return _joined(packing, window, metrics, window_begins), _joined(packing, epoch, metrics, epoch_begins)

    return merge


def _joined(packing: Packing, gathered: Vectors, metrics: Vectors, begins: jax.Array) -> Vectors:
    """Merges metrics into what was gathered, or begins anew with them."""
    merged = packing.merge(gathered, metrics)
    return jax.tree.map(lambda first, both: jnp.where(begins, first, both), metrics, merged)


def _batch(steps: Steps, i: Any) -> Any:
    """Returns the batch of a step in a loop.

    Of a stack with room for one XLA knows that its only batch never changes, and computes what depends on nothing else
    before the loop, with other roundings. Tied to `i`, the batch is unknown in every program.
    """
    return lax.optimization_barrier((steps.batch(i), i))[0]


def _at(stack: Any, i: Any) -> Any:
    return jax.tree.map(lambda rows: lax.dynamic_index_in_dim(rows, i, keepdims=False), stack)


def _put(stack: Any, i: Any, row: Any) -> Any:
    return jax.tree.map(lambda rows, new: lax.dynamic_update_index_in_dim(rows, new, i, 0), stack, row)
