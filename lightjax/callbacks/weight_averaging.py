"""WeightAveraging: evaluates an average of the parameters instead of the last ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lightjax.callbacks.around_optimizer import Averaged, averaged, averaging, nodes_of, put_around
from lightjax.callbacks.callback import Callback
from lightjax.errors import ConfigurationError


class WeightAveraging(Callback):
    """Averages the parameters over the steps of a run; evaluation, tests and predictions use the average.

    The average is part of the state, made inside of the compiled step: it costs no call of its own, is in every
    checkpoint, and is resumed bit for bit. `result.state` and checkpoints hold the last parameters as well, for going
    on; `lj.averaged(state)` puts the average in their place.

    Every parameter has the same weight in the average (Polyak and Juditsky, 1992) unless `share` says otherwise.

    Args:
      share: of the newest parameters in the average, given how many it holds already (an int32 array, from 1 on); None
        for equal weights.
      update_every_n_steps: steps between two that are averaged.
      update_starting_at_step: steps before the average begins; until then it is the parameters themselves.

    Raises:
      ConfigurationError: a number is out of range; or (when the run begins) the state holds no `TrainState`.
    """

    every_n_steps = None
    outermost = True

    def __init__(
        self,
        share: Callable[[jax.Array], Any] | None = None,
        *,
        update_every_n_steps: int = 1,
        update_starting_at_step: int = 0,
    ) -> None:
        if update_every_n_steps < 1 or update_starting_at_step < 0:
            raise ConfigurationError(
                f"{type(self).__name__} got update_every_n_steps={update_every_n_steps}, "
                f"update_starting_at_step={update_starting_at_step}; the first is 1 at least, the second 0."
            )
        self.share = share
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step

    def extend_state(self, state: Any) -> Any:
        """Puts the average into the state."""

        def make(inner: Any) -> Any:
            share = self.share or (lambda count: 1.0 / (count + 1))
            return averaging(inner, share, every=self.update_every_n_steps, start=self.update_starting_at_step)

        return put_around(state, Averaged, make, type(self).__name__)

    def evaluated_state(self, state: Any) -> Any:
        """Evaluates the average; a state that was trained without one is evaluated as it is."""
        return averaged(state) if nodes_of(state, Averaged) else state


class EMA(WeightAveraging):
    """Averages the parameters exponentially: `average = decay * average + (1 - decay) * parameters`.

    Args:
      decay: between 0 and 1; 0.999 remembers about a thousand updates.
      update_every_n_steps: as for `WeightAveraging`.
      update_starting_at_step: as for `WeightAveraging`.

    Example:
      >>> import lightjax as lj
      >>> trainer = lj.Trainer(max_epochs=1, callbacks=[lj.EMA(decay=0.99)])
    """

    def __init__(
        self, decay: float = 0.999, *, update_every_n_steps: int = 1, update_starting_at_step: int = 0
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigurationError(f"EMA got decay={decay}; give a number from 0.0 on and below 1.0, such as 0.999.")
        super().__init__(
            lambda _: 1.0 - decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )
        self.decay = decay
