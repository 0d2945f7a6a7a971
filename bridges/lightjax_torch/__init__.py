"""lightjax_torch: PyTorch programs in the lightjax trainer."""

from lightjax_torch.arrays import ConversionError, to_jax, to_torch
from lightjax_torch.errors import CaptureError, UnsupportedOperatorError
from lightjax_torch.function import jax_function
from lightjax_torch.lowering import register_lowering
from lightjax_torch.port import port_task

__all__ = [
    "CaptureError",
    "ConversionError",
    "UnsupportedOperatorError",
    "jax_function",
    "port_task",
    "register_lowering",
    "to_jax",
    "to_torch",
]
