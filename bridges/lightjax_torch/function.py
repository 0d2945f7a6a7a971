"""A torch module or function as a pure JAX function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.utils import _pytree as pytree

from lightjax_torch.arrays import jax_dtype, to_jax, torch_dtype
from lightjax_torch.capture import capture_with_gradients
from lightjax_torch.gradients import with_torch_gradients
from lightjax_torch.module_state import ModuleState, unchanged

JaxFunction = Callable[..., tuple[Any, dict[str, jax.Array]]]


def jax_function(
    module: torch.nn.Module | Callable[..., Any], *example: Any, **named: Any
) -> tuple[JaxFunction, dict[str, jax.Array], dict[str, jax.Array]]:
    """Makes a pure JAX function of a torch module, with torch's meaning and torch's gradients.

    The module runs once for every set of shapes and dtypes, on tensors without values; nothing of it is changed. What
    it computes is then JAX: it may be jitted, differentiated once in reverse (`jax.grad`, `jax.vjp`), mapped by
    `jax.vmap`, sharded, and called inside any JAX program. It is captured in the mode it is in: call `module.eval()`
    before, for one without dropout. As in torch, frozen parameters (`requires_grad=False`) and buffers have no
    gradient: zeros.

    Args:
      module: a module, on any device, meta included (its parameters then come from elsewhere), or a function.
      *example: the arguments of one call, tensors or arrays; only shapes and dtypes count. The function is captured for
        them at once, so that whatever cannot be ported is told here.
      **named: keyword arguments of that call.

    Returns:
      `(fn, params, buffers)`. `fn(params, buffers, *args, key=None, **kwargs) -> (outputs, buffers)`: outputs nest as
      in torch, tensors are arrays; the new buffers (BatchNorm's statistics) have the names of those given, and so do
      tensors that the module keeps on attributes. `key` is needed where random numbers are drawn. Parameters and
      buffers are named as in the state_dict; tied parameters appear once.

    Raises:
      CaptureError: the module cannot be captured; names the user's line and the way out.
      UnsupportedOperatorError: operations have no rule; lists all of them.

    Example:
      >>> import jax, jax.numpy as jnp, torch
      >>> fn, params, buffers = jax_function(torch.nn.Linear(3, 2), torch.zeros(4, 3))
      >>> grads = jax.grad(lambda params, x: fn(params, buffers, x)[0].sum())(params, jnp.ones((4, 3)))
      >>> sorted(grads), grads["weight"].shape
      (['bias', 'weight'], (2, 3))
    """
    owner = module if isinstance(module, torch.nn.Module) else torch.nn.Module()
    state = ModuleState(owner)
    captured: dict[Any, Any] = {}

    def of_shapes(params: Any, buffers: Any, arguments: Any) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten((params, buffers, arguments))
        signature = (structure, tuple(_signature(leaf) for leaf in leaves))
        if signature not in captured:
            captured[signature] = _captured(module, state, params, buffers, arguments)
        return captured[signature]

    def fn(
        params: dict[str, Any], buffers: dict[str, Any], *args: Any, key: jax.Array | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        run, nest = of_shapes(params, buffers, (args, kwargs))
        return nest(run(params, buffers, (args, kwargs), key))

    where = lambda tensors: {  # noqa: E731
        name: tensor for name, tensor in tensors.items() if tensor.device.type != "meta"
    }
    params, buffers = to_jax(where(state.parameters)), to_jax(where(state.buffers | state.attributes))
    specs = tuple(
        {name: spec_of(tensor) for name, tensor in tensors.items()}
        for tensors in (state.parameters, state.buffers | state.attributes)
    )
    of_shapes(
        specs[0],
        specs[1],
        jax.tree.map(lambda leaf: spec_of(leaf) if isinstance(leaf, torch.Tensor) else leaf, (example, named)),
    )
    return fn, params, buffers


def spec_of(tensor: torch.Tensor) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of the array that a tensor becomes."""
    return jax.ShapeDtypeStruct(tuple(tensor.shape), jax_dtype(tensor.dtype))


def meta(leaf: Any) -> Any:
    """Returns a tensor without values for an array or its shape; anything else stays what it is.

    While 64-bit numbers are off, whole numbers of 32 bits stand for torch's usual 64: labels and indices.
    """
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return leaf
    dtype = torch_dtype(leaf.dtype)
    if dtype is torch.int32 and jax.dtypes.canonicalize_dtype(jnp.int64) == jnp.int32:
        dtype = torch.int64
    return torch.empty(tuple(leaf.shape), dtype=dtype, device="meta")


def _signature(leaf: Any) -> Any:
    return (tuple(leaf.shape), jnp.dtype(leaf.dtype)) if hasattr(leaf, "shape") else leaf


def is_floating(leaf: Any) -> bool:
    """Says whether JAX can differentiate a leaf."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _captured(module: Any, state: ModuleState, params: Any, buffers: Any, arguments: Any) -> Any:
    """Captures a module for shapes; differentiates with respect to parameters and floating arguments."""
    leaves, structure = pytree.tree_flatten(arguments)
    floating = [place for place, leaf in enumerate(leaves) if is_floating(leaf)]
    fixed = [place for place, leaf in enumerate(leaves) if hasattr(leaf, "shape") and place not in floating]
    known = state.parameters | state.buffers | state.attributes
    trained = [name for name in params if is_floating(params[name]) and known[name].requires_grad]
    rest = [name for name in params if name not in trained]

    def call(differentiated: Any, others: Any) -> Any:
        (weights, inputs), (frozen, kept, constants) = differentiated, others
        filled = list(leaves)
        for places, tensors in ((floating, inputs), (fixed, constants)):
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
        args, kwargs = pytree.tree_unflatten(filled, structure)
        with unchanged(state.module), state.holding(weights | frozen | kept):
            outputs = module(*args, **kwargs)
            after = state.read(state.buffers)
            attributes = state.read_attributes()
        return outputs, after | {name: attributes.get(name, kept[name]) for name in state.attributes}

    def tensors(given: Any, names: Any) -> dict[str, torch.Tensor]:
        return {
            name: torch.empty(tuple(given[name].shape), dtype=known[name].dtype, device="meta")
            if jnp.dtype(given[name].dtype) == jax_dtype(known[name].dtype)
            else meta(given[name])
            for name in names
        }

    graph = capture_with_gradients(
        call,
        (tensors(params, trained), [meta(leaves[place]) for place in floating]),
        (tensors(params, rest), tensors(buffers, buffers), [meta(leaves[place]) for place in fixed]),
    )
    _, compute = with_torch_gradients(graph)

    def run(params: Any, buffers: Any, arguments: Any, key: Any) -> list[Any]:
        given = pytree.tree_leaves(arguments)
        differentiated = [*(params[name] for name in trained), *(given[place] for place in floating)]
        others = [params[name] for name in rest], [buffers[name] for name in buffers], [given[place] for place in fixed]
        return compute(differentiated, [leaf for group in others for leaf in group], key)

    def nest(outputs: list[Any]) -> Any:
        count = sum(graph.is_tensor)
        padded = [*outputs, *(None for _ in range(count - len(outputs)))]
        return graph.nest(padded)[0]

    return run, nest
