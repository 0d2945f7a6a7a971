"""Tuning: what to try before a training, without side effects."""

from lightjax.tune.batch_size import BatchSizeFinding, find_batch_size
from lightjax.tune.learning_rate import LearningRateFinding, find_lr

__all__ = ["BatchSizeFinding", "LearningRateFinding", "find_batch_size", "find_lr"]
