"""StochasticWeightAveraging: an average of the parameters at the ends of the last epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from lightjax.callbacks.around_optimizer import (
    Averaged,
    Scaled,
    averaged,
    averaging,
    nodes_of,
    put_around,
    replace_nodes,
    scaling,
)
from lightjax.callbacks.callback import Callback
from lightjax.errors import ConfigurationError
from lightjax.learning_rate import learning_rates
from lightjax.train_states import map_train_states, train_states

if TYPE_CHECKING:
    from lightjax.run import Run

NEVER = 2**31 - 1


class StochasticWeightAveraging(Callback):
    """Averages the parameters that the last epochs end with, at a learning rate of its own (Izmailov et al., 2018).

    From the first average on, evaluation, tests and predictions use it; `lj.averaged(state)` puts it in the place of
    the last parameters. Statistics of the model, such as BatchNorm's, are those of the last parameters.

    Args:
      swa_lrs: the learning rate of those epochs.
      swa_epoch_start: the first of them: an epoch, counted from 0, or a share of `max_epochs`.
      annealing_epochs: epochs in which the learning rate goes from what it is to `swa_lrs`.
      annealing_strategy: "cos" or "linear".

    Raises:
      ConfigurationError: an argument is out of range; or (when the run begins) the optimizer's learning rate cannot be
        found, or a share is asked of a run without `max_epochs`.
    """

    every_n_steps = None
    outermost = True

    def __init__(
        self,
        swa_lrs: float,
        *,
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
    ) -> None:
        share = isinstance(swa_epoch_start, float)
        if swa_lrs <= 0 or swa_epoch_start < 0 or (share and swa_epoch_start > 1) or annealing_epochs < 0:
            raise ConfigurationError(
                f"StochasticWeightAveraging got swa_lrs={swa_lrs}, swa_epoch_start={swa_epoch_start}, annealing_epochs="
                f"{annealing_epochs}; the rate is above 0, the start an epoch or a share up to 1.0, the epochs 0 on."
            )
        if annealing_strategy not in ("cos", "linear"):
            raise ConfigurationError(
                f"StochasticWeightAveraging got annealing_strategy={annealing_strategy!r}; write 'cos' or 'linear'."
            )
        self.swa_lrs = swa_lrs
        self.swa_epoch_start = swa_epoch_start
        self.annealing_epochs = annealing_epochs
        self.annealing_strategy: Literal["cos", "linear"] = annealing_strategy
        self._average = jax.jit(_with_these)

    def extend_state(self, state: Any) -> Any:
        """Puts the average and the scale of the updates into the state."""
        state = put_around(state, Scaled, scaling, "StochasticWeightAveraging")
        return put_around(
            state,
            Averaged,
            lambda inner: averaging(inner, jnp.ones_like, every=NEVER, start=0),
            "StochasticWeightAveraging",
        )

    def evaluated_state(self, state: Any) -> Any:
        """Evaluates the average, once there is one."""
        return averaged(state) if nodes_of(state, Averaged) else state

    def first_epoch(self, max_epochs: int | None) -> int:
        """Returns the first epoch that is averaged, in a run of so many.

        Raises:
          ConfigurationError: it is a share of epochs that nobody limited.
        """
        start = self.swa_epoch_start
        if not isinstance(start, float):
            return start
        if max_epochs is None:
            raise ConfigurationError(
                f"StochasticWeightAveraging(swa_epoch_start={start}) is a share of max_epochs, which the trainer has "
                "not; give an epoch."
            )
        return int(start * max_epochs)

    def on_fit_start(self, run: Run) -> None:
        """Finds the first epoch that is averaged, and the learning rates."""
        self._start = self.first_epoch(run.trainer.max_epochs)
        for one in train_states(run.state).values():
            if list(learning_rates(one.optimizer, one.opt_state)) != [""]:
                raise ConfigurationError(
                    "StochasticWeightAveraging found no single learning rate in the optimizer, so it cannot lead it to "
                    f"swa_lrs={self.swa_lrs}; use an optax optimizer with one schedule, or optax.inject_hyperparams."
                )

    def on_train_epoch_start(self, run: Run) -> None:
        """Leads the learning rate to its goal; waits for the device."""
        since = run.epoch - self._start
        if since < 0 or run.batch:
            return
        done = min(1.0, since / self.annealing_epochs) if self.annealing_epochs else 1.0
        if self.annealing_strategy == "cos":
            done = (1 - math.cos(math.pi * done)) / 2

        def scaled(one: Any) -> Any:
            rate = learning_rates(one.optimizer, one.opt_state)[""]
            goal = done * self.swa_lrs + (1 - done) * rate
            scale = jnp.float32(jnp.where(rate > 0, goal / rate, 1.0))
            return one.replace(opt_state=replace_nodes(one.opt_state, Scaled, lambda node: node._replace(scale=scale)))

        run.state = map_train_states(scaled, run.state)

    def on_train_epoch_end(self, run: Run) -> None:
        """Takes the parameters of this epoch into the average."""
        if run.epoch >= self._start and run.epoch_ended:
            run.state = self._average(run.state)


def _with_these(state: Any) -> Any:
    """Takes the present parameters into the average, with the weight of those before."""

    def one(train_state: Any) -> Any:
        def node(found: Averaged) -> Averaged:
            share = 1.0 / (found.averaged + 1)
            average = jax.tree.map(
                lambda old, new: old + share.astype(old.dtype) * (new.astype(old.dtype) - old),
                found.average,
                train_state.params,
            )
            return found._replace(average=average, averaged=found.averaged + 1)

        return train_state.replace(opt_state=replace_nodes(train_state.opt_state, Averaged, node))

    return map_train_states(one, state)
