"""The weights of a module, beside those of a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

from lightjax.errors import CheckpointError
from lightjax.summary import Row, Summary
from lightjax_torch.average import Average
from lightjax_torch.state import TorchState, optimizer_arrays, to_array


def arrays_of(
    module: torch.nn.Module, average: Average, optimizers: Sequence[torch.optim.Optimizer], steps: int
) -> dict[str, Any]:
    """Returns the weights of a module, their average and the state of its optimizers as arrays."""
    return {
        "params": {name: to_array(one) for name, one in average.last().items()},
        "buffers": {name: to_array(one) for name, one in module.named_buffers()},
        "optimizers": {
            str(number): arrays for number, one in enumerate(optimizers) if (arrays := optimizer_arrays(one))
        },
        "average": average.arrays(),
        "step": np.asarray(steps),
    }


def load_weights(module: torch.nn.Module, state: TorchState) -> None:
    """Copies the weights of a state into a module.

    Raises:
      CheckpointError: they do not fit.
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    found = state.tensors()
    wrong = [
        f"{name}: {tuple(found[name].shape) if name in found else 'missing'} in the state, "
        f"{tuple(own[name].shape) if name in own else 'missing'} in the module"
        for name in sorted({*own, *found})
        if name not in own or name not in found or own[name].shape != found[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"The state does not fit {type(module).__name__}:\n  " + "\n  ".join(wrong[:20]) + "\n"
            "A state fits the module that made it."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])


def saved_leaves(leaves: Mapping[str, str], item: str) -> dict[str, Any]:
    """Makes arrays without values of what a checkpoint describes: {"optimizers/0/1/exp_avg": "float32[2]"}."""
    found: dict[str, Any] = {}
    for name, kind in leaves.items():
        first, *path = name.split("/")
        if first != item:
            continue
        dtype, _, shape = kind.rstrip("]").partition("[")
        node = found
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.empty([int(size) for size in shape.split(",") if size], np.dtype(dtype))
    return found


def summarize(module: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Summary:
    """Lists the parameters and buffers of a module."""
    params, buffers = list(module.named_parameters()), list(module.named_buffers())
    rows = [_row(name, one, one.numel(), trained=one.requires_grad) for name, one in params]
    rows += [_row(name, one, 0) for name, one in buffers]
    optimizer_bytes = sum(array.nbytes for array in jax.tree.leaves([optimizer_arrays(one) for one in optimizers]))
    in_params = sum(row.bytes for row in rows[: len(params)])
    in_buffers = sum(row.bytes for row in rows[len(params) :])
    return Summary(
        rows=tuple(rows),
        parameters=sum(row.parameters for row in rows),
        parameter_bytes=in_params,
        model_state_bytes=in_buffers,
        optimizer_bytes=optimizer_bytes,
        bytes=in_params + in_buffers + optimizer_bytes,
        separator=".",
    )


def _row(name: str, tensor: torch.Tensor, parameters: int, *, trained: bool = True) -> Row:
    size = tensor.numel() * tensor.element_size()
    return Row(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), parameters, size, trained=trained)
