"""Program: a captured graph as a JAX function."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from lightjax_torch.arrays import jax_dtype, to_numpy
from lightjax_torch.capture import Graph
from lightjax_torch.errors import WAY_OUT, CaptureError, UnsupportedOperatorError
from lightjax_torch.lowering import TABLE
from lightjax_torch.lowering.table import RANDOM

Node = torch.fx.Node

_COTANGENT = torch.ops.lightjax.cotangent.default
_COND = torch.ops.higher_order.cond
# Arithmetic on numbers that `.item()` took out of tensors.
_OPERATORS = "add sub mul truediv floordiv mod pow neg pos eq ne lt le gt ge and_ or_ getitem"
_SCALARS: dict[Any, Callable[..., Any]] = {
    **{getattr(operator, name): getattr(operator, name) for name in _OPERATORS.split()},
    math.sqrt: jnp.sqrt,
    math.log: jnp.log,
    math.exp: jnp.exp,
    math.sin: jnp.sin,
    math.cos: jnp.cos,
    math.tanh: jnp.tanh,
    math.floor: lambda x: jnp.floor(x).astype(jax_dtype(torch.int64)),
    math.ceil: lambda x: jnp.ceil(x).astype(jax_dtype(torch.int64)),
    math.trunc: lambda x: jnp.trunc(x).astype(jax_dtype(torch.int64)),
    torch.sym_float: lambda x: jnp.asarray(x, jax_dtype(torch.float64)),
    torch.sym_int: lambda x: jnp.trunc(x).astype(jax_dtype(torch.int64)),
    torch.sym_max: jnp.maximum,
    torch.sym_min: jnp.minimum,
    torch.sym_not: jnp.logical_not,
}
_IGNORED = {
    torch.ops.aten._assert_async.msg,
    torch.ops.aten._assert_async.default,
    torch.ops.aten._assert_scalar.default,
}
# Larger constants are computed by XLA: the program would carry them along.
_LARGEST_CONSTANT = 1 << 20


class Program:
    """A captured graph, checked as a whole, that runs on JAX arrays.

    Args:
      graph: what `capture` or `capture_with_gradients` returned.
      checked: whether every operation must give the shape that torch says. A program that was captured for one element
        may run on arrays of any shape without.

    Raises:
      UnsupportedOperatorError: operations have no rule; lists every one with the user's line.
      CaptureError: shapes depend on values; lists the lines.
    """

    def __init__(self, graph: Graph, *, checked: bool = True) -> None:
        self.graph, self.checked = graph, checked
        self.nodes = list(graph.module.graph.nodes)
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        (output,) = (node for node in self.nodes if node.op == "output")
        self.outputs: Sequence[Any] = output.args[0]
        _check(self.nodes, graph.module)
        self.constants = _folded(graph.module)
        draws = [node for node in self.nodes if node.target in RANDOM or node.target is _COND]
        self.streams = {node: number for number, node in enumerate(draws)}

    @property
    def is_random(self) -> bool:
        """Whether the program draws random numbers: then it needs a key."""
        return any(node.target in RANDOM for node in self.nodes)

    def __call__(self, inputs: Sequence[Any], key: jax.Array | None = None) -> list[Any]:
        """Runs the whole program.

        Args:
          inputs: an array for every placeholder.
          key: of the random numbers; may be None where none are drawn.

        Returns:
          The output tensors, flat.
        """
        values = dict(zip(self.inputs, inputs, strict=True))
        self.run((node for node in self.nodes if node.op not in ("placeholder", "output")), values, key)
        return [self.value(one, values) for one in self.outputs]

    def run(self, nodes: Iterable[Node], values: dict[Node, Any], key: jax.Array | None) -> None:
        """Computes nodes in their order and adds them to `values`."""
        # Torch broadcasts and promotes; a caller's stricter rules for its own code do not hold in here.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            for node in nodes:
                if node not in self.constants and not _ignored(node):
                    values[node] = self._computed(node, values, key)

    def part(self, of: Node, inputs: Iterable[Any], key: jax.Array | None) -> Any:
        """Runs only what one node depends on, without derivatives; returns its value."""
        values = dict(zip(self.inputs, map(lax.stop_gradient, inputs), strict=True))
        nodes = [node for node in self.nodes if node.op not in ("placeholder", "output")]
        self.run(needed(nodes, [of]), values, key)
        return self.value(of, values)

    def value(self, of: Any, values: dict[Node, Any]) -> Any:
        """Returns the value of an argument: of a node, or itself."""
        if not isinstance(of, Node):
            return of
        return jnp.asarray(self.constants[of]) if of in self.constants else values[of]

    def _computed(self, node: Node, values: dict[Node, Any], key: jax.Array | None) -> Any:
        if node.op == "get_attr":
            found = operator.attrgetter(str(node.target))(self.graph.module)
            return jnp.asarray(to_numpy(found)) if isinstance(found, torch.Tensor) else found
        read = lambda one: self.value(one, values)  # noqa: E731
        args, kwargs = map_arg(node.args, read), map_arg(node.kwargs, read)
        if node.target in _SCALARS:
            return _SCALARS[node.target](*args, **kwargs)
        if node in self.streams and key is not None:
            key = jax.random.fold_in(key, self.streams[node])
        if node.target is _COND:
            predicate, if_true, if_false, operands = args
            return self._branch(predicate, if_true, if_false, operands, key)
        if node.target in RANDOM:
            if key is None:
                raise CaptureError(
                    f"{line_of(node)} draws random numbers ({node.target}): pass a key, fn(..., key=key)."
                )
            kwargs = {name: value for name, value in kwargs.items() if name != "generator"} | {"key": key}
        try:
            with jax.named_scope(str(node.target).removesuffix(".default")):
                result = TABLE[node.target](*args, **kwargs)
        except NotImplementedError as error:
            raise UnsupportedOperatorError(
                f"{line_of(node)}: {node.target} has no rule for JAX in this form ({error}). Register one, "
                f"lightjax_torch.register_lowering({node.target}, rule), or {WAY_OUT}."
            ) from error
        return _like(result, node, self.checked)

    def _branch(self, predicate: Any, if_true: Any, if_false: Any, operands: Any, key: jax.Array | None) -> Any:
        def branch(module: torch.fx.GraphModule) -> Callable[..., Any]:
            (output,) = (node for node in module.graph.nodes if node.op == "output")
            leaves, structure = pytree.tree_flatten(output.args[0])
            module_outputs = tuple(True for _ in leaves)
            inner = Program(Graph(module, structure, tuple(None for _ in leaves), module_outputs))
            return lambda *operands: tuple(inner(operands, key))

        return lax.cond(jnp.reshape(predicate, ()), branch(if_true), branch(if_false), *operands)


def needed(nodes: Sequence[Node], wanted: Sequence[Node]) -> list[Node]:
    """Leaves out what nobody reads."""
    needed = set(wanted)
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in nodes if node in needed]


def _ignored(node: Node) -> bool:
    return node.target in _IGNORED or getattr(node.target, "namespace", "") == "profiler"


def line_of(node: Node) -> str:
    """Returns the user's `file:line` that a node comes from."""
    return str(node.stack_trace or "torch's backward pass")


def origin(node: Node) -> Node:
    """Returns what a node is an unchanged copy of."""
    while node.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
        (node,) = node.all_input_nodes
    return node


def _check(nodes: Sequence[Node], module: torch.fx.GraphModule) -> None:
    missing: dict[str, list[str]] = {}
    shapes: list[str] = []
    for node in nodes:
        if node.op != "call_function":
            continue
        known = node.target in TABLE or node.target in _SCALARS or _ignored(node)
        if not known and node.target not in (_COTANGENT, _COND):
            lines = missing.setdefault(str(node.target), [])
            if (line := line_of(node)) not in lines:
                lines.append(line)
        if not known and torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
            missing.pop(str(node.target))
            shapes.append(f"{node.target} at {line_of(node)}")
            continue
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and not all(type(size) is int for size in value.shape):
                shapes.append(f"{node.target} at {line_of(node)}")
                break
    if shapes:
        raise CaptureError(
            f"The shape of a result depends on values: {'; '.join(dict.fromkeys(shapes))}. A compiled step has fixed "
            f"shapes. Use a mask and torch.where in place of x[mask] and nonzero, or {WAY_OUT}."
        )
    if missing:
        listed = "; ".join(f"{target} at {', '.join(lines)}" for target, lines in sorted(missing.items()))
        raise UnsupportedOperatorError(
            f"{len(missing)} operation{'s have' if len(missing) > 1 else ' has'} no rule for JAX: {listed}. Register "
            f"one, lightjax_torch.register_lowering(torch.ops...., rule) (docs/porting.md shows how), or {WAY_OUT}.",
            missing,
        )


def _folded(module: torch.fx.GraphModule) -> dict[Node, np.ndarray]:
    """Lets torch itself compute what depends on no input: its sines differ from XLA's in the last bits."""
    values: dict[Node, torch.Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            found = operator.attrgetter(str(node.target))(module)
            if isinstance(found, torch.Tensor) and found.device.type != "meta":
                values[node] = found.detach()
        elif node.op == "call_function" and _foldable(node) and all(one in values for one in node.all_input_nodes):
            read = values.__getitem__
            args, kwargs = map_arg(node.args, read), dict(map_arg(node.kwargs, read))
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
            schema = node.target._schema  # pyright: ignore[reportAttributeAccessIssue,reportFunctionMemberAccess]
            if not node.all_input_nodes and any(one.name == "dtype" and one.kwarg_only for one in schema.arguments):
                # Torch's default may have been another one when this was captured.
                kwargs.setdefault("dtype", node.meta["val"].dtype)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
    used = {node for node in values if any(user not in values for user in node.users)}
    return {node: to_numpy(values[node]) for node in used} | {node: np.zeros(()) for node in values if node not in used}


def _foldable(node: Node) -> bool:
    target, value = node.target, node.meta.get("val")
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.namespace in ("aten", "prims")
        and torch.Tag.nondeterministic_seeded not in target.tags
        and not _ignored(node)
        and isinstance(value, torch.Tensor)
        and all(type(size) is int for size in value.shape)
        and value.numel() <= _LARGEST_CONSTANT
        and not target.name().startswith("aten::empty")
        and not target.name().startswith("aten::new_empty")
    )


def _like(result: Any, node: Node, checked: bool) -> Any:
    """Casts a rule's result to the dtype that torch says, and checks its shape."""
    expected = node.meta.get("val")
    if isinstance(expected, torch.Tensor):
        return _like_tensor(result, expected, node, checked)
    if isinstance(expected, list | tuple):
        return [
            _like_tensor(one, wanted, node, checked) if isinstance(wanted, torch.Tensor) and one is not None else one
            for one, wanted in zip(result, expected, strict=True)
        ]
    return result


def _like_tensor(result: Any, expected: torch.Tensor, node: Node, checked: bool) -> jax.Array:
    result, dtype = jnp.asarray(result), jax_dtype(expected.dtype)
    if checked and result.shape != tuple(expected.shape):
        raise UnsupportedOperatorError(
            f"{line_of(node)}: the rule of {node.target} gave shape {result.shape} where torch gives "
            f"{tuple(expected.shape)}; register a rule that returns it, or {WAY_OUT}."
        )
    return result if result.dtype == dtype else result.astype(dtype)
