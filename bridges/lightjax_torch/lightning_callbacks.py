"""Callbacks of Lightning's class, as people write them: `on_fit_start(trainer, pl_module)` and its siblings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightjax
from lightjax.callbacks import Callback
from lightjax.errors import ConfigurationError

PACKAGES = ("lightning.pytorch.callbacks.", "pytorch_lightning.callbacks.")


def parted(callbacks: Iterable[Any], whose: str) -> tuple[list[Callback], list[Any]]:
    """Parts callbacks into those of lightjax and those of Lightning's class.

    Args:
      callbacks: both.
      whose: they are, for the message.

    Raises:
      ConfigurationError: one is neither; or it is one that comes with Lightning, or a subclass of such: they reach deep
        into Lightning's trainer.
    """
    ours: list[Callback] = []
    theirs: list[Any] = []
    for one in callbacks:
        if isinstance(one, Callback):
            ours.append(one)
            continue
        kinds = [kind for kind in type(one).__mro__ if kind.__module__.startswith(PACKAGES)]
        if [kind.__name__ for kind in kinds] == ["Callback"]:
            theirs.append(one)
            continue
        name = kinds[0].__name__ if kinds else ""
        instead = f"lj.{name}" if hasattr(lightjax, name) and name else "lj.EarlyStopping, lj.ModelCheckpoint"
        raise ConfigurationError(
            f"{whose} {type(one).__name__} of {type(one).__module__}, which "
            + ("belongs to Lightning's own trainer; " if kinds else "is no callback; ")
            + f"give {instead}, or a subclass of lj.Callback or of lightning's Callback."
        )
    return ours, theirs
