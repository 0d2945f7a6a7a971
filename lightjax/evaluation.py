"""Evaluation: one pass over each loader of a stage by a compiled eval step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax

from lightjax.callbacks.callback import Callback, call
from lightjax.data.feed import stretches
from lightjax.data.prefetch import read_ahead
from lightjax.data.source import Source
from lightjax.engine.engine import Engine
from lightjax.engine.in_flight import bound
from lightjax.history import Report
from lightjax.progress import Progress
from lightjax.reports import named
from lightjax.run import Run

# Hooks say "validation", metrics say "val".
HOOKS = {"val": "validation", "test": "test"}


class Evaluation:
    """Evaluates states on the loaders of a stage.

    Args:
      stage: "val" or "test".
      engine: runs the eval step.
      loaders: by name; one without a name has the name "".
      callbacks: whose hooks are called.
      progress: shows people where it is.
      stop: asked between calls; True ends the evaluation.
    """

    def __init__(
        self,
        stage: Literal["val", "test"],
        engine: Engine,
        loaders: Mapping[str, Source],
        callbacks: Sequence[Callback],
        progress: Progress,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stage = stage
        self.engine = engine
        self.loaders = loaders
        self.callbacks = callbacks
        self.progress = progress
        self.stop = stop
        hook = f"on_{HOOKS[stage]}_batch"
        self._before_batch = [one for one in callbacks if one.overrides(f"{hook}_start")]
        self._after_batch = [one for one in callbacks if one.overrides(f"{hook}_end")]

    def compile_ahead(self) -> None:
        """Begins to compile what every loader needs; does not wait."""
        for name, data in self.loaders.items():
            self.engine.compile_ahead(program(name), data.specs(self._capacity(name)))

    def run(self, run: Run, batches: int | None = None, *, reports: bool = True) -> bool:
        """Evaluates `run.state`, promises the metrics to the history, and calls the hooks around it all.

        Args:
          run: whose state it is.
          batches: of each loader at most.
          reports: False only tries the batches, and waits for them.

        Returns:
          Whether it came to its end; False if it was stopped.
        """
        hook = f"on_{HOOKS[self.stage]}"
        call(self.callbacks, f"{hook}_start", run)
        call(self.callbacks, f"{hook}_epoch_start", run)
        found = {}
        for name, data in self.loaders.items():
            totals = self._evaluate(run, name, data, batches)
            if totals is None:
                return False
            found[name] = totals
        if not reports:
            jax.block_until_ready(found)
        else:
            run.history.promise(run.step, self._report(found, run.step, run.epoch))
            run.validated_at = run.step
        call(self.callbacks, f"{hook}_epoch_end", run)
        call(self.callbacks, f"{hook}_end", run)
        return True

    def _evaluate(self, run: Run, name: str, data: Source, batches: int | None) -> Any:
        """Evaluates on one loader.

        Returns:
          The packed metrics of all batches, on the device; does not wait for them. None if it was stopped.
        """
        engine, stage = self.engine, program(name)
        totals, capacity = engine.eval_totals(stage), self._capacity(name)
        engine.compile_ahead(stage, data.specs(capacity))
        in_flight: deque[Any] = deque()
        left = float("inf") if batches is None else batches
        run.loader, run.eval_batch = name, 0
        self.progress.start_evaluation(prefix(self.stage, name).rstrip("/"), data.batches)
        feed = stretches(
            data.epoch(run.epoch),
            partial(engine.place_stretch, stage),
            lambda done: int(min(capacity, left - done)),
            capacity,
        )
        with read_ahead(feed, self.engine.reads_ahead, self.stop) as ahead:
            for stretch in ahead:
                if self.stop():
                    break
                call(self._before_batch, f"on_{HOOKS[self.stage]}_batch_start", run)
                totals = engine.evaluate(run.state, totals, stretch, stage)
                run.eval_batch += stretch.count
                call(self._after_batch, f"on_{HOOKS[self.stage]}_batch_end", run)
                bound(in_flight, totals, engine.calls_in_flight)
                self.progress.update_evaluation(run.eval_batch)
        self.progress.end_evaluation({})
        return None if self.stop() else totals

    def _capacity(self, name: str) -> int:
        looked_at = self._before_batch or self._after_batch
        return 1 if looked_at else self.engine.eval_capacity(self.loaders[name], program(name))

    def _report(self, found: Mapping[str, Any], step: int, epoch: int) -> Callable[[], Iterator[Report]]:
        """Returns a function that waits for the device and reads the metrics of all loaders."""

        def read() -> Iterator[Report]:
            values = {}
            for name, totals in jax.device_get(dict(found)).items():
                values |= named(self.engine, self.engine.compute(program(name), totals), prefix(self.stage, name))
            yield Report(step, epoch, values)

        return read


def trace(engine: Engine, state: Any, loaders: Mapping[str, Source]) -> None:
    """Traces the eval step for every loader, which checks its contract; does not compile."""
    for number, (name, data) in enumerate(loaders.items()):
        engine.trace_eval(state, data.first(), program(name), number)


def metric_names(engine: Engine, stage: str, loaders: Mapping[str, Source]) -> list[str]:
    """Returns the names that an evaluation on traced loaders reports."""
    return [prefix(stage, name) + metric for name in loaders for metric in engine.metric_names(program(name))]


def prefix(stage: str, name: str) -> str:
    """Returns what stands before the names of a loader's metrics: "val/" or "val/clean/"."""
    return f"{stage}/{name}/" if name else f"{stage}/"


def program(name: str) -> str:
    """Returns what the engine calls the eval step of a loader."""
    return f"eval/{name}" if name else "eval"
