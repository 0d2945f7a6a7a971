"""Layouts: where the leaves of a state and the rows of a batch lie."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from lightjax.data.share import Share
from lightjax.engine.in_flight import CALLS_IN_FLIGHT
from lightjax.engine.program import Steps


class Layout(Protocol):
    """Says where everything a program takes and gives lies."""

    @property
    def platform(self) -> str:
        """The kind of device: "cpu", "gpu", "tpu"."""
        ...

    @property
    def device(self) -> Any:
        """One of the devices, of this process where there are several."""
        ...

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """Where small things lie: whole, wherever steps run."""
        ...

    def state(self, shapes: Any) -> Any:
        """Returns the sharding of every leaf of a state."""
        ...

    def steps(self, steps: Steps) -> Any:
        """Returns the sharding of every array of a stretch (or one for all)."""
        ...

    def batch(self, batch: Any) -> Any:
        """Returns the sharding of every leaf of a single batch (or one for all)."""
        ...

    def mapped(self, step: Callable[..., Any], *, rows: bool = False) -> Callable[..., Any]:
        """Returns a step of the user's as one over all devices.

        Args:
          step: `(state, batch)` to `(state, metrics)`, to metrics, or to rows.
          rows: whether it returns one row an example.
        """
        ...

    def held(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a train or eval step that says inside of a program where its state and batch lie."""
        ...

    def put(self, steps: Steps, control: Any, parts: int) -> tuple[Steps, Any]:
        """Puts a stretch, and what its program has to know, on the devices; does not wait.

        Args:
          steps: on the host, or on the devices.
          control: a small host array.
          parts: into how many parts the rows of batches are cut, one of which this process has.
        """
        ...

    def put_batch(self, batch: Any) -> Any:
        """Puts a batch that every process has whole on the devices."""
        ...

    def put_state(self, state: Any) -> Any:
        """Puts a state where its leaves are to lie."""
        ...

    def scope(self) -> AbstractContextManager[Any]:
        """Returns the context in which steps are traced and lowered."""
        ...

    @property
    def share(self) -> Share:
        """What of the data this process reads."""
        ...

    @property
    def calls_in_flight(self) -> int:
        """How many calls may be unfinished."""
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
        return jax.tree.map(lambda _: self.replicated, shapes)

    def steps(self, steps: Steps) -> Any:
        """The device."""
        return self.replicated

    def batch(self, batch: Any) -> Any:
        """The device."""
        return self.replicated

    def mapped(self, step: Callable[..., Any], *, rows: bool = False) -> Callable[..., Any]:
        """The step."""
        return step

    def held(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step."""
        return step

    def put(self, steps: Steps, control: Any, parts: int) -> tuple[Steps, Any]:
        """One transfer."""
        return jax.device_put((steps, control), self.replicated)

    def put_batch(self, batch: Any) -> Any:
        """One transfer."""
        return jax.device_put(batch, self.replicated)

    def put_state(self, state: Any) -> Any:
        """One transfer."""
        return jax.device_put(state, self.replicated)

    def scope(self) -> AbstractContextManager[Any]:
        """No context."""
        return nullcontext()

    @property
    def share(self) -> Share:
        """Everything."""
        return Share(self.replicated)

    @property
    def calls_in_flight(self) -> int:
        """A few."""
        return CALLS_IN_FLIGHT
