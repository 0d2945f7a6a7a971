"""lightjax_torch: PyTorch programs in the lightjax trainer."""

from lightjax_torch.arrays import ConversionError, to_jax, to_torch

__all__ = ["ConversionError", "to_jax", "to_torch"]
