"""Attachment: while the engine runs a module, the module's `self.trainer` and `self.log` are the engine's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightjax_torch.module import LightningModule

_LENT = ("log", "log_dict")


def attached(module: torch.nn.Module, trainer: Any, log: Callable[..., None], log_dict: Callable[..., None]) -> None:
    """Lends a module the trainer and the ways to log.

    A module that is no LightningModule is one for as long: its class gets what `LightningModule` offers to steps and
    hooks and the class does not define.

    Args:
      module: a LightningModule, or any module with its methods.
      trainer: what `self.trainer` shall be.
      log: what `self.log` shall be.
      log_dict: what `self.log_dict` shall be.
    """
    if not hasattr(type(module), "manual_backward"):
        plain: Any = type(module)
        module.__class__ = type(
            plain.__name__, (plain, LightningModule), {"_plain": plain, "__module__": plain.__module__}
        )
    for part in module.modules():
        if hasattr(type(part), "manual_backward"):
            # Around nn.Module's own attributes, and around the property of Lightning's.
            part.__dict__.update(_trainer=trainer, log=log, log_dict=log_dict)


def detached(module: torch.nn.Module) -> None:
    """Takes back what was lent; the trainer stays known, as in Lightning."""
    for part in module.modules():
        for name in _LENT:
            part.__dict__.pop(name, None)
    if (plain := type(module).__dict__.get("_plain")) is not None:
        module.__dict__.pop("_trainer", None)
        module.__class__ = plain
