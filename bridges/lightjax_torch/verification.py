"""Verification: a captured program run node by node in torch and in JAX, until they differ."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

import lightjax as lj
from lightjax.errors import ConfigurationError
from lightjax_torch.arrays import to_jax, to_torch
from lightjax_torch.errors import CaptureError
from lightjax_torch.lowering.table import RANDOM
from lightjax_torch.program import _COTANGENT, Node, Program, line_of

if TYPE_CHECKING:
    from lightjax.run import Run


class VerificationError(CaptureError):
    """Torch and JAX computed different numbers; the message names the first operation that differs, and its line."""


class Verifying(lj.Callback):
    """Verifies a task on the batch that its `init` saw, before the first step.

    Args:
      verify: `(state, batch)`.
    """

    def __init__(self, verify: Callable[[Any, Any], int]) -> None:
        self.verify = verify
        self.batch: Any = None

    def take(self, batch: Any) -> None:
        """Keeps the batch; called while the compiled `init` runs, where no JAX may run."""
        self.batch = jax.tree.map(np.asarray, batch)

    def on_fit_start(self, run: Run) -> None:
        """Verifies a run that begins."""
        if run.step:
            return
        jax.effects_barrier()
        if self.batch is None:
            raise ConfigurationError(
                "verify=True looks at the batch that init gets, and this state was not made by init; call "
                "task.verify(state, batch) instead."
            )
        self.verify(run.state, self.batch)


def verify(program: Program, inputs: Sequence[Any], key: jax.Array, tolerance: float) -> int:
    """Runs a program in torch and in JAX on the same values and compares every tensor in it.

    Every operation gets torch's values, so that a difference is that of the operation itself; random numbers are JAX's
    in both.

    Args:
      program: the program; with its backward pass, the cotangents are ones.
      inputs: an array for every placeholder.
      key: of the random numbers.
      tolerance: largest difference, as a share of the largest element of a tensor.

    Returns:
      How many operations were compared.

    Raises:
      VerificationError: an operation differs.
    """
    in_torch: dict[Node, Any] = {}
    compared = 0
    for node, value in zip(program.inputs, inputs, strict=True):
        like = node.meta["val"]
        in_torch[node] = to_torch(value).to(like.dtype)
    for node in program.nodes:
        if node.op == "get_attr":
            in_torch[node] = operator.attrgetter(str(node.target))(program.graph.module)
        if node.op != "call_function":
            continue
        args, kwargs = map_arg(node.args, in_torch.__getitem__), map_arg(node.kwargs, in_torch.__getitem__)
        if node.target is _COTANGENT:
            in_torch[node] = torch.ones_like(args[0])
            continue
        values = {one: _to_jax(in_torch[one]) for one in node.all_input_nodes}
        program.run([node], values, key)
        if node not in values:
            if node in program.constants:
                in_torch[node] = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
            else:
                in_torch[node] = None
            continue
        ours = values[node]
        namespace = getattr(node.target, "namespace", "")
        if node.target in RANDOM or namespace == "lightjax":
            in_torch[node] = _like(ours, node.meta["val"])
            continue
        with torch.no_grad():
            theirs = in_torch[node] = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        compared += 1
        _compare(node, ours, theirs, tolerance)
    return compared


def _to_jax(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, to_jax, value)


def _like(ours: Any, expected: Any) -> Any:
    leaves, structure = pytree.tree_flatten(expected)
    found = pytree.tree_leaves(ours)
    tensors = [
        to_torch(a).to(b.dtype) if isinstance(b, torch.Tensor) else a for a, b in zip(found, leaves, strict=True)
    ]
    return pytree.tree_unflatten(tensors, structure)


def _compare(node: Node, ours: Any, theirs: Any, tolerance: float) -> None:
    for place, (one, other) in enumerate(zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=False)):
        if not isinstance(other, torch.Tensor) or one is None or "empty" in str(node.target):
            continue
        expected = np.asarray(to_jax(other))
        found = np.asarray(jnp.asarray(one))
        scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=1.0) if expected.dtype.kind in "fc" else 1.0
        same = np.isclose(found, expected, rtol=0, atol=tolerance * scale, equal_nan=True)
        if not same.all():
            where = tuple(int(i) for i in np.argwhere(~same)[0])
            raise VerificationError(
                f"{line_of(node)}: {node.target} gives {found[where]} in JAX and {expected[where]} in torch, at "
                f"{where} of output {place}, the first operation of the step that differs by more than {tolerance:g} "
                "of the largest element. Register another rule, lightjax_torch.register_lowering, or report it."
            )
