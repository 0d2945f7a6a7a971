"""Seeding: one number for every random generator of a program."""

from __future__ import annotations

import os
import random
import sys

import numpy as np

from lightjax.errors import ConfigurationError

VARIABLE = "LIGHTJAX_GLOBAL_SEED"


def seed_everything(seed: int = 0) -> int:
    """Seeds the generators of Python, numpy and, where it is imported, torch, and trainers that are given no seed.

    JAX has no generator of its own: `Trainer(seed=...)` makes the key that `init` receives, and `ArrayLoader(seed=...)`
    its order. A trainer without a seed takes this one; processes started from here inherit it.

    Args:
      seed: from 0 to 2**32 - 1.

    Returns:
      The seed, to be passed on: `lj.ArrayLoader(..., seed=lj.seed_everything(7))`.

    Raises:
      ConfigurationError: the seed is out of range.

    Example:
      >>> seed_everything(0), random.random() == random.Random(0).random()
      (0, True)
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigurationError(f"seed_everything got seed={seed!r}; give a whole number from 0 to 2**32 - 1.")
    os.environ[VARIABLE] = str(seed)
    random.seed(seed)
    np.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)
    return seed


def global_seed() -> int:
    """Returns the seed that `seed_everything` was given last; 0 without one."""
    return int(os.environ.get(VARIABLE, "0"))
