"""Capture: a torch callable, run once on tensors without values, as a functional graph of core ATen operations.

Torch's own tracer does it (fake tensors, functionalization, `make_fx`), autograd included: where a gradient is asked
for, the graph holds torch's forward and torch's backward, so `detach`, `no_grad`, hooks, `autograd.Function`, writes
through views and every sub-gradient mean what they mean in torch.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._decomp import core_aten_decompositions, decomposition_table
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.utils import _pytree as pytree

from lightjax.errors import LightjaxError
from lightjax_torch import operators
from lightjax_torch.constants import ConstantTensors
from lightjax_torch.errors import WAY_OUT, CaptureError, ProgramError
from lightjax_torch.functions import TracedFunctions, without_recomputation
from lightjax_torch.lowering import TABLE
from lightjax_torch.source_lines import raised_by_user, user_line

# Functionalization, the compiling flag, the checkpoint functions and two methods of functional tensors are switched for
# a whole thread or process while a capture runs; everything is put back when it ends.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Graph:
    """A captured program.

    Attributes:
      module: its operations; the placeholders are the tensors of the arguments, in the order of the flattened tree.
      outputs: how the outputs nest.
      static: the flattened outputs that are no tensors; None in the place of a tensor.
      is_tensor: which of the flattened outputs are tensors.
    """

    module: torch.fx.GraphModule
    outputs: pytree.TreeSpec
    static: tuple[Any, ...]
    is_tensor: tuple[bool, ...]

    def nest(self, tensors: Any) -> Any:
        """Puts computed tensors into the tree that the program returned."""
        tensors = iter(tensors)
        leaves = [next(tensors) if here else other for here, other in zip(self.is_tensor, self.static, strict=True)]
        return pytree.tree_unflatten(leaves, self.outputs)


def capture(function: Callable[..., Any], *arguments: Any) -> Graph:
    """Captures `function(*arguments)`.

    Args:
      function: runs once, in Python, on tensors that have shapes and dtypes and no values. What it does to anything
        but its arguments is its own business to undo.
      *arguments: pytrees; of a tensor (a real one, or one on the meta device) only shape and dtype count, any other
        leaf is handed over as it is.

    Returns:
      The graph. Tensors that depend on no argument are computed by torch and held in it as constants.

    Raises:
      CaptureError: Python needs a value that only exists when the step runs (a branch, `.item()`, `.numpy()`, a print),
        a shape depends on values, or the program fails; names the user's line.

    Example:
      >>> graph = capture(lambda x: (x * 2).add_(1), torch.zeros(2, 3))
      >>> [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]
      ['aten.mul.Tensor', 'aten.add.Tensor']
    """
    leaves, structure = pytree.tree_flatten(arguments)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with mode:
        inputs = [torch.empty(leaves[index].shape, dtype=leaves[index].dtype) for index in places]
    found: dict[str, Any] = {}

    def program(*tensors: torch.Tensor) -> list[torch.Tensor]:
        filled = list(leaves)
        for index, tensor in zip(places, tensors, strict=True):
            filled[index] = tensor
        with ConstantTensors() as constants, TracedFunctions():
            returned = function(*pytree.tree_unflatten(filled, structure))
        constants.forget()
        flat, found["outputs"] = pytree.tree_flatten(returned)
        found["is_tensor"] = tuple(isinstance(leaf, torch.Tensor) for leaf in flat)
        found["static"] = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in flat)
        return [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]

    with _ONE_AT_A_TIME, _as_exported(), without_recomputation(), torch.enable_grad(), mode:
        try:
            functional = dispatch_functionalize(program, FunctionalTensorMode())
            module = make_fx(functional, decomposition_table=_decompositions(), _allow_non_fake_inputs=True)(*inputs)
        except LightjaxError:
            raise
        except Exception as error:
            raise _explained(error) from error
    module.graph.eliminate_dead_code()
    return Graph(module, **found)


def capture_with_gradients(function: Callable[..., Any], differentiated: Any, *others: Any) -> Graph:
    """Captures `function(differentiated, *others)` together with torch's backward.

    Args:
      function: returns a pytree; every output that torch can differentiate is differentiated. `differentiated` arrives
        as leaves that require a gradient.
      differentiated: pytree of floating or complex tensors.
      *others: further arguments.

    Returns:
      The graph of `(outputs, gradients, has_cotangent)`: the gradients like the flattened `differentiated`, None where
      torch has none; `has_cotangent` says which flattened output tensors were differentiated. Where the graph reads
      `lightjax::cotangent(output, place)`, it wants the cotangent of the flattened output tensor at that place.
    """

    def joint(differentiated: Any, *others: Any) -> Any:
        given, structure = pytree.tree_flatten(differentiated)
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        outputs = function(pytree.tree_unflatten(leaves, structure), *others)
        tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
        has_cotangent = tuple(tensor.requires_grad for tensor in tensors)
        roots = [(place, tensor) for place, tensor in enumerate(tensors) if tensor.requires_grad]
        gradients: list[torch.Tensor | None] = [None] * len(leaves)
        if roots and leaves:
            with torch.no_grad():
                cotangents = [operators.cotangent(tensor, place) for place, tensor in roots]
            gradients = list(
                torch.autograd.grad([tensor for _, tensor in roots], leaves, cotangents, allow_unused=True)
            )
        return outputs, gradients, has_cotangent

    return capture(joint, differentiated, *others)


@contextlib.contextmanager
def _as_exported() -> Iterator[None]:
    """Switches on what `torch.export` switches on, and off what would pick kernels by the machine."""
    compiling, onednn = torch.compiler._is_compiling_flag, torch._C._get_mkldnn_enabled()
    # Libraries look at this flag to leave out checks of values; torch.export sets it the same way.
    torch.compiler._is_compiling_flag = True
    torch._C._set_mkldnn_enabled(False)
    # `torch.distributions` asks whether every parameter is in its domain: Python that needs values.
    validates = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.compiler._is_compiling_flag = compiling
        torch._C._set_mkldnn_enabled(onednn)
        torch.distributions.Distribution.set_default_validate_args(validates)


@functools.lru_cache(1)
def _decompositions_beside(rules: int) -> dict[Any, Any]:
    known = {**decomposition_table, **core_aten_decompositions()}
    return {target: rule for target, rule in known.items() if target not in TABLE}


def _decompositions() -> dict[Any, Any]:
    """An operation that has a rule stays whole; every other one is taken apart as far as torch knows how.

    Torch takes 0.1 s to list them, half of a small capture: they are kept until another rule is registered.
    """
    return _decompositions_beside(len(TABLE))


def _explained(error: Exception) -> CaptureError:
    """Says what happened at which line, why, and what to write instead."""
    line = user_line(error.__traceback__)
    text = str(error)
    if (
        isinstance(error, GuardOnDataDependentSymNode)
        or "data-dependent" in text
        or "_local_scalar_dense" in text
        or "its data is not allocated yet" in text  # .tolist()
        or isinstance(error, DataDependentOutputException)
    ):
        return CaptureError(
            f"{line}: Python asks for the value of a tensor (a branch, a loop, int(), float(), .item(), or a shape "
            "that depends on values). The step is captured once, for every batch, so there are no values yet. "
            f"Write it with torch.where, masks or torch.cond, move it out of the step, or {WAY_OUT}."
        )
    if "dynamic output shape" in text or "DynamicOutputShape" in type(error).__name__:
        return CaptureError(
            f"{line}: the shape of a result depends on values ({text.splitlines()[0]}). A compiled step has fixed "
            f"shapes. Use a mask and torch.where in place of x[mask], or {WAY_OUT}."
        )
    kind = ProgramError if raised_by_user(error.__traceback__) else CaptureError
    return kind(
        f"{line}: the program could not be captured: {type(error).__name__}: {text.splitlines()[0] if text else ''}. "
        f"If it runs on such tensors in torch itself, {WAY_OUT}."
    )
