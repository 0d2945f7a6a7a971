"""A program captured with its gradients, as a JAX function that JAX differentiates with torch's own backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch.utils import _pytree as pytree

from lightjax_torch.capture import Graph
from lightjax_torch.errors import CaptureError
from lightjax_torch.program import _COTANGENT, Node, Program, needed


@jax.custom_jvp
def _once_differentiable(tree: Any) -> Any:
    return tree


@_once_differentiable.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise CaptureError(
        "A ported torch function was differentiated a second time by JAX. Its gradient is torch's own backward, which "
        "was captured once; take inner gradients in torch (torch.autograd.grad(..., create_graph=True)), which are "
        "captured with everything else."
    )


def with_torch_gradients(graph: Graph) -> tuple[Program, Callable[..., list[Any]]]:
    """Makes the function of a graph that `capture_with_gradients` returned.

    Returns:
      The program, and `run(differentiated, others, key) -> outputs`, all flat lists of arrays. JAX may differentiate it
      once, in reverse, with respect to the first argument; what the backward pass needs of the forward pass is kept.
    """
    program = Program(graph)
    outputs, gradients, _ = graph.nest(program.outputs)
    flat_outputs = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Node)]
    backward_nodes, forward_nodes = _stages(program)
    read_later = [one for node in program.nodes if node in backward_nodes for one in node.all_input_nodes]
    read_later += [one for one in gradients if one is not None]
    kept = [
        one
        for one in dict.fromkeys(read_later)
        if one not in backward_nodes and one not in program.constants and one.target is not _COTANGENT
    ]
    forward_nodes = needed(forward_nodes, [*flat_outputs, *kept])

    def computed(differentiated: Sequence[Any], others: Sequence[Any], key: Any) -> dict[Node, Any]:
        values = dict(zip(program.inputs, [*differentiated, *others], strict=True))
        program.run(forward_nodes, values, key)
        return values

    @jax.custom_vjp
    def run(differentiated: Any, others: Any, key: Any) -> list[Any]:
        values = computed(differentiated, others, key)
        return [program.value(one, values) for one in flat_outputs]

    def forward(differentiated: Any, others: Any, key: Any) -> tuple[list[Any], Any]:
        differentiated, others = _once_differentiable((differentiated, others))
        values = computed(differentiated, others, key)
        like = [jnp.zeros((), leaf.dtype) for leaf in differentiated]
        return [program.value(one, values) for one in flat_outputs], ([values[one] for one in kept], like, key)

    def backward(residuals: Any, cotangents: Sequence[Any]) -> tuple[Any, None, None]:
        values, like, key = residuals
        values, cotangents = _once_differentiable((values, [_torchs(one) for one in cotangents]))
        known = dict(zip(kept, values, strict=True))
        for node in program.nodes:
            if node.target is _COTANGENT:
                known[node] = cotangents[node.args[1]]
        program.run((node for node in program.nodes if node in backward_nodes), known, key)
        found = []
        for gradient, leaf, place in zip(gradients, like, program.inputs, strict=False):
            if gradient is None:
                found.append(jnp.zeros(place.meta["val"].shape, leaf.dtype))
            else:
                found.append(_conjugate(program.value(gradient, known)).astype(leaf.dtype))
        return found, None, None

    run.defvjp(forward, backward)
    return program, run


def _stages(program: Program) -> tuple[set[Node], list[Node]]:
    """Tells the nodes that depend on a cotangent from the others."""
    backward: set[Node] = set()
    forward: list[Node] = []
    for node in program.nodes:
        if node.op in ("placeholder", "output") or node.target is _COTANGENT:
            continue
        if any(one in backward or one.target is _COTANGENT for one in node.all_input_nodes):
            backward.add(node)
        else:
            forward.append(node)
    return backward, forward


def _torchs(cotangent: Any) -> Any:
    """JAX's cotangents of complex numbers are the conjugates of torch's; whole numbers have none."""
    return np.zeros(()) if cotangent.dtype == jax.dtypes.float0 else _conjugate(cotangent)


def _conjugate(x: Any) -> Any:
    return jnp.conj(x) if jnp.iscomplexobj(x) else x
