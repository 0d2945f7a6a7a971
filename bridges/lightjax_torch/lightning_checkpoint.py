"""Lightning's `.ckpt` files, read without running any code that is in them."""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch

from lightjax.errors import CheckpointError


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a Lightning checkpoint, or a file of torch.save, on the CPU.

    Args:
      path: the file.

    Returns:
      What it holds; "state_dict" has the weights.

    Raises:
      CheckpointError: there is no such file, it holds no weights, or it holds objects that only a pickle can make,
        which could run any code.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there; give the path of a .ckpt file.") from error
    except pickle.UnpicklingError as error:
        what = str(error).partition("GLOBAL ")[2].partition(" ")[0] or "objects of other classes"
        raise CheckpointError(
            f"{path} holds {what}, which only a pickle can make, and a pickle can run any code; it is not read. If you "
            "trust where it is from, load it once with torch.load(path, weights_only=False) and save what you need: "
            'torch.save({"state_dict": found["state_dict"]}, path).'
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of torch: {str(error).splitlines()[0]}") from error
    if isinstance(found, dict) and "state_dict" in found:
        return found
    if isinstance(found, dict) and found and all(isinstance(one, torch.Tensor) for one in found.values()):
        return {"state_dict": found}
    raise CheckpointError(f"{path} holds no weights: it has neither a 'state_dict' nor tensors by name.")
