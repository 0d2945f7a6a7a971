"""Callbacks: what looks at a run, and when."""

from lightjax.callbacks.callback import Callback
from lightjax.callbacks.early_stopping import EarlyStopping
from lightjax.callbacks.learning_rate_monitor import LearningRateMonitor
from lightjax.callbacks.model_checkpoint import ModelCheckpoint
from lightjax.callbacks.weight_averaging import EMA, WeightAveraging

__all__ = ["EMA", "Callback", "EarlyStopping", "LearningRateMonitor", "ModelCheckpoint", "WeightAveraging"]
