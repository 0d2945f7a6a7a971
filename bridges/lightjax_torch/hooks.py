"""The hooks of a module, called where Lightning calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lightjax.callbacks import Callback
from lightjax.history import Report
from lightjax_torch import random_states
from lightjax_torch.logged import Logged, read

if TYPE_CHECKING:
    from lightjax.run import Run
    from lightjax_torch.engine import TorchEngine

# Where Lightning, torch and the stand-ins define what a hook does unless a module says otherwise.
_DEFAULTS = (
    "lightning.pytorch.core.", "lightning.pytorch.callbacks.callback", "pytorch_lightning.core.",
    "pytorch_lightning.callbacks.callback", "lightjax_torch.module", "torch.nn.modules.module",
)  # fmt: skip


def overridden(owner: Any, name: str) -> bool:
    """Says whether an object has a method of its own, and not only the default of a base class."""
    if name in vars(owner):
        return True
    for kind in type(owner).__mro__:
        if name in vars(kind):
            return not kind.__module__.startswith(_DEFAULTS)
    return False


class ModuleHooks(Callback):
    """Calls the hooks of the module at the looks of the loop; those around single batches are the engine's.

    Args:
      engine: runs the module.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._modes: dict[torch.nn.Module, bool] = {}
        self._random: Any = None
        self._cut = False

    def setup(self, run: Run, stage: str) -> None:
        """Tells the engine of the run."""
        self._engine.run = run
        self._engine.view.begin()

    def teardown(self, run: Run, stage: str) -> None:
        """Calls the module's hook."""
        self._engine.calls.call("teardown", stage)

    def on_fit_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._engine.calls.call("on_fit_end")

    def on_sanity_check_start(self, run: Run) -> None:
        """Lets the sanity check draw in vain."""
        self._random = random_states.states()
        self._engine.calls.call_callbacks("on_sanity_check_start")

    def on_sanity_check_end(self, run: Run) -> None:
        """Puts the random numbers back to where they were, and forgets what was logged."""
        self._engine.calls.call_callbacks("on_sanity_check_end")
        random_states.set_states(self._random)
        self._engine.log.newest.clear()

    def on_train_start(self, run: Run) -> None:
        """Begins to read the training data and calls the module's hook."""
        engine = self._engine
        engine.stage = "train"
        engine.epoch = run.epoch
        if engine.resumed_random is None and engine.data is not None:
            engine.data.train.begin(run.epoch)
        engine.begin_epoch(run)
        engine.calls.call("on_train_start")
        if engine.resumed_random is not None:
            random_states.set_states(engine.resumed_random)
            engine.resumed_random = None

    def on_train_epoch_start(self, run: Run) -> None:
        """Calls the module's hook, except in an epoch that a resumed run goes on with."""
        if not run.batch:
            if run.epoch != self._engine.epoch:
                self._engine.begin_epoch(run)
            self._engine.calls.call("on_train_epoch_start")

    def on_train_epoch_end(self, run: Run) -> None:
        """Ends the epoch: values logged over it, the old style's outputs, the module's hook, schedulers."""
        engine = self._engine
        engine.log.freeze(engine.log.current)
        if run.epoch_ended:
            engine.log.current.reset()
        with self._late(run):
            if engine.outputs is not None:
                engine.calls.call("training_epoch_end", engine.outputs)
                engine.outputs = []
            engine.calls.call("on_train_epoch_end")
        if run.epoch_ended:
            engine.train_step.step_schedulers("epoch", run.epoch, plateau=True)

    def on_train_end(self, run: Run) -> None:
        """Calls the module's hook; by then the epochs that are done are counted."""
        self._engine.epoch = run.epoch
        self._engine.calls.call("on_train_end")

    def on_validation_start(self, run: Run) -> None:
        """Puts the module into evaluation mode and calls its hook."""
        # A run that ends within an epoch is evaluated where one that goes on is not: what it draws is drawn in vain.
        batches = None if self._engine.data is None else self._engine.data.train.batches
        self._cut = run.stage == "fit" and run.stopped_by is not None and run.batch != batches
        if self._cut:
            self._random = random_states.states()
        if run.stage == "fit" and not run.sanity_checking:
            self._engine.calls.call("on_validation_model_zero_grad", default=self._engine.module.zero_grad)
        self._begin("validation")

    def on_validation_epoch_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._engine.calls.call("on_validation_epoch_start")

    def on_validation_epoch_end(self, run: Run) -> None:
        """Ends the evaluation: values logged over it, the old style's outputs, the module's hook."""
        self._end_epoch(run, "validation")

    def on_validation_end(self, run: Run) -> None:
        """Calls the module's hook and puts the module back into the mode it was in."""
        self._end("validation", run)
        if self._cut:
            random_states.set_states(self._random)

    def on_test_start(self, run: Run) -> None:
        """As for validation."""
        self._begin("test")

    def on_test_epoch_start(self, run: Run) -> None:
        """As for validation."""
        self._engine.calls.call("on_test_epoch_start")

    def on_test_epoch_end(self, run: Run) -> None:
        """As for validation."""
        self._end_epoch(run, "test")

    def on_test_end(self, run: Run) -> None:
        """As for validation."""
        self._end("test", run)

    def on_predict_start(self, run: Run) -> None:
        """As for validation."""
        self._begin("predict")

    def on_predict_epoch_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._engine.calls.call("on_predict_epoch_start")

    def on_predict_epoch_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._engine.calls.call("on_predict_epoch_end")

    def on_predict_end(self, run: Run) -> None:
        """As for validation."""
        self._end("predict", run)

    def on_exception(self, run: Run, error: BaseException) -> None:
        """Tells Lightning's callbacks, and leaves the module in the mode it was in."""
        self._engine.calls.call_callbacks("on_exception", error)
        self._restore_modes()
        self._engine.average.put_back()

    def _begin(self, stage: str) -> None:
        engine = self._engine
        engine.stage = stage
        engine.average.put_in()
        engine.log.begin_evaluation()
        engine.outputs_of_evaluation = [] if overridden(engine.module, f"{stage}_epoch_end") else None
        self._modes = {part: part.training for part in engine.module.modules()}
        engine.calls.call(f"on_{stage}_model_eval", default=engine.module.eval)
        if engine.replica is not None:
            engine.replica.share_buffers()
        engine.calls.call(f"on_{stage}_start")

    def _end_epoch(self, run: Run, stage: str) -> None:
        engine = self._engine
        for log in engine.log.evaluated:
            engine.log.freeze(log)
            log.reset()
        engine.log.evaluated = []
        with self._late(run, engine.log.hooks):
            if engine.outputs_of_evaluation is not None:
                engine.calls.call(f"{stage}_epoch_end", engine.outputs_of_evaluation)
            engine.calls.call(f"on_{stage}_epoch_end")

    def _end(self, stage: str, run: Run) -> None:
        engine = self._engine
        engine.calls.call(f"on_{stage}_end")
        engine.calls.call(f"on_{stage}_model_train", default=self._restore_modes)
        engine.average.put_back()
        engine.log.end_evaluation()
        engine.stage = "train" if run.stage == "fit" else None

    def _restore_modes(self) -> None:
        for part, training in self._modes.items():
            part.training = training

    def _late(self, run: Run, log: Logged | None = None) -> _Late:
        return _Late(self._engine, run, log or Logged())


class _Late:
    """While entered, what is logged is reported by itself: the values of the epoch are on their way already."""

    def __init__(self, engine: TorchEngine, run: Run, log: Logged) -> None:
        self.engine, self.run, self.log = engine, run, log

    def __enter__(self) -> None:
        self.before, self.engine.log.current = self.engine.log.current, self.log

    def __exit__(self, *error: object) -> None:
        engine, run, log = self.engine, self.run, self.log
        engine.log.current = self.before
        if error[0] is None and log.running and not run.sanity_checking:
            values = engine.log.freeze(log)
            step, epoch = run.step, run.epoch
            run.history.promise(step, lambda: [Report(step, epoch, read(values))])
