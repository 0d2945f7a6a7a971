"""EvaluationStep: a validation, test or predict step of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lightjax.data.stretch import Stretch
from lightjax_torch.hooks import overridden
from lightjax_torch.logged import Logged

if TYPE_CHECKING:
    from lightjax_torch.engine import TorchEngine


class EvaluationStep:
    """Runs a batch of an evaluation or a prediction as Lightning does, hook by hook.

    Args:
      engine: runs the module.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._module: Any = engine.module
        self._calls = engine.calls
        self._log = engine.log

    def evaluate(self, totals: Logged, stretch: Stretch, stage: str = "eval") -> Logged:
        """Evaluates a batch."""
        assert self._engine.stage is not None
        with torch.inference_mode():
            loader = self._log.loaders.index(stage.partition("/")[2]) if len(self._log.loaders) > 1 else 0
            steps: Any = stretch.steps
            batch = self._log.batch = self._calls.moved(next(steps.items), loader)
            more = (loader,) if len(self._log.loaders) > 1 else ()
            number = steps.first
            self._calls.call(f"on_{self._engine.stage}_batch_start", batch, number, *more)
            output = self._calls.run_step(f"{self._engine.stage}_step", batch, number, *more)
            if (end := getattr(self._module, f"{self._engine.stage}_step_end", None)) is not None:
                output = end(output)
            self._calls.call(f"on_{self._engine.stage}_batch_end", output, batch, number, *more)
            if self._engine.outputs_of_evaluation is not None:
                self._engine.outputs_of_evaluation.append(output)
            self._log.newest.update(totals.steps)
            self._log.batch = None
        return totals

    def predict(self, stretch: Stretch) -> Any:
        """Predicts a batch."""
        with torch.inference_mode():
            run = self._engine.run
            loader = self._log.loaders.index(run.loader) if run is not None and len(self._log.loaders) > 1 else 0
            steps: Any = stretch.steps
            batch = self._log.batch = self._calls.moved(next(steps.items), loader)
            more = (loader,) if len(self._log.loaders) > 1 else ()
            number = steps.first
            self._calls.call("on_predict_batch_start", batch, number, *more)
            if overridden(self._module, "predict_step"):
                output = self._calls.run_step("predict_step", batch, number, *more)
            else:
                with self._engine.numerics.scope():
                    output = self._module(batch)
            self._calls.call("on_predict_batch_end", output, batch, number, *more)
        return output
