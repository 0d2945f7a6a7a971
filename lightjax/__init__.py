"""lightjax: a trainer for models written as pure functions."""

from lightjax.callbacks import (
    EMA,
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    WeightAveraging,
)
from lightjax.callbacks.around_optimizer import averaged
from lightjax.checkpoint import Checkpoint, Checkpointer, Checkpoints, LoadReport, load_params, restore
from lightjax.data.array_loader import ArrayLoader
from lightjax.data.combined_loader import CombinedLoader
from lightjax.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    LightjaxError,
    MetricError,
    NonfiniteError,
    RecompileError,
    StepError,
)
from lightjax.gradient import grad, value_and_grad
from lightjax.loggers import CSVLogger, Logger, TensorBoardLogger
from lightjax.loss_scale import LossScaling
from lightjax.metrics import Accuracy, Last, Max, Mean, Metric, Min, Sum
from lightjax.policy import Policy
from lightjax.precision import Precision
from lightjax.remat import remat
from lightjax.result import FitResult
from lightjax.run import Run
from lightjax.state import TrainState
from lightjax.summary import summarize
from lightjax.task import Task, TaskLike
from lightjax.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "EMA",
    "Accuracy",
    "ArrayLoader",
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "Checkpointer",
    "Checkpoints",
    "CombinedLoader",
    "ConfigurationError",
    "DataError",
    "EarlyStopping",
    "FitResult",
    "Last",
    "LearningRateMonitor",
    "LightjaxError",
    "LoadReport",
    "Logger",
    "LossScaling",
    "Max",
    "Mean",
    "Metric",
    "MetricError",
    "Min",
    "ModelCheckpoint",
    "NonfiniteError",
    "Policy",
    "Precision",
    "RecompileError",
    "Run",
    "StepError",
    "Sum",
    "Task",
    "TaskLike",
    "TensorBoardLogger",
    "TrainState",
    "Trainer",
    "WeightAveraging",
    "averaged",
    "grad",
    "load_params",
    "remat",
    "restore",
    "summarize",
    "value_and_grad",
]
