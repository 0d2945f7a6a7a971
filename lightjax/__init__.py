"""lightjax: a trainer for models written as pure functions."""

from lightjax import distributed, tune
from lightjax.callbacks import (
    EMA,
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    Finetuning,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    PredictionWriter,
    Pruning,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    WeightAveraging,
)
from lightjax.callbacks.around_optimizer import averaged
from lightjax.checkpoint import Checkpoint, Checkpointer, Checkpoints, LoadReport, load_params, restore
from lightjax.classification import ConfusionMatrix, F1Score, Perplexity, PrecisionScore, RecallScore, TopKAccuracy
from lightjax.data.array_loader import ArrayLoader
from lightjax.data.combined_loader import CombinedLoader
from lightjax.data.module import DataModule
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
from lightjax.layers import summarize_layers
from lightjax.loggers import (
    ClearMLLogger,
    CometLogger,
    CSVLogger,
    JSONLinesLogger,
    Logger,
    MLflowLogger,
    NeptuneLogger,
    PolyaxonLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightjax.loss_scale import LossScaling
from lightjax.metrics import Accuracy, Last, Max, Mean, Metric, Min, Sum
from lightjax.plan import Plan
from lightjax.policy import Policy
from lightjax.precision import Precision
from lightjax.remat import remat
from lightjax.result import FitResult
from lightjax.run import Run
from lightjax.seeding import seed_everything
from lightjax.sharding import Sharded, shard_batch
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
    "ClearMLLogger",
    "CombinedLoader",
    "CometLogger",
    "ConfigurationError",
    "ConfusionMatrix",
    "DataError",
    "DataModule",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "F1Score",
    "Finetuning",
    "FitResult",
    "GradientAccumulationScheduler",
    "JSONLinesLogger",
    "LambdaCallback",
    "Last",
    "LearningRateMonitor",
    "LightjaxError",
    "LoadReport",
    "Logger",
    "LossScaling",
    "MLflowLogger",
    "Max",
    "Mean",
    "Metric",
    "MetricError",
    "Min",
    "ModelCheckpoint",
    "NeptuneLogger",
    "NonfiniteError",
    "OnExceptionCheckpoint",
    "Perplexity",
    "Plan",
    "Policy",
    "PolyaxonLogger",
    "Precision",
    "PrecisionScore",
    "PredictionWriter",
    "Pruning",
    "RecallScore",
    "RecompileError",
    "Run",
    "Sharded",
    "SpikeDetection",
    "StepError",
    "StochasticWeightAveraging",
    "Sum",
    "Task",
    "TaskLike",
    "TensorBoardLogger",
    "ThroughputMonitor",
    "Timer",
    "TopKAccuracy",
    "TrainState",
    "Trainer",
    "WandbLogger",
    "WeightAveraging",
    "averaged",
    "distributed",
    "grad",
    "load_params",
    "remat",
    "restore",
    "seed_everything",
    "shard_batch",
    "summarize",
    "summarize_layers",
    "tune",
    "value_and_grad",
]
