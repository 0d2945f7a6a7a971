"""Callbacks: what looks at a run, and when."""

from lightjax.callbacks.callback import Callback
from lightjax.callbacks.device_stats_monitor import DeviceStatsMonitor
from lightjax.callbacks.early_stopping import EarlyStopping
from lightjax.callbacks.finetuning import Finetuning
from lightjax.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from lightjax.callbacks.lambda_callback import LambdaCallback
from lightjax.callbacks.learning_rate_monitor import LearningRateMonitor
from lightjax.callbacks.model_checkpoint import ModelCheckpoint
from lightjax.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from lightjax.callbacks.prediction_writer import PredictionWriter
from lightjax.callbacks.pruning import Pruning
from lightjax.callbacks.spike_detection import SpikeDetection
from lightjax.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from lightjax.callbacks.throughput_monitor import ThroughputMonitor
from lightjax.callbacks.timer import Timer
from lightjax.callbacks.weight_averaging import EMA, WeightAveraging

__all__ = [
    "EMA",
    "Callback",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "Finetuning",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "OnExceptionCheckpoint",
    "PredictionWriter",
    "Pruning",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]
