"""Callbacks of Lightning's class: one's own run as they are, those that come with Lightning get a counterpart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightjax
from lightjax.callbacks import Callback
from lightjax.errors import ConfigurationError
from lightjax.progress.output import Output
from lightjax_torch.counterparts import EarlyStoppingFor, LearningRatesFor, ModelCheckpointFor

PACKAGES = ("lightning.pytorch.callbacks.", "pytorch_lightning.callbacks.")

# They and their subclasses ask nothing of the trainer that a module may not ask.
_AS_THEY_ARE = {"Callback", "Timer", "LambdaCallback", "BaseFinetuning", "BackboneFinetuning"}
# Of these classes themselves: a subclass may do anything.
_COUNTERPARTS: dict[str, Callable[[Any], Callback]] = {
    "EarlyStopping": EarlyStoppingFor,
    "ModelCheckpoint": ModelCheckpointFor,
    "LearningRateMonitor": LearningRatesFor,
    "GradientAccumulationScheduler": lambda one: lightjax.GradientAccumulationScheduler(one.scheduling),
    "OnExceptionCheckpoint": lambda one: lightjax.OnExceptionCheckpoint(one.dirpath),
}
_BUILT_IN = {
    "ProgressBar": "progress bar (enable_progress_bar=False leaves it out)",
    "ModelSummary": "summary (enable_model_summary=False leaves it out)",
}
_INSTEAD = {
    "EMAWeightAveraging": "lj.EMA(decay, update_every_n_steps=, update_starting_at_step=)",
    "WeightAveraging": "lj.WeightAveraging(share, update_every_n_steps=, update_starting_at_step=)",
    "StochasticWeightAveraging": "lj.StochasticWeightAveraging(swa_lrs, swa_epoch_start=, annealing_epochs=, "
    "annealing_strategy=)",
    "EarlyStopping": "lightjax_torch.callbacks.EarlyStopping, the same arguments",
    "ModelCheckpoint": "lightjax_torch.callbacks.ModelCheckpoint, the same arguments",
    "LearningRateMonitor": "lj.LearningRateMonitor(every_n_steps, log_momentum=, log_weight_decay=)",
    "GradientAccumulationScheduler": "Trainer(accumulate_grad_batches={epoch: number})",
    "OnExceptionCheckpoint": "lj.OnExceptionCheckpoint(directory)",
    "DeviceStatsMonitor": "lj.DeviceStatsMonitor(every_n_steps)",
    "ThroughputMonitor": "lj.ThroughputMonitor(every_n_steps, tokens=)",
    "SpikeDetection": "lj.SpikeDetection(monitor, window=, warmup=, atol=, rtol=)",
    "BasePredictionWriter": "lj.PredictionWriter(directory, interval=), whose write() may be overridden",
    "ModelPruning": "lj.Pruning(amount, parameters=, scope=, every_n_epochs=)",
    "BatchSizeFinder": "lj.tune.batch_size",
    "LearningRateFinder": "lj.tune.learning_rate",
}


def parted(callbacks: Iterable[Any], whose: str) -> tuple[list[Callback], list[Any]]:
    """Parts callbacks into those of lightjax and those of Lightning's class.

    Of those that come with Lightning, the ones that have an exact counterpart are replaced by it, and show what it
    found in their own attributes; the progress bars and summaries are lightjax's own, which a line says.

    Args:
      callbacks: both.
      whose: they are, for the message.

    Raises:
      ConfigurationError: one is neither; or it comes with Lightning, or is a subclass of such, and has no exact
        counterpart: it reaches deep into Lightning's trainer. Says what to give instead.
    """
    ours: list[Callback] = []
    theirs: list[Any] = []
    for one in callbacks:
        if isinstance(one, Callback):
            ours.append(one)
            continue
        kinds = [kind for kind in type(one).__mro__ if kind.__module__.startswith(PACKAGES)]
        names = [kind.__name__ for kind in kinds]
        if kinds and _AS_THEY_ARE.issuperset(names):
            theirs.append(one)
        elif kinds and type(one) is kinds[0] and names[0] in _COUNTERPARTS:
            ours.append(_COUNTERPARTS[names[0]](one))
        elif built_in := next((_BUILT_IN[name] for name in names if name in _BUILT_IN), None):
            Output().write_line(f"note: in the place of {type(one).__name__} there is lightjax's own {built_in}")
        else:
            instead = next((_INSTEAD[name] for name in names if name in _INSTEAD), "")
            raise ConfigurationError(
                f"{whose} {type(one).__name__} of {type(one).__module__}, which "
                + ("reaches deep into Lightning's own trainer; " if kinds else "is no callback; ")
                + (f"give {instead}, or " if instead else "give ")
                + "a subclass of lj.Callback or of lightning's Callback."
            )
    return ours, theirs
