"""LearningRateMonitor: reports the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from lightjax.callbacks.callback import Callback, Stage
from lightjax.errors import ConfigurationError
from lightjax.learning_rate import injected_hyperparameters, named_learning_rates

if TYPE_CHECKING:
    from lightjax.run import Run


class LearningRateMonitor(Callback):
    """Reports the learning rate of every optimizer as `learning_rate`, in one small compiled call a report.

    Any optax schedule is found, and so is what `optax.inject_hyperparams` keeps; nothing waits for the device.

    Args:
      every_n_steps: how often; as often as training metrics when None, at the end of each epoch when 0.
      schedule: `step -> learning rate`, for an optimizer in which no schedule can be found.
      log_momentum: report `momentum` as well, or the first moment's decay `b1`, as `optax.inject_hyperparams` keeps it.
      log_weight_decay: report `weight_decay` likewise.

    Attributes:
      others: what is reported besides, and the names it may have where it is kept.

    Raises:
      ConfigurationError: (when the run begins) no learning rate is found, or nothing else that is asked for.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        schedule: Callable[[Any], Any] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        self._wanted = every_n_steps
        self.every_n_steps = every_n_steps or None
        self.schedule = schedule
        self.others = {"momentum": ("momentum", "b1")} if log_momentum else {}
        self.others |= {"weight_decay": ("weight_decay",)} if log_weight_decay else {}

    def period(self, log_every_n_steps: int) -> int | None:
        """Returns the steps between two looks; None where it looks at the ends of epochs."""
        return log_every_n_steps if self._wanted is None else self._wanted or None

    def setup(self, run: Run, stage: Stage) -> None:
        """Finds the learning rates."""
        if stage != "fit":
            return
        self.every_n_steps = self.period(run.trainer.log_every_n_steps)
        self._read = jax.jit(self._rates)
        found = jax.eval_shape(self._rates, run.state)
        if missing := [kind for kind in self.others if not any(name.startswith(kind) for name in found)]:
            raise ConfigurationError(
                f"LearningRateMonitor found no {' and no '.join(missing)} in the state's optimizers; build the "
                f"optimizer with optax.inject_hyperparams, or leave out log_{missing[0]}=True."
            )
        if not found:
            raise ConfigurationError(
                "LearningRateMonitor found no learning rate in the state's optimizers; name the schedule, "
                "LearningRateMonitor(schedule=...), or use optax.inject_hyperparams."
            )

    def on_train_batch_end(self, run: Run) -> None:
        """Reports the rates of this step."""
        run.log(self._read(run.state))

    def on_train_epoch_end(self, run: Run) -> None:
        """Reports the rates at the end of an epoch."""
        if self.every_n_steps is None:
            run.log(self._read(run.state))

    def _rates(self, state: Any) -> dict[str, jax.Array]:
        others = injected_hyperparameters(state, self.others)
        if self.schedule is not None:
            return {"learning_rate": jnp.float32(self.schedule(state.step))} | others
        return named_learning_rates(state) | others
