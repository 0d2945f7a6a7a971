"""Callbacks under the names and with the arguments that Lightning programs use."""

from __future__ import annotations

import os
from typing import Any, Literal

import lightjax
from lightjax.callbacks import Callback

__all__ = ["Callback", "EarlyStopping", "ModelCheckpoint"]


class EarlyStopping(lightjax.EarlyStopping):
    """`lightjax.EarlyStopping`, with the order of arguments that Lightning programs use."""

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = True,
    ) -> None:
        super().__init__(
            monitor,
            min_delta,
            patience,
            mode,
            strict=strict,
            check_finite=check_finite,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_on_train_epoch_end=check_on_train_epoch_end,
            verbose=verbose,
            log_rank_zero_only=log_rank_zero_only,
        )


class ModelCheckpoint(lightjax.ModelCheckpoint):
    """`lightjax.ModelCheckpoint`, with the order of arguments and the names of results that Lightning programs use.

    Args:
      dirpath: as for `lightjax.ModelCheckpoint`.
      filename: likewise.
      monitor: likewise.
      verbose: likewise.
      **kwargs: likewise; what only says how Lightning writes files is ignored. Where steps or times are given, no
        epochs are saved unless they are asked for as well.

    Attributes:
      best_model_path: the directory of the best checkpoint; "" without one.
      best_model_score: the metric of the best one; None without one.
      last_model_path: the directory of the newest checkpoint; "" without one.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        for name in ("save_weights_only", "enable_version_counter"):
            kwargs.pop(name, None)
        given = {name: value for name, value in kwargs.items() if value is not None}
        if given.get("every_n_train_steps") or "train_time_interval" in given:
            given.setdefault("every_n_epochs", 0)
        super().__init__(monitor, dirpath=dirpath, filename=filename, verbose=verbose, **given)

    @property
    def best_model_path(self) -> str:  # noqa: D102 (an attribute, documented with the class)
        best = self.best or self.last
        return "" if best is None else str(best.path)

    @property
    def last_model_path(self) -> str:  # noqa: D102 (an attribute, documented with the class)
        return "" if self.last is None else str(self.last.path)

    @property
    def best_model_score(self) -> float | None:  # noqa: D102 (an attribute, documented with the class)
        return None if self.best is None or self.monitor is None else self.best.metrics.get(self.monitor)
