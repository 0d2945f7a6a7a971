"""lightjax_torch: PyTorch programs in the lightjax trainer."""

from lightjax_torch import callbacks, loggers
from lightjax_torch.arrays import ConversionError, to_jax, to_torch
from lightjax_torch.bridge import from_torch
from lightjax_torch.callbacks import EarlyStopping, ModelCheckpoint
from lightjax_torch.errors import CaptureError, UnsupportedOperatorError
from lightjax_torch.function import jax_function
from lightjax_torch.layers import summarize_layers
from lightjax_torch.lightning_checkpoint import read_checkpoint
from lightjax_torch.lowering import register_lowering
from lightjax_torch.module import LightningDataModule, LightningModule
from lightjax_torch.port import port_task
from lightjax_torch.seeds import seed_everything
from lightjax_torch.state import TorchState
from lightjax_torch.trainer import Trainer

__all__ = [
    "CaptureError",
    "ConversionError",
    "EarlyStopping",
    "LightningDataModule",
    "LightningModule",
    "ModelCheckpoint",
    "TorchState",
    "Trainer",
    "UnsupportedOperatorError",
    "callbacks",
    "from_torch",
    "jax_function",
    "loggers",
    "port_task",
    "read_checkpoint",
    "register_lowering",
    "seed_everything",
    "summarize_layers",
    "to_jax",
    "to_torch",
]
