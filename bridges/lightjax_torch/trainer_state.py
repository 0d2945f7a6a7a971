"""What `self.trainer.state` says: what runs, in Lightning's words."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightjax_torch.engine import TorchEngine

# The words of Lightning's RunningStage for what `setup` is called with.
_FIRST_STAGE = {"fit": "train", "validate": "validate", "test": "test", "predict": "predict"}


class Word(str):
    """A word of Lightning's, where Lightning itself is not there to make an enumeration of it."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The word."""
        return str(self)


class TrainerState:
    """Says which method of the trainer runs and in which stage it is.

    Args:
      engine: runs the module.

    Attributes:
      function: what was called: "fit", "validate", "test" or "predict"; None before anything was.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self.function: str | None = None

    @property
    def fn(self) -> Any:
        """The method of the trainer, as a `TrainerFn` where the module is Lightning's; None before the first."""
        return None if self.function is None else self._word("TrainerFn", self.function)

    @property
    def stage(self) -> Any:
        """The stage, as a `RunningStage` where the module is Lightning's; None when nothing runs."""
        engine, run = self._engine, self._engine.run
        if self.function is None or not engine.attached:
            return None
        if engine.stage is None:
            return self._word("RunningStage", _FIRST_STAGE[self.function])
        if run is not None and run.sanity_checking:
            return self._word("RunningStage", "sanity_check")
        return self._word("RunningStage", "validate" if engine.stage == "validation" else engine.stage)

    @property
    def status(self) -> Any:
        """Either "running" or "finished", as a `TrainerStatus` where the module is Lightning's."""
        return self._word("TrainerStatus", "running" if self._engine.attached else "finished")

    def _word(self, kind: str, value: str) -> Any:
        """Returns a word as what the module compares it with."""
        for one in type(self._engine.module).__mro__:
            for package in ("lightning.pytorch", "pytorch_lightning"):
                if one.__module__.startswith(f"{package}.") and f"{package}.trainer.states" in sys.modules:
                    return getattr(sys.modules[f"{package}.trainer.states"], kind)(value)
        return Word(value)
