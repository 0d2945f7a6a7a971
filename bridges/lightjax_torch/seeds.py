"""seed_everything: one seed for every global generator."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int = 0, workers: bool = False, verbose: bool = True) -> int:
    """Seeds Python's, numpy's and torch's generators.

    Args:
      seed: the seed.
      workers: ignored; DataLoader workers derive theirs from torch's.
      verbose: ignored.

    Returns:
      The seed.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed
