"""Loggers: where the metrics and hyperparameters of a run are written."""

from lightjax.loggers.csv import CSVLogger
from lightjax.loggers.logger import Logger, LoggerCollection
from lightjax.loggers.tensorboard import TensorBoardLogger

__all__ = ["CSVLogger", "Logger", "LoggerCollection", "TensorBoardLogger"]
