"""ModuleLog: what the module logs, over a step, an epoch and an evaluation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from lightjax.errors import StepError
from lightjax_torch import logged as logs
from lightjax_torch.logged import Logged, StepValues

if TYPE_CHECKING:
    from lightjax_torch.engine import TorchEngine


class ModuleLog:
    """Takes what the module logs (`self.log`); the values stay on the device.

    Args:
      engine: runs the module.

    Attributes:
      newest: the newest value of every name that was logged, on the device.
      current: what is gathered now.
      train: what the epoch of training gathers, also while an evaluation is under way.
      hooks: what the hooks of an evaluation log, beside its steps.
      evaluated: what an evaluation gathers, by loader.
      loaders: names of the loaders of an evaluation.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._module: Any = engine.module
        self.newest: dict[str, torch.Tensor] = {}
        self.current = self.train = self.hooks = Logged()
        self.evaluated: list[Logged] = []
        self.loaders: list[str] = [""]
        self._batch: Any = None
        self._batch_size: int | None = None
        self._warned_of_nan = False

    def forget(self) -> None:
        """Warns anew of a loss that is no number."""
        self._warned_of_nan = False

    @property
    def batch(self) -> Any:
        """The batch under way; None between."""
        return self._batch

    @batch.setter
    def batch(self, batch: Any) -> None:
        self._batch, self._batch_size = batch, None

    def begin_epoch(self) -> None:
        """Begins to gather an epoch of training."""
        self.current = self.train = Logged()

    def begin_loader(self) -> Logged:
        """Begins to gather what an evaluation logs on a loader."""
        self.current = Logged()
        self.evaluated.append(self.current)
        return self.current

    def begin_evaluation(self) -> None:
        """Leaves the epoch of training alone until `end_evaluation`."""
        self.train = self.current
        self.current = self.hooks = Logged()

    def end_evaluation(self) -> None:
        """Goes on with the epoch of training."""
        self.current = self.train

    def note_step(self) -> None:
        """Makes the values of the step under way the newest of their names; also under the name without "_step"."""
        if self._engine.stage != "train":
            return
        steps, running = self.current.steps, self.current.running
        self.newest.update(steps)
        for name, one in running.items():
            if one.forked and f"{name}_step" in steps:
                self.newest[name] = steps[f"{name}_step"]

    def freeze(self, log: Logged) -> dict[str, torch.Tensor]:
        """Ends what was gathered; the values are the newest of their names."""
        found = log.freeze(self._engine.processes)
        self.newest.update(found)
        self.newest.update({name: found[f"{name}_epoch"] for name, one in log.running.items() if one.forked})
        return found

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Takes a value (`self.log`); nothing waits for the device."""
        processes = self._engine.processes
        if rank_zero_only and processes.rank:
            return
        step, epoch = logs.levels(self._engine.calls.hook, name, on_step, on_epoch)
        if isinstance(value, Mapping):
            for key, part in value.items():
                self.log(
                    f"{name}.{key}",
                    part,
                    on_step=step,
                    on_epoch=epoch,
                    reduce_fx=reduce_fx,
                    batch_size=batch_size,
                    sync_dist=sync_dist,
                    rank_zero_only=rank_zero_only,
                )
            return
        if add_dataloader_idx and len(self.loaders) > 1 and self._engine.stage != "train" and self.batch is not None:
            name = f"{name}/dataloader_idx_{len(self.evaluated) - 1}"
        self.current.add(
            name,
            logs.as_value(name, value, self._engine.device),
            on_step=step,
            on_epoch=epoch,
            reduce=reduce_fx,
            batch_size=self._examples if batch_size is None else lambda: int(batch_size),
            sync=processes if sync_dist and not processes.alone else None,
        )

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Takes several values (`self.log_dict`)."""
        items = dictionary.items(keep_base=False) if hasattr(dictionary, "clone") else dictionary.items()
        for name, value in items:
            self.log(name, value, *args, **kwargs)

    def _examples(self) -> int:
        if self._batch_size is None:
            self._batch_size = logs.batch_size(self.batch)
        return self._batch_size

    def check_loss(self, values: StepValues) -> None:
        """Says when a loss is not a number, at a look."""
        if self._warned_of_nan or not isinstance(values.loss, torch.Tensor) or values.loss.numel() != 1:
            return
        if math.isfinite(loss := float(values.loss)):
            return
        text = (
            f"The loss of {type(self._module).__name__}.training_step is {loss} at step {values.step}: the weights "
            "are, or will be, of no use. Look for a division by zero, a log of zero or a learning rate that is too "
            "high (torch.autograd.set_detect_anomaly(True) finds the operation)"
        )
        if self._engine.on_nonfinite == "raise":
            raise StepError(f"{text}; on_nonfinite='raise' ends the run here.")
        self._warned_of_nan = True
        warnings.warn(f"{text}; Trainer(on_nonfinite='raise') ends such runs.", stacklevel=2)
