"""Counterparts of callbacks that come with Lightning: they do what these say, and show in them what they found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lightjax.callbacks import Callback
from lightjax.callbacks.callback import Stage
from lightjax_torch.callbacks import EarlyStopping, ModelCheckpoint

if TYPE_CHECKING:
    from lightjax.run import Run


class EarlyStoppingFor(EarlyStopping):
    """Stops as Lightning's `EarlyStopping` says; shows `wait_count`, `best_score` and `stopped_epoch` in it.

    Args:
      given: Lightning's.
    """

    def __init__(self, given: Any) -> None:
        super().__init__(
            given.monitor,
            abs(given.min_delta),
            given.patience,
            bool(given.verbose),
            given.mode,
            strict=given.strict,
            check_finite=given.check_finite,
            stopping_threshold=given.stopping_threshold,
            divergence_threshold=given.divergence_threshold,
            check_on_train_epoch_end=given._check_on_train_epoch_end,
            log_rank_zero_only=given.log_rank_zero_only,
        )
        self._given = given

    def on_validation_end(self, run: Run) -> None:
        """Judges a metric of the evaluation."""
        super().on_validation_end(run)
        self._show(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Judges a metric of the epoch."""
        super().on_train_epoch_end(run)
        self._show(run)

    def _show(self, run: Run) -> None:
        given = self._given
        given.wait_count, given.best_score = self.wait, torch.tensor(self.best)
        if not given.stopped_epoch and (run.stopped_by or "").startswith("early_stopping"):
            given.stopped_epoch = run.epoch


class ModelCheckpointFor(ModelCheckpoint):
    """Saves as Lightning's `ModelCheckpoint` says; shows paths and scores in it.

    Checkpoints are whole, whatever `save_weights_only` says, and an error saves one, too.

    Args:
      given: Lightning's.
    """

    def __init__(self, given: Any) -> None:
        super().__init__(
            given.dirpath,
            given.filename,
            given.monitor,
            bool(given.verbose),
            mode=given.mode,
            save_top_k=given.save_top_k,
            save_last=None if given.save_last is None else bool(given.save_last),
            auto_insert_metric_name=given.auto_insert_metric_name,
            every_n_train_steps=given._every_n_train_steps,
            train_time_interval=given._train_time_interval,
            every_n_epochs=given._every_n_epochs,
            save_on_train_epoch_end=given._save_on_train_epoch_end,
        )
        self._given = given

    def save(self, run: Run) -> None:
        """Saves this step."""
        super().save(run)
        self._show()

    def on_fit_end(self, run: Run) -> None:
        """Saves the step the run ends with."""
        super().on_fit_end(run)
        self._show()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the ranking back."""
        super().load_state_dict(state)
        self._show()

    def _show(self) -> None:
        given, sign = self._given, 1.0 if self.mode == "min" else -1.0
        ranked = {str(self._saved[step].path): torch.tensor(sign * score) for score, step in self._ranked}
        given.best_model_path, given.last_model_path = self.best_model_path, self.last_model_path
        if self.monitor is None:
            return
        given.best_k_models = ranked
        if ranked:
            given.best_model_score = next(iter(ranked.values()))
            given.kth_best_model_path, given.kth_value = next(reversed(ranked.items()))
        newest = "" if self.last is None else str(self.last.path)
        given.current_score = ranked.get(newest, given.current_score)


class LearningRatesFor(Callback):
    """Reports learning rates as Lightning's `LearningRateMonitor` says, under its names ("lr-Adam"); fills its `lrs`.

    Args:
      given: Lightning's.
    """

    def __init__(self, given: Any) -> None:
        self._given = given

    def setup(self, run: Run, stage: Stage) -> None:
        """Forgets an earlier run."""
        if stage == "fit":
            self._given.lrs = {}

    def on_train_batch_start(self, run: Run) -> None:
        """Reports the rates before a step that is logged."""
        interval = self._given.logging_interval
        if interval != "epoch" and (run.step + 1) % run.trainer.log_every_n_steps == 0:
            self._report(run, "step" if interval is None else "any")

    def on_train_epoch_start(self, run: Run) -> None:
        """Reports the rates of an epoch."""
        interval = self._given.logging_interval
        if interval != "step" and not run.batch:
            self._report(run, "epoch" if interval is None else "any")

    def _report(self, run: Run, interval: str) -> None:
        view: Any = run.trainer._engine.view  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        if found := self._given._extract_stats(view, interval):
            run.log({name: float(value) for name, value in found.items()})
