"""Float64: a module computed in float64 through and through, as a truth to compare with."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

import jax
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """JAX has 64 bits and torch takes them where nobody says which, such as for the counters of its optimizers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with jax.enable_x64(True):
            yield
    finally:
        torch.set_default_dtype(before)


class Float64(TorchFunctionMode):
    """Models compute parts in float32 whatever their weights are: inside, these parts are float64, too.

    Example:
      >>> with Float64():
      ...     torch.ones(2, dtype=torch.float64).float().dtype, torch.ones(2).dtype
      (torch.float64, torch.float64)
    """

    def __enter__(self) -> Any:
        self._wide = wide()
        self._wide.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._wide.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a torch function with float64 in the place of float32."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {name: _double_for_single(one) for name, one in (kwargs or {}).items()}
        return func(*map(_double_for_single, args), **named)


def _double_for_single(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def in_float64(module: torch.nn.Module, batch: Any) -> tuple[torch.nn.Module, Any]:
    """Returns a copy of a module whose training step computes in float64, and the batch for it."""
    module = copy.deepcopy(module).double()
    kind: Any = type(module)

    class Wide(kind):
        @functools.wraps(kind.training_step)
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            with Float64():
                return super().training_step(*args, **kwargs)

    Wide.__name__, Wide.__qualname__, Wide.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    module.__class__ = Wide
    return module, pytree.tree_map(_doubled, batch)


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
