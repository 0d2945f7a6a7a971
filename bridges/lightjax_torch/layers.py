"""What the layers of a torch module take and give."""

from __future__ import annotations

from typing import Any

import jax
import torch

from lightjax.layers import Layer, Layers, described

__all__ = ["summarize_layers"]


def summarize_layers(module: torch.nn.Module, *inputs: Any, **arguments: Any) -> Layers:
    """Lists what the layers of a torch module take and give.

    The module runs on shapes alone, torch's "meta" device: nothing is computed, and its buffers stay as they are.

    Args:
      module: the module.
      inputs: tensors, as for its `forward`; their values are not read.
      arguments: further arguments of `forward`.

    Example:
      >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
      >>> print(summarize_layers(module, torch.zeros(8, 3)))
      Layer    Kind        Inputs        Outputs       Parameters
      -----------------------------------------------------------
      (model)  Sequential  float32[8,3]  float32[8,2]          26
        0      Linear      float32[8,3]  float32[8,4]          16
        1      ReLU        float32[8,4]  float32[8,4]           -
        2      Linear      float32[8,4]  float32[8,2]          10
    """
    calls: list[Layer | None] = []
    places: list[int] = []
    seen: set[str] = set()

    def before(*_: Any) -> None:
        places.append(len(calls))
        calls.append(None)  # the layers inside come after it

    def after(path: str) -> Any:
        def note(layer: torch.nn.Module, taken: Any, given: Any) -> None:
            count = 0 if path in seen else sum(parameter.numel() for parameter in layer.parameters())
            seen.add(path)
            calls[places.pop()] = Layer(path, type(layer).__name__, described(taken), described(given), count)

        return note

    handles = []
    try:
        for name, layer in module.named_modules():
            handles.append(layer.register_forward_pre_hook(before))
            handles.append(layer.register_forward_hook(after(name.replace(".", "/"))))
        shapes = {
            name: tensor.detach().to("meta") for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        moved, kept = _on_meta((inputs, arguments))
        with torch.no_grad():
            torch.func.functional_call(module, shapes, moved, kept)
    finally:
        for handle in handles:
            handle.remove()
    return Layers(tuple(one for one in calls if one is not None))


def _on_meta(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf, tree)
