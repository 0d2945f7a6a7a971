"""Loggers: where the metrics and hyperparameters of a run are written."""

from lightjax.loggers.background import Background, in_background
from lightjax.loggers.clearml import ClearMLLogger
from lightjax.loggers.comet import CometLogger
from lightjax.loggers.csv import CSVLogger
from lightjax.loggers.json_lines import JSONLinesLogger
from lightjax.loggers.logger import Logger, LoggerCollection
from lightjax.loggers.mlflow import MLflowLogger
from lightjax.loggers.neptune import NeptuneLogger
from lightjax.loggers.polyaxon import PolyaxonLogger
from lightjax.loggers.tensorboard import TensorBoardLogger
from lightjax.loggers.wandb import WandbLogger

__all__ = [
    "Background",
    "CSVLogger",
    "ClearMLLogger",
    "CometLogger",
    "JSONLinesLogger",
    "Logger",
    "LoggerCollection",
    "MLflowLogger",
    "NeptuneLogger",
    "PolyaxonLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "in_background",
]
