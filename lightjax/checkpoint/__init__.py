"""Checkpoints: what is saved, where, and how it comes back."""

from lightjax.checkpoint.catalog import find, newest_whole, steps_in
from lightjax.checkpoint.checkpoint import Checkpoint, Checkpoints, restore
from lightjax.checkpoint.checkpointer import Checkpointer
from lightjax.checkpoint.parameters import LoadReport, load_params

__all__ = [
    "Checkpoint",
    "Checkpointer",
    "Checkpoints",
    "LoadReport",
    "find",
    "load_params",
    "newest_whole",
    "restore",
    "steps_in",
]
