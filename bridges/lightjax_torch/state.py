"""TorchState: the weights and optimizer state of a torch module, as a pytree of arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np
import torch

# numpy has no such dtypes of its own: their bits travel as integers.
_BITS: dict[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
}
_KEYS = ("params", "buffers", "optimizers", "average", "step")
_TORCH_OF = {np.dtype(kind): (bits, dtype) for dtype, (bits, kind) in _BITS.items()}


class TorchState:
    """What a training has learned: `params`, `buffers`, the state of the optimizers, an average, and the step.

    The state of a training under way lies in the module, and its arrays are made when somebody asks. Before another
    state takes its place in the module, it gets arrays of its own, so that a state never changes behind one's back
    except by training on.

    Args:
      arrays: the tree of arrays, or a function that makes it.

    Attributes:
      rest: what the optimizers keep besides arrays, by optimizer; None where nobody knows.

    Example:
      >>> params = {"weight": np.ones((2, 2), np.float32)}
      >>> state = TorchState({"params": params, "buffers": {}, "optimizers": {}, "step": np.array(3)})
      >>> state.step, [leaf.shape for leaf in jax.tree.leaves(state)]
      (3, [(2, 2), ()])
    """

    def __init__(self, arrays: dict[str, Any] | Callable[[], dict[str, Any]]) -> None:
        self._arrays = arrays
        self.rest: list[dict[str, Any]] | None = None

    @property
    def arrays(self) -> dict[str, Any]:
        """The tree: {"params": {name: array}, "buffers": ..., "optimizers": ..., "average": ..., "step"}."""
        return self._arrays if isinstance(self._arrays, dict) else self._arrays()

    @property
    def params(self) -> dict[str, Any]:
        """Parameters by their names in the module."""
        return self.arrays["params"]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.arrays["step"])

    def hold(self, rest: list[dict[str, Any]]) -> None:
        """Copies the arrays: from here on they are this state's own.

        Args:
          rest: what the optimizers keep besides arrays.
        """
        if callable(self._arrays):
            self._arrays, self.rest = jax.tree.map(np.array, self.arrays), copy.deepcopy(rest)

    def averaged(self) -> TorchState | None:
        """Returns the state with averaged parameters in the place of the last ones; None where it has no average."""
        arrays = self.arrays
        if not (average := arrays.get("average")):
            return None
        params = dict(arrays["params"])
        if average["averaged"]:
            params |= {name: one.astype(params[name].dtype) for name, one in average["params"].items()}
        return TorchState(arrays | {"params": params})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns copies of parameters and buffers, with the names of `module.state_dict()`."""
        return {name: to_tensor(array) for kind in ("params", "buffers") for name, array in self.arrays[kind].items()}


jax.tree_util.register_pytree_with_keys(
    TorchState,
    lambda state: ([(jax.tree_util.DictKey(key), state.arrays.get(key, {})) for key in _KEYS], None),
    lambda _, children: TorchState(dict(zip(_KEYS, children, strict=True))),
)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Returns a tensor as a numpy array of the same dtype: a view of one on the CPU, a copy of any other."""
    host = tensor.detach().cpu()
    bits = _BITS.get(host.dtype)
    return host.numpy() if bits is None else host.view(bits[0]).numpy().view(bits[1])


def to_tensor(array: Any) -> torch.Tensor:
    """Copies an array into a tensor of the same dtype, on the CPU."""
    host = np.array(array)
    bits = _TORCH_OF.get(host.dtype)
    if bits is None:
        return torch.from_numpy(host)
    return torch.from_numpy(host.view(np.int16 if bits[0] is torch.int16 else np.uint8)).view(bits[1])


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the state of an optimizer by the number of its parameter; scalars become arrays."""
    found: dict[str, dict[str, Any]] = {}
    for number, state in optimizer.state_dict()["state"].items():
        values = {
            name: to_array(value) if isinstance(value, torch.Tensor) else np.asarray(value)
            for name, value in _flat(state)
            if isinstance(value, torch.Tensor | bool | int | float)
        }
        if values:
            found[str(number)] = values
    return found


def optimizer_rest(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns what an optimizer keeps besides tensors and numbers: the settings of its groups, and the like."""
    state = optimizer.state_dict()
    rest = {
        str(number): {
            name: value for name, value in _flat(values) if not isinstance(value, torch.Tensor | bool | int | float)
        }
        for number, values in state["state"].items()
    }
    kinds = {
        str(number): {
            name: type(value).__name__ for name, value in _flat(values) if isinstance(value, bool | int | float)
        }
        for number, values in state["state"].items()
    }
    return {"groups": state["param_groups"], "rest": rest, "kinds": kinds}


def load_optimizer(optimizer: torch.optim.Optimizer, arrays: dict[str, Any], rest: dict[str, Any]) -> None:
    """Gives an optimizer its state back."""
    state: dict[int, dict[str, Any]] = {}
    for number in {*arrays, *rest["rest"], *rest["kinds"]}:
        values: dict[str, Any] = dict(rest["rest"].get(number, {}))
        kinds = rest["kinds"].get(number, {})
        for name, array in arrays.get(number, {}).items():
            values[name] = _NUMBERS[kinds[name]](array) if name in kinds else to_tensor(array)
        state[int(number)] = _nest(values)
    optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})


_NUMBERS: dict[str, Any] = {"int": int, "float": float, "bool": bool}


def _flat(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names the values in an optimizer's state of a parameter; LBFGS keeps lists of tensors."""
    for name, value in state.items():
        if isinstance(value, list) and any(isinstance(one, torch.Tensor) for one in value):
            yield from _flat({str(i): one for i, one in enumerate(value)}, f"{prefix}{name}[]")
        else:
            yield prefix + name, value


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in sorted(values.items(), key=lambda item: (len(item[0]), item[0])):
        head, bracket, number = name.partition("[]")
        if bracket:
            nested.setdefault(head, []).insert(int(number), value)
        else:
            nested[name] = value
    return nested
