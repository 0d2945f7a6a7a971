"""GradientAccumulationScheduler: how many batches make a step, by epoch."""

from __future__ import annotations

from collections.abc import Mapping

from lightjax.callbacks.callback import Callback


class GradientAccumulationScheduler(Callback):
    """Says from which epoch on how many batches make one optimizer step.

    The same as `Trainer(accumulate_grad_batches=scheduling)`, for programs that keep it among the callbacks.

    Args:
      scheduling: number of batches by the epoch from which it holds, counted from 0.

    Example:
      >>> import lightjax as lj
      >>> trainer = lj.Trainer(max_epochs=9, callbacks=[lj.GradientAccumulationScheduler({0: 1, 4: 8})])
      >>> trainer.accumulate_grad_batches
      {0: 1, 4: 8}
    """

    every_n_steps = None

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        self.scheduling = dict(scheduling)
