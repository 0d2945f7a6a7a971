"""Calls in flight: how far the host may run ahead of the device."""

from __future__ import annotations

from collections import deque
from typing import Any

import jax

# Enough that the device never idles between calls, few enough that memory and the time to react stay small.
CALLS_IN_FLIGHT = 4


def bound(in_flight: deque[Any], newest: Any, limit: int) -> None:
    """Waits until few calls are unfinished: queues cost memory, and simulated devices lock up in long ones."""
    in_flight.append(newest)
    if len(in_flight) > limit:
        jax.block_until_ready(in_flight.popleft())
