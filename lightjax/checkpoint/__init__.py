"""Checkpoints: what is saved, where, and how it comes back."""

from lightjax.checkpoint.catalog import find, newest_whole, steps_in
from lightjax.checkpoint.checkpoint import Checkpoint, Checkpoints, restore
from lightjax.checkpoint.checkpointer import Checkpointer

__all__ = ["Checkpoint", "Checkpointer", "Checkpoints", "find", "newest_whole", "restore", "steps_in"]
