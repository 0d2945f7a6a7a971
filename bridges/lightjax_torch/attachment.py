"""Attachment: while the engine runs a module, the module's `self.trainer` and `self.log` are the engine's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lightjax_torch.module import LightningModule

_LENT = ("log", "log_dict")


def attached(module: torch.nn.Module, trainer: Any, log: Callable[..., None], log_dict: Callable[..., None]) -> None:
    """Lends a module the trainer and the ways to log.

    A module that is no LightningModule is one for as long: its class gets what `LightningModule` offers to steps and
    hooks and the class does not define. A class with a `log` of its own keeps it: its `super().log` is what is lent.

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
    lent = dict(zip(_LENT, (log, log_dict), strict=True))
    for part in module.modules():
        if not hasattr(type(part), "manual_backward"):
            continue
        # Around nn.Module's own attributes, and around the property of Lightning's.
        part.__dict__["_trainer"] = trainer
        base = _defines(type(part), "manual_backward")
        own = {name: one for name, one in lent.items() if _defines(type(part), name) is not base}
        part.__dict__.update({name: one for name, one in lent.items() if name not in own})
        if own:
            part.__class__ = _lending(type(part), base, own)


def _defines(kind: type, name: str) -> type:
    return next(one for one in kind.__mro__ if name in one.__dict__)


def _lending(kind: Any, base: type, lent: Mapping[str, Callable[..., None]]) -> type:
    """Makes a class whose own methods find what is lent, in the place of that of `base`, where they call `super()`."""

    def method(call: Callable[..., None]) -> Callable[..., None]:
        return lambda self, *arguments, **keywords: call(*arguments, **keywords)

    under = type(
        base.__name__, (base,), {name: method(one) for name, one in lent.items()} | {"__module__": base.__module__}
    )
    return type(kind.__name__, (kind, under), {"_lent_to": kind, "__module__": kind.__module__})


def detached(module: torch.nn.Module) -> None:
    """Takes back what was lent; the trainer stays known, as in Lightning."""
    for part in module.modules():
        for name in _LENT:
            part.__dict__.pop(name, None)
        if (lent_to := type(part).__dict__.get("_lent_to")) is not None:
            part.__class__ = lent_to
    if (plain := type(module).__dict__.get("_plain")) is not None:
        module.__dict__.pop("_trainer", None)
        module.__class__ = plain
