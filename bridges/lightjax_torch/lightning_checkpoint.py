"""Checkpoints as Lightning's programs read them: its `.ckpt` files, without running code that is in them, and ours."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightjax.checkpoint import Checkpoint
from lightjax.data.position import decode
from lightjax.errors import CheckpointError
from lightjax_torch.state import TorchState
from lightjax_torch.weights import saved_leaves


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a Lightning checkpoint, a file of torch.save, or a checkpoint of a torch module's training, on the CPU.

    Args:
      path: the file; or the directory of a checkpoint.

    Returns:
      What it holds; "state_dict" has the weights. Those of a directory are the ones that were evaluated: the average
      where there is one.

    Raises:
      CheckpointError: there is no such file, it holds no weights, or it holds objects that only a pickle can make,
        which could run any code.
    """
    if Path(path).is_dir():
        return _read_directory(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is not there; give the path of a .ckpt file, or the directory of a checkpoint."
        ) from error
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


def _read_directory(path: str | os.PathLike[str]) -> dict[str, Any]:
    checkpoint = Checkpoint.open(path)
    about = checkpoint.about()
    engine = about.get("engine", {})
    if "optimizers" not in engine:
        raise CheckpointError(f"{path} is no checkpoint of a torch module's training; lj.restore(path, like) reads it.")
    like = {item: saved_leaves(about["leaves"], item) for item in ("params", "buffers", "optimizers", "average")}
    state = checkpoint.restore(TorchState(like | {"step": np.asarray(0)}))
    return {
        "state_dict": (state.averaged() or state).tensors(),
        "hyper_parameters": decode(engine.get("hyper_parameters", {})),
        "epoch": about["position"]["epoch"],
        "global_step": engine["optimizer_steps"],
    }


def load_weights_of(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, strict: bool = True) -> None:
    """Loads weights by name into a module, as `load_state_dict` does.

    A checkpoint of ours has tied weights once, and buffers that a `state_dict` leaves out.
    """
    own = module.state_dict(keep_vars=True)
    every = dict(module.named_parameters()) | dict(module.named_buffers())
    named = {id(one): name for name, one in every.items()}
    tied = {name: weights[named[id(one)]] for name, one in own.items() if named.get(id(one)) in weights}
    left_out = every.keys() - own.keys()
    module.load_state_dict({**tied, **{k: v for k, v in weights.items() if k not in left_out}}, strict=strict)


def load_optimization(found: Mapping[str, Any] | None, optimizers: Sequence[Any], schedulers: Sequence[Any]) -> None:
    """Gives optimizers and schedulers the states they have in a Lightning checkpoint.

    Args:
      found: what `read_checkpoint` returned; None for nothing to do.
      optimizers: as `configure_optimizers` returned them.
      schedulers: likewise, alone or in dicts.

    Raises:
      CheckpointError: it has none, or others.
    """
    if found is None:
        return
    plain = [one["scheduler"] if isinstance(one, Mapping) else one for one in schedulers]
    for name, ours in (("optimizer_states", optimizers), ("lr_schedulers", plain)):
        theirs = found.get(name)
        if theirs is None or len(theirs) != len(ours):
            has = "no" if theirs is None else str(len(theirs))
            raise CheckpointError(
                f"The checkpoint has {has} {name}, and configure_optimizers returned {len(ours)}; save it with "
                "save_weights_only=False, or take its weights alone, task.load_checkpoint(path)."
            )
        for one, state in zip(ours, theirs, strict=True):
            try:
                one.load_state_dict(state)
            except (ValueError, KeyError) as error:
                what = f"The {name} of the checkpoint are not those of {type(one).__name__}"
                raise CheckpointError(f"{what}: {error}") from error
