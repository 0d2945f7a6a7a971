"""Evaluation: one pass over data by a compiled eval step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from lightjax.data.feed import stretches
from lightjax.data.prefetch import Prefetch
from lightjax.data.source import Source
from lightjax.engine.engine import Engine
from lightjax.engine.in_flight import bound
from lightjax.progress import Progress


def evaluate(
    state: Any,
    engine: Engine,
    data: Source,
    epoch: int,
    stage: str,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> Any:
    """Evaluates a state on one pass over the data.

    Returns:
      The packed metrics of all batches, on the device; does not wait for them. None if it was stopped. The caller ends
      the display.
    """
    totals, done = engine.eval_totals(), 0
    capacity = engine.eval_capacity(data)
    engine.compile_ahead("eval", data.specs(capacity))
    in_flight: deque[Any] = deque()
    progress.start_evaluation(stage, data.batches)
    feed = stretches(data.epoch(epoch), partial(engine.place_stretch, "eval"), lambda _: capacity, capacity)
    with Prefetch(feed, stop=stop) as ahead:
        for stretch in ahead:
            if stop():
                break
            with jax.transfer_guard("disallow"):
                totals = engine.evaluate(state, totals, stretch)
            done += stretch.count
            bound(in_flight, totals)
            progress.update_evaluation(done)
    return None if stop() else totals
