"""EarlyStopping: ends a run when a metric stops improving."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import jax

from lightjax.callbacks.callback import Callback, Stage
from lightjax.errors import ConfigurationError

if TYPE_CHECKING:
    from lightjax.run import Run


class EarlyStopping(Callback):
    """Stops when a metric has not improved for a while.

    Looks whenever the metric is new: after each evaluation for `val/...` names, at the end of each epoch for
    `train/...` names. Others, such as those that LightningModules and callbacks log, are looked at after evaluations
    where these do not come once at the end of every epoch, and else at the ends of epochs.

    Args:
      monitor: name of the metric, such as "val/loss".
      min_delta: an improvement smaller than this does not count.
      patience: looks without improvement after which the run ends.
      mode: "min" or "max".
      strict: raise when nobody reports the metric; otherwise wait for it.
      check_finite: end the run when the metric is NaN or infinite.
      stopping_threshold: end the run once the metric is better than this.
      divergence_threshold: end the run once the metric is worse than this.
      check_on_train_epoch_end: look at the ends of epochs (True) or after evaluations (False), whatever the name is.
      verbose: say in a line what each look found.
      log_rank_zero_only: say it on the first process only.

    Attributes:
      best: the best value so far.
      wait: looks since it improved.

    Example:
      >>> import lightjax as lj
      >>> callback = lj.EarlyStopping("val/loss", patience=3)
      >>> callback.judge(1.0), callback.judge(float("nan"))
      (None, 'val/loss is nan')
    """

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        mode: Literal["min", "max"] = "min",
        *,
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        verbose: bool = False,
        log_rank_zero_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigurationError(f"EarlyStopping got mode={mode!r}; write mode='min' or mode='max'.")
        if patience < 0 or min_delta < 0:
            raise ConfigurationError(
                f"EarlyStopping got patience={patience}, min_delta={min_delta}; neither can be negative."
            )
        self.monitor = monitor
        self.min_delta = min_delta
        self.patience = patience
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.check_on_train_epoch_end = check_on_train_epoch_end
        self.looks_after_validation = monitor.startswith("val/") and not check_on_train_epoch_end
        self.verbose = verbose
        self.log_rank_zero_only = log_rank_zero_only
        self._forget()

    def setup(self, run: Run, stage: Stage) -> None:
        """Forgets an earlier run, and finds out when the metric is new in this one."""
        if stage == "fit":
            self._forget()
            self.looks_after_validation = self._is_new_after_validation(run)

    def on_validation_end(self, run: Run) -> None:
        """Judges a metric of the evaluation."""
        if self.looks_after_validation and run.stage == "fit" and not run.sanity_checking:
            self._look(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Judges a metric of the epoch."""
        if not self.looks_after_validation:
            self._look(run)

    def judge(self, value: float) -> str | None:
        """Takes in a new value of the metric.

        Returns:
          Why the run should end, or None.
        """
        if self.check_finite and not math.isfinite(value):
            return f"{self.monitor} is {value}"
        if self.stopping_threshold is not None and self._better(value, self.stopping_threshold):
            return f"{self.monitor} = {value:.6g} is better than {self.stopping_threshold:.6g}"
        if self.divergence_threshold is not None and self._better(self.divergence_threshold, value):
            return f"{self.monitor} = {value:.6g} is worse than {self.divergence_threshold:.6g}"
        if self._better(value, self.best, self.min_delta):
            self.best, self.wait = value, 0
            return None
        self.wait += 1
        if self.wait >= self.patience:
            return f"{self.monitor} did not improve on {self.best:.6g} in {self.wait} looks"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value and the looks since."""
        return {"best": self.best, "wait": self.wait}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a best value."""
        self.best, self.wait = state["best"], state["wait"]

    def _forget(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.wait = 0

    def _is_new_after_validation(self, run: Run) -> bool:
        if self.check_on_train_epoch_end is not None:
            return not self.check_on_train_epoch_end
        name, trainer = run.meant.get(self.monitor, self.monitor), run.trainer
        if name.startswith(("val/", "train/")):
            return name.startswith("val/")
        once_an_epoch = trainer.val_check_interval in (None, 1.0) and trainer.check_val_every_n_epoch == 1
        return run.validates and not once_an_epoch

    def _look(self, run: Run) -> None:
        if (value := run.fresh(self.monitor, strict=self.strict, who="EarlyStopping")) is None:
            return
        reason = self.judge(value)
        if self.verbose and (jax.process_index() == 0 or not self.log_rank_zero_only):
            found = reason or (
                "the best so far" if self.wait == 0 else f"{self.best:.6g} was better, {self.wait} looks ago"
            )
            run.print(f"EarlyStopping: {self.monitor} = {value:.6g} at step {run.step}: {found}")
        if reason:
            run.stop(f"early_stopping: {reason}")

    def _better(self, value: float, than: float, by: float = 0.0) -> bool:
        return value < than - by if self.mode == "min" else value > than + by
