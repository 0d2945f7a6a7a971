"""Loggers under the names and with the arguments that Lightning programs use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightjax

__all__ = ["CSVLogger", "TensorBoardLogger"]


class CSVLogger(lightjax.CSVLogger):
    """`lightjax.CSVLogger` in `save_dir/name`."""

    def __init__(self, save_dir: str | os.PathLike[str], name: str | None = "lightning_logs", **kwargs: Any) -> None:
        super().__init__(Path(save_dir) / (name or ""))


class TensorBoardLogger(lightjax.TensorBoardLogger):
    """`lightjax.TensorBoardLogger` in `save_dir/name`."""

    def __init__(self, save_dir: str | os.PathLike[str], name: str | None = "lightning_logs", **kwargs: Any) -> None:
        super().__init__(Path(save_dir) / (name or ""))
