"""Callbacks: what looks at a run, and when."""

from lightjax.callbacks.callback import Callback
from lightjax.callbacks.early_stopping import EarlyStopping
from lightjax.callbacks.model_checkpoint import ModelCheckpoint

__all__ = ["Callback", "EarlyStopping", "ModelCheckpoint"]
