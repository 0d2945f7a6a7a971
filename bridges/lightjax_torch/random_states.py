"""The states of the global random generators that torch programs draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def states() -> dict[str, Any]:
    """Returns the states of Python's, numpy's and torch's generators, those of every GPU included."""
    found = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_states(found: dict[str, Any]) -> None:
    """Puts the generators back to where they were."""
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    torch.set_rng_state(found["torch"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(found["cuda"])


@contextmanager
def isolated() -> Iterator[None]:
    """While entered, what is drawn is drawn in vain: afterwards the generators are where they were."""
    before = states()
    try:
        yield
    finally:
        set_states(before)
