"""Layouts: where the leaves of a state and the rows of a batch lie."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from lightjax.engine.program import Steps


class Layout(Protocol):
    """Says where everything a program takes and gives lies."""

    @property
    def platform(self) -> str:
        """The kind of device: "cpu", "gpu", "tpu"."""
        ...

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """Where small things lie: whole, wherever steps run."""
        ...

    def state(self, shapes: Any) -> Any:
        """Returns the sharding of every leaf of a state (or one for all)."""
        ...

    def steps(self, steps: Steps) -> Any:
        """Returns the sharding of every array of a stretch (or one for all)."""
        ...

    def batch(self, batch: Any) -> Any:
        """Returns the sharding of every leaf of a single batch (or one for all)."""
        ...

    def scope(self) -> AbstractContextManager[Any]:
        """Returns the context in which steps are traced and lowered."""
        ...


@dataclass(frozen=True)
class OneDevice:
    """Everything lies on one device."""

    device: Any

    @property
    def platform(self) -> str:
        """The kind of device."""
        return self.device.platform

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """The device."""
        return jax.sharding.SingleDeviceSharding(self.device)

    def state(self, shapes: Any) -> Any:
        """The device."""
        return self.replicated

    def steps(self, steps: Steps) -> Any:
        """The device."""
        return self.replicated

    def batch(self, batch: Any) -> Any:
        """The device."""
        return self.replicated

    def scope(self) -> AbstractContextManager[Any]:
        """No context."""
        return nullcontext()
