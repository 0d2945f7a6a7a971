"""The choice of loggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightjax.loggers.clearml import ClearMLLogger
from lightjax.loggers.comet import CometLogger
from lightjax.loggers.csv import CSVLogger
from lightjax.loggers.json_lines import JSONLinesLogger
from lightjax.loggers.logger import Logger
from lightjax.loggers.mlflow import MLflowLogger
from lightjax.loggers.neptune import NeptuneLogger
from lightjax.loggers.polyaxon import PolyaxonLogger
from lightjax.loggers.tensorboard import TensorBoardLogger
from lightjax.loggers.wandb import WandbLogger

LOGGERS: dict[str, Callable[[], Logger]] = {
    "csv": CSVLogger,
    "tensorboard": TensorBoardLogger,
    "jsonl": JSONLinesLogger,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
    "comet": CometLogger,
    "neptune": NeptuneLogger,
    "polyaxon": PolyaxonLogger,
    "clearml": ClearMLLogger,
}


def make_loggers(wanted: bool | str | Logger | Sequence[str | Logger] | None) -> list[Any]:
    """Makes the loggers of a trainer.

    Args:
      wanted: True for CSV and TensorBoard files; False or None for none; a name of `LOGGERS`, a logger, or a list.

    Returns:
      The loggers; what is no logger and no known name stays as it is, for `logger_conflict` to speak of.
    """
    if wanted is True:
        return [TensorBoardLogger(), CSVLogger()]
    if wanted is None or wanted is False:
        return []
    several = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    return [LOGGERS[one]() if isinstance(one, str) and one in LOGGERS else one for one in several]


def logger_conflict(logger: object) -> str | None:
    """Says what is wrong with a logger; None where nothing is."""
    if isinstance(logger, type):
        return f"logger holds the class {logger.__name__}: give one of it, {logger.__name__}()"
    if isinstance(logger, Logger):
        return None
    if isinstance(logger, str):
        names = ", ".join(f"'{name}'" for name in LOGGERS)
        return f"logger holds {logger!r}, which is no logger's name: write one of {names}, or an object"
    return f"logger holds {logger!r}, which is no logger: it needs log_metrics, log_hyperparams and finish"
