"""Callbacks under the names and with the arguments that Lightning programs use."""

from __future__ import annotations

import os
from typing import Any

import lightjax
from lightjax.callbacks import Callback

__all__ = ["Callback", "EarlyStopping", "ModelCheckpoint"]


class EarlyStopping(lightjax.EarlyStopping):
    """`lightjax.EarlyStopping`; takes `verbose` and the like, which say nothing about when to stop."""

    def __init__(self, monitor: str, *args: Any, verbose: bool = False, **kwargs: Any) -> None:
        for name in ("check_on_train_epoch_end", "log_rank_zero_only"):
            kwargs.pop(name, None)
        super().__init__(monitor, *args, **kwargs)


class ModelCheckpoint(lightjax.ModelCheckpoint):
    """`lightjax.ModelCheckpoint`, with the order of arguments and the names of results that Lightning programs use.

    Args:
      dirpath: as for `lightjax.ModelCheckpoint`.
      filename: likewise.
      monitor: likewise.
      verbose: ignored.
      **kwargs: likewise; what only says how Lightning writes files is ignored.

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
        super().__init__(monitor, dirpath=dirpath, filename=filename, **given)

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
