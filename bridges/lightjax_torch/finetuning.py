"""What stands in for `lightjax.Finetuning` where a module runs in torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import lightjax
from lightjax.callbacks import Callback
from lightjax.callbacks.callback import Stage
from lightjax.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from lightjax.run import Run
    from lightjax_torch.engine import TorchEngine


class Freezing(Callback):
    """Freezes parameters as torch does: until their epoch they require no gradient, so that no optimizer moves them.

    The optimizers hold all parameters from the start. After the training, and after an error, every parameter requires
    a gradient again that did before.

    Args:
      engine: runs the module.
      asked: says which parameters, by names such as "backbone.0.weight", and until when.
    """

    every_n_steps = None

    def __init__(self, engine: TorchEngine, asked: lightjax.Finetuning) -> None:
        self._engine = engine
        self._asked = asked
        self._frozen: dict[str, list[torch.nn.Parameter]] = {}
        self._frozen_before: set[str] = set()

    def on_fit_start(self, run: Run) -> None:
        """Freezes what is not trained yet.

        Raises:
          ConfigurationError: an expression is found in no name.
        """
        parameters = dict(self._engine.module.named_parameters())
        for pattern in self._asked.unfreeze_at:
            if not any(re.search(pattern, name) for name in parameters):
                raise ConfigurationError(
                    f"Finetuning freezes {pattern!r}, which is found in no parameter's name; there are "
                    f"{', '.join(parameters)}."
                )
        for name, parameter in parameters.items():
            pattern = next((one for one in self._asked.unfreeze_at if re.search(one, name)), None)
            if pattern is None or not (parameter.requires_grad or name in self._frozen_before):
                continue
            parameter.requires_grad_(self._is_trained(pattern, run.epoch))
            if not parameter.requires_grad:
                self._frozen.setdefault(pattern, []).append(parameter)
        if self._frozen:
            self._engine.preparation.replicate()

    def on_train_epoch_start(self, run: Run) -> None:
        """Thaws what is trained from this epoch on."""
        if due := [pattern for pattern in self._frozen if self._is_trained(pattern, run.epoch)]:
            self._thaw(due)
            self._engine.preparation.replicate()

    def state_dict(self) -> dict[str, Any]:
        """Returns the names of what is frozen."""
        frozen = {id(one) for parameters in self._frozen.values() for one in parameters}
        return {"frozen": [name for name, one in self._engine.module.named_parameters() if id(one) in frozen]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes for its own what it froze before."""
        self._frozen_before = set(state["frozen"])

    def teardown(self, run: Run, stage: Stage) -> None:
        """Leaves the module as it was."""
        self._thaw(list(self._frozen))
        self._frozen_before = set()

    def _thaw(self, patterns: list[str]) -> None:
        for pattern in patterns:
            for parameter in self._frozen.pop(pattern):
                parameter.requires_grad_(True)

    def _is_trained(self, pattern: str, epoch: int) -> bool:
        at = self._asked.unfreeze_at[pattern]
        return at is not None and epoch >= at
