"""Callbacks of lightjax that work on states of JAX, and what stands in for them where a module runs in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import SWALR

import lightjax
from lightjax.callbacks import Callback
from lightjax.callbacks.callback import Stage
from lightjax.data.position import decode, encode
from lightjax.errors import ConfigurationError
from lightjax_torch.finetuning import Freezing
from lightjax_torch.module_calls import is_automatic
from lightjax_torch.pruning import Masking

if TYPE_CHECKING:
    from lightjax.run import Run
    from lightjax_torch.engine import TorchEngine


def stand_in(engine: TorchEngine, callback: Callback) -> Callback:
    """Returns what runs in the place of a callback: most run as they are.

    Raises:
      ConfigurationError: it keeps something in states of JAX, and torch has nothing like it here; or a second average
        is asked for.
    """
    if isinstance(callback, lightjax.LearningRateMonitor):
        return LearningRates(engine, callback)
    if not callback.overrides("extend_state", "evaluated_state"):
        return callback
    name = type(callback).__name__
    averages = isinstance(callback, lightjax.WeightAveraging | lightjax.StochasticWeightAveraging)
    if averages and engine.average.wanted:
        raise ConfigurationError(f"{name} is a second average of the same parameters: leave one of them out.")
    if isinstance(callback, lightjax.WeightAveraging):
        return StepAveraging(engine, callback)
    if isinstance(callback, lightjax.StochasticWeightAveraging):
        return EpochAveraging(engine, callback)
    if isinstance(callback, lightjax.Finetuning):
        return Freezing(engine, callback)
    if isinstance(callback, lightjax.Pruning):
        return Masking(engine, callback)
    raise ConfigurationError(
        f"{name} keeps what it needs in the state of a JAX task, which a torch module does not have; leave it out, or "
        "do the same in hooks of the module."
    )


class StepAveraging(Callback):
    """Stands in for `lightjax.WeightAveraging` and `lightjax.EMA`: the engine averages after each step."""

    every_n_steps = None

    def __init__(self, engine: TorchEngine, asked: lightjax.WeightAveraging) -> None:
        engine.average.ask(share=asked.share, every=asked.update_every_n_steps, start=asked.update_starting_at_step)


class EpochAveraging(Callback):
    """Stands in for `lightjax.StochasticWeightAveraging`: averages the ends of the last epochs.

    The learning rates are torch's own `SWALR`, one for each optimizer; the module's schedulers rest from then on.
    """

    every_n_steps = None

    def __init__(self, engine: TorchEngine, asked: lightjax.StochasticWeightAveraging) -> None:
        engine.average.ask(share=None, every=None, start=0)
        self._engine = engine
        self._asked = asked

    def setup(self, run: Run, stage: Stage) -> None:
        """Forgets an earlier run."""
        if stage == "fit":
            self._rates: list[SWALR] = []
            self._engine.schedulers_rest = False

    def on_fit_start(self, run: Run) -> None:
        """Finds the first epoch that is averaged."""
        self._start = self._asked.first_epoch(run.trainer.max_epochs)
        if not is_automatic(self._engine.module):
            raise ConfigurationError(
                "StochasticWeightAveraging leads the learning rate, and "
                f"{type(self._engine.module).__name__} leads it itself (automatic_optimization = False); average with "
                "lj.WeightAveraging(update_starting_at_step=...) instead."
            )

    def on_train_epoch_start(self, run: Run) -> None:
        """Leads the learning rates to their goal."""
        if run.epoch < self._start or run.batch:
            return
        if not self._rates:
            self._begin()
        else:
            for one in self._rates:
                one.step()

    def _begin(self) -> None:
        asked, self._engine.schedulers_rest = self._asked, True
        self._rates = [
            SWALR(
                one,
                swa_lr=asked.swa_lrs,
                anneal_epochs=asked.annealing_epochs,
                anneal_strategy=asked.annealing_strategy,
            )
            for one in self._engine.optimizers
        ]

    def on_train_epoch_end(self, run: Run) -> None:
        """Takes the parameters of this epoch into the average."""
        if run.epoch >= self._start and run.epoch_ended:
            self._engine.average.take_in()

    def state_dict(self) -> dict[str, Any]:
        """Returns where the learning rates are."""
        return {"rates": encode([one.state_dict() for one in self._rates])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the learning rates; the optimizers have theirs back already."""
        if kept := decode(state["rates"]):
            self._begin()
            for one, rates in zip(self._rates, kept, strict=True):
                one.load_state_dict(rates)


class LearningRates(Callback):
    """Stands in for `lightjax.LearningRateMonitor`: reads the groups of the optimizers."""

    def __init__(self, engine: TorchEngine, asked: lightjax.LearningRateMonitor) -> None:
        self._engine = engine
        self._asked = asked
        self.every_n_steps = asked.every_n_steps

    def setup(self, run: Run, stage: Stage) -> None:
        """Finds out how often to look, and what there is."""
        if stage != "fit":
            return
        self.every_n_steps = self._asked.period(run.trainer.log_every_n_steps)
        found = self._values()
        if missing := [kind for kind in self._asked.others if not any(name.startswith(kind) for name in found)]:
            raise ConfigurationError(
                f"LearningRateMonitor found no {' and no '.join(missing)} in the module's optimizers; leave out "
                f"log_{missing[0]}=True."
            )

    def on_train_batch_end(self, run: Run) -> None:
        """Reports the rates of this step."""
        run.log(self._values())

    def on_train_epoch_end(self, run: Run) -> None:
        """Reports the rates at the end of an epoch."""
        if self.every_n_steps is None:
            run.log(self._values())

    def _values(self) -> dict[str, float]:
        found = group_values(self._engine.optimizers, {"learning_rate": ("lr",), **self._asked.others})
        return {name: float(value) for name, value in found.items()}


def group_values(optimizers: Sequence[Optimizer], kinds: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Reads numbers of the groups of optimizers.

    Args:
      optimizers: whose they are.
      kinds: names in a group of which the first there is counts, by the name in the result.

    Returns:
      Numbers, or tensors with one, by kind, with the number of the optimizer and the name of the group where there are
      several.

    Example:
      >>> optimizer = torch.optim.Adam([torch.zeros(1)], lr=0.5)
      >>> group_values([optimizer], {"learning_rate": ("lr",), "momentum": ("momentum", "b1")})
      {'learning_rate': 0.5, 'momentum': 0.9}
    """
    found: dict[str, Any] = {}
    for number, optimizer in enumerate(optimizers):
        for place, group in enumerate(optimizer.param_groups, 1):
            where = [str(number)] if len(optimizers) > 1 else []
            if len(optimizer.param_groups) > 1:
                where.append(str(group.get("name", f"pg{place}")))
            for kind, names in kinds.items():
                value = next((group[name] for name in names if name in group), None)
                value = group["betas"][0] if value is None and "b1" in names and "betas" in group else value
                if value is not None:
                    found["/".join([kind, *where])] = value.clone() if isinstance(value, torch.Tensor) else value
    return found
