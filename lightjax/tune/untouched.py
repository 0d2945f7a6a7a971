"""Untouched: what trying things out would change is put back."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from lightjax.data import passes


@contextmanager
def untouched(*loaders: Any) -> Iterator[None]:
    """Puts random generators and the places of loaders back to where they were.

    Those of Python, numpy and torch (where it is imported), a loader's own, and what `state_dict` keeps. An iterator
    can be passed over only once, whoever does it.
    """
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()
    chance = None if torch is None else torch.get_rng_state()
    marks = [passes.mark_of_generators(loader) for loader in loaders]
    stateful = [hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") for loader in loaders]
    kept = [
        copy.deepcopy(loader.state_dict()) if known else None for loader, known in zip(loaders, stateful, strict=True)
    ]
    counters = [getattr(loader, "_next_epoch", None) for loader in loaders]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None:
            torch.set_rng_state(chance)
        for loader, mark, known, state, counter in zip(loaders, marks, stateful, kept, counters, strict=True):
            if mark is not None:
                passes.set_generators(loader, mark)
            if known:
                loader.load_state_dict(state)
            if counter is not None:
                loader._next_epoch = counter
