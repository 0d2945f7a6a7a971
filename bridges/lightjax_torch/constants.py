"""Tensors that depend on no input keep their values while a program is captured."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.fx.traceback
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.source_lines import current_line

_aten = torch.ops.aten
# Answers what Python asks of a tensor that is true or false: `decide(tensor) -> bool`.
_DECIDE: ContextVar[Callable[[torch.Tensor], bool] | None] = ContextVar("decide", default=None)
# Functions that a capture meets with contiguous matrices only: functions.py.
_BY_LAYOUT = (_aten._linalg_det.default, _aten._linalg_slogdet.default)
# Larger tensors (a mask of 4096 x 4096) are not worth computing twice: nobody branches on them.
_LARGEST = 1 << 22


@contextlib.contextmanager
def deciding(decide: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """Lets `decide` answer branches on tensors without values: `if mask.any():`."""
    token = _DECIDE.set(decide)
    try:
        yield
    finally:
        _DECIDE.reset(token)


def _truth(tensor: torch.Tensor) -> bool:
    """Torch's own asks a number for its value, where only its truth is wanted."""
    return bool((tensor if tensor.dtype is torch.bool else tensor != 0).item())


def _nested(tensor: torch.Tensor) -> Any:
    """Torch's own passes by those who know the values."""
    return [_nested(row) for row in tensor] if tensor.dim() else tensor.item()


_METHODS = {"__bool__": _truth, "tolist": _nested}


class ConstantTensors(TorchDispatchMode):
    """Computes operations whose arguments are all constant a second time, with values.

    `nn.Transformer` asks `bool((mask == causal).all())`, a step may call `torch.tensor(3.0).item()`: what depends on
    no input has an answer while the program is captured. It also notes the user's line of every operation.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._values = WeakIdKeyDictionary()
        self._notes = torch.fx.traceback.preserve_node_meta()

    def __enter__(self) -> Any:
        self._notes.__enter__()
        self._theirs = {name: getattr(FunctionalTensor, name) for name in _METHODS}
        for name, method in _METHODS.items():
            setattr(FunctionalTensor, name, method)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, method in self._theirs.items():
            setattr(FunctionalTensor, name, method)
        self._notes.__exit__(*error)

    def forget(self) -> None:
        """Lets go of all values."""
        self._values = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and once more with values where it has them."""
        kwargs = kwargs or {}
        if func is _aten._linalg_check_errors.default:
            return None
        if func is _aten._local_scalar_dense.default and (value := self._value(args[0])) is not None:
            with _disable_current_modes():
                return value.item()
        if func is _aten._local_scalar_dense.default and args[0].dtype is torch.bool and (decide := _DECIDE.get()):
            return decide(args[0])
        if func is _aten.equal.default and _DECIDE.get():
            return self._equal(*args)
        if (line := current_line()) is not None:
            torch.fx.traceback.current_meta["stack_trace"] = line
        if func in _BY_LAYOUT and not args[0].is_complex() and not args[0].is_contiguous():
            raise RuntimeError(f"the gradient of {func} depends on how its matrix lies in memory: use .contiguous()")
        result = func(*args, **kwargs)
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if any(tensor.layout is not torch.strided for tensor in made):
            raise CaptureError(
                f"{line or 'the program'}: {func} makes a sparse tensor; arrays of JAX are dense. Use dense tensors "
                f"(nn.Embedding(..., sparse=False) has dense gradients), or {WAY_OUT}."
            )
        if isinstance(func, torch._ops.OpOverload) and func.namespace == "aten":
            self._follow(func, args, kwargs, made)
        return result

    def _equal(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        if one.shape != other.shape:
            return False
        run = functools.partial(self.__torch_dispatch__, types=())
        equal = run(_aten.all.default, args=(run(_aten.eq.Tensor, args=(one, other)),))
        return run(_aten._local_scalar_dense.default, args=(equal,))

    def _value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        found = self._values.get(tensor)
        return tensor if found is None and type(tensor) is torch.Tensor else found

    def _follow(self, func: Any, args: Any, kwargs: Any, outputs: list[torch.Tensor]) -> None:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        values = [self._value(tensor) for tensor in tensors]
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random or any(value is None for value in values) or any(one.numel() > _LARGEST for one in outputs):
            if func._schema.is_mutable and tensors:
                self._forget_memory_of(tensors[0])
            return
        remaining = iter(values)
        real = [next(remaining) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(real, structure)
        try:
            with _disable_current_modes(), torch.no_grad():
                computed = func(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return  # the program itself gets the error from the tensors without values, with the user's line
        for output, value in zip(outputs, pytree.tree_leaves(computed), strict=False):
            if isinstance(value, torch.Tensor):
                self._values[output] = value

    def _forget_memory_of(self, tensor: torch.Tensor) -> None:
        """A constant that was overwritten with what is not constant is none any more, nor are its views."""
        value = self._values.get(tensor)
        if value is not None:
            memory = value.untyped_storage().data_ptr()
            for key in [key for key, one in self._values.items() if one.untyped_storage().data_ptr() == memory]:
                del self._values[key]
