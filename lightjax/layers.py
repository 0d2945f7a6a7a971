"""What the layers of a model take and give: shapes by layer, in the order they are called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lightjax.errors import ConfigurationError

__all__ = ["Layer", "Layers", "summarize_layers"]


@dataclass(frozen=True)
class Layer:
    """One call of a layer.

    Attributes:
      path: its place in the model, such as `encoder/block_0`; "" for the model itself.
      kind: the name of its class.
      inputs: shapes and dtypes of the arrays it is given.
      outputs: those it gives.
      parameters: how many it holds, those of layers inside included; 0 for a layer that was called before.
    """

    path: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Layers:
    """The layers of a model. `print(layers)` shows a table.

    Attributes:
      layers: in the order they are called.
    """

    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """How many the whole model holds."""
        return self.layers[0].parameters if self.layers else 0

    def table(self, depth: int | None = None) -> str:
        """Writes a table.

        Args:
          depth: how deep layers are shown, 0 for the model alone; all when None.
        """
        shown = [one for one in self.layers if depth is None or not one.path or one.path.count("/") < depth]
        cells = [("Layer", "Kind", "Inputs", "Outputs", "Parameters")]
        for one in shown:
            indent = "  " * (one.path.count("/") + 1 if one.path else 0)
            name = f"{indent}{one.path.rpartition('/')[2] or '(model)'}"
            count = f"{one.parameters:,}" if one.parameters else "-"
            cells.append((name, one.kind, ", ".join(one.inputs), ", ".join(one.outputs), count))
        widths = [max(len(row[column]) for row in cells) for column in range(5)]
        lines = ["  ".join([*map(str.ljust, row[:4], widths[:4]), row[4].rjust(widths[4])]) for row in cells]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    def __str__(self) -> str:
        return self.table()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Shows the table at the end of a notebook's cell."""
        printer.text(str(self))


def summarize_layers(module: Any, *inputs: Any, **arguments: Any) -> Layers:
    """Lists what the layers of a flax linen module take and give; computes nothing.

    Args:
      module: a `flax.linen.Module`.
      inputs: arrays, or their shapes, as for the module's call.
      arguments: further arguments of the call, such as `train=False`.

    Raises:
      ConfigurationError: the module is no linen module.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import linen as nn
      >>> print(summarize_layers(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), jnp.zeros((8, 3))))
      Layer       Kind        Inputs        Outputs       Parameters
      --------------------------------------------------------------
      (model)     Sequential  float32[8,3]  float32[8,2]          26
        layers_0  Dense       float32[8,3]  float32[8,4]          16
        layers_2  Dense       float32[8,4]  float32[8,2]          10
    """
    from flax import linen as nn

    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"summarize_layers got {type(module).__name__}, which is no flax.linen.Module; lj.summarize(state) lists "
            "the parameters of any state, lightjax_torch.summarize_layers the layers of a torch module."
        )
    calls: list[tuple[str, str, Any, Any]] = []

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        place = len(calls)
        calls.append(("", "", None, None))  # the layers inside come after it
        given = call(*args, **kwargs)
        calls[place] = ("/".join(context.module.path), type(context.module).__name__, (args, kwargs), given)
        return given

    with nn.intercept_methods(note):
        variables = jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args, **arguments), *inputs)
    seen: set[str] = set()
    layers = []
    for path, kind, taken, given in calls:
        count = 0 if path in seen else _count(variables.get("params", {}), path)
        seen.add(path)
        layers.append(Layer(path, kind, described(taken), described(given), count))
    return Layers(tuple(layers))


def described(tree: Any) -> tuple[str, ...]:
    """Writes the shapes and dtypes of the arrays of a tree: `float32[8,3]`."""
    return tuple(
        f"{str(leaf.dtype).removeprefix('torch.')}[{','.join(map(str, leaf.shape))}]"
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    )


def _count(params: Any, path: str) -> int:
    names: Sequence[str] = path.split("/") if path else ()
    for name in names:
        params = params.get(name, {}) if hasattr(params, "get") else {}
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
