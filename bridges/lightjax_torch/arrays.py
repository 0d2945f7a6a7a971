"""Torch tensors to JAX arrays and back, leaf by leaf through a tree, always by copy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from jax.core import Tracer

from lightjax.errors import LightjaxError

_SAME_IN_BOTH = (bool, int, float, complex, str, bytes)  # exact types: numpy scalars are arrays of shape ()

_NATIVE: dict[torch.dtype, type[np.generic]] = {
    torch.bool: np.bool_,
    torch.uint8: np.uint8,
    torch.uint16: np.uint16,
    torch.uint32: np.uint32,
    torch.uint64: np.uint64,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
}
# numpy has these only through ml_dtypes, which torch does not know: they cross as integers of the same bits.
_AS_BITS: dict[torch.dtype, tuple[Any, torch.dtype]] = {
    torch.bfloat16: (ml_dtypes.bfloat16, torch.int16),
    torch.float8_e4m3fn: (ml_dtypes.float8_e4m3fn, torch.uint8),
    torch.float8_e4m3fnuz: (ml_dtypes.float8_e4m3fnuz, torch.uint8),
    torch.float8_e5m2: (ml_dtypes.float8_e5m2, torch.uint8),
    torch.float8_e5m2fnuz: (ml_dtypes.float8_e5m2fnuz, torch.uint8),
}
_FROM_NUMPY = {np.dtype(there): here for here, there in _NATIVE.items()}
_FROM_NUMPY |= {np.dtype(there): here for here, (there, _) in _AS_BITS.items()}


def jax_dtype(dtype: torch.dtype) -> Any:
    """Returns the dtype that values of a torch dtype have in JAX: 64 bits only while `jax_enable_x64` is on.

    Raises:
      ConversionError: JAX has no such dtype.
    """
    there = _NATIVE.get(dtype) or _AS_BITS.get(dtype, (None,))[0]
    if there is None:
        raise ConversionError(f"{dtype} has no counterpart in JAX; convert such tensors, tensor.to(torch.float32)")
    return jax.dtypes.canonicalize_dtype(there)


def torch_dtype(dtype: Any) -> torch.dtype:
    """Returns the torch dtype of a JAX or numpy one.

    Raises:
      ConversionError: torch has no such dtype.
    """
    found = _FROM_NUMPY.get(np.dtype(dtype))
    if found is None:
        raise ConversionError(f"{dtype} has no counterpart in torch; convert such arrays, array.astype(jnp.float32)")
    return found


class ConversionError(LightjaxError, ValueError):
    """A leaf has no exact counterpart on the other side; the message names its path."""


def to_jax(tree: Any) -> Any:
    """Converts every torch tensor of a tree to a JAX array.

    The tree may nest dicts, lists, tuples, named tuples, dataclasses and any registered pytree; the result
    has the same containers. Tensors are detached and copied: a later in-place write in torch is not seen by
    the array. Tensors that share memory (tied weights, views) become separate arrays. numpy arrays are
    copied too; JAX arrays, None, Python numbers and strings stay as they are.

    Shapes and dtypes stay, with one exception: while `jax_enable_x64` is off, 64-bit integers become 32-bit
    ones if every value fits, and float64 and complex128 are rounded to float32 and complex64. Waits for the
    tensors' device; the arrays lie uncommitted on JAX's default device.

    Args:
      tree: pytree of torch tensors of any strided layout, device and shape, `requires_grad` or not.

    Returns:
      The same tree with `jax.Array` leaves.

    Raises:
      ConversionError: a leaf is no array, holds no values (meta and fake tensors), is sparse or quantized,
        has a dtype that JAX lacks, or holds a value that does not fit.

    Example:
      >>> arrays = to_jax({"weight": torch.ones(2, 3, dtype=torch.bfloat16), "betas": (0.9, 0.999)})
      >>> arrays["weight"].dtype, arrays["weight"].shape, arrays["betas"]
      (dtype(bfloat16), (2, 3), (0.9, 0.999))
    """
    return _map_leaves(_leaf_to_jax, tree, ())


def to_torch(tree: Any) -> Any:
    """Converts every JAX or numpy array of a tree to a torch tensor on the CPU.

    The inverse of `to_jax`, with the same containers, by copy as well: the tensors own their memory and may
    be written in place. Dtypes stay: what `to_jax` narrowed to 32 bits comes back with 32 bits, and
    `Module.load_state_dict` widens it again. Torch tensors are detached and cloned; None, Python numbers and
    strings stay as they are. Waits for the arrays' devices.

    Args:
      tree: pytree of JAX or numpy arrays.

    Returns:
      The same tree with `torch.Tensor` leaves that do not require gradients.

    Raises:
      ConversionError: a leaf is no array, is traced, deleted or spread over other processes, is a PRNG key,
        or has a dtype that torch lacks.

    Example:
      >>> import jax.numpy as jnp
      >>> to_torch([jnp.arange(3), jnp.float32(0.5)])
      [tensor([0, 1, 2], dtype=torch.int32), tensor(0.5000)]
    """
    return _map_leaves(_leaf_to_torch, tree, ())


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copies one tensor to a numpy array of the dtype that it has in JAX; works while JAX traces, too.

    Raises:
      ConversionError: as for `to_jax`.
    """
    return _narrowed(_tensor_to_numpy(tensor, "<constant>"), "<constant>")


def _map_leaves(convert: Callable[[Any, str], Any], tree: Any, path: tuple[Any, ...]) -> Any:
    """Rebuilds the containers of `tree` around converted leaves."""

    def below(child: Any, key: Any) -> Any:
        return _map_leaves(convert, child, (*path, key))

    if isinstance(tree, dict):  # not through jax.tree, which sorts the keys: state_dicts keep their order
        result = copy.copy(tree)
        for key, child in tree.items():
            result[key] = below(child, jax.tree_util.DictKey(key))
        return result
    # One level of whatever JAX has registered: list, tuple, named tuple, flax and optax states, ... None and
    # empty containers have no leaf, a leaf has one.
    children, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    if not jax.tree_util.treedef_is_leaf(structure) or structure.num_leaves != 1:
        return jax.tree.unflatten(structure, [below(child, key) for (key,), child in children])
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        result = copy.copy(tree)
        for field in dataclasses.fields(tree):
            child = below(getattr(tree, field.name), jax.tree_util.GetAttrKey(field.name))
            object.__setattr__(result, field.name, child)  # frozen dataclasses too; __init__ does not run again
        return result
    if type(tree) in _SAME_IN_BOTH:
        return tree
    return convert(tree, jax.tree_util.keystr(path, simple=True, separator="/") or "<root>")


def _leaf_to_jax(leaf: Any, path: str) -> jax.Array:
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, torch.Tensor):
        host = _tensor_to_numpy(leaf, path)
    elif isinstance(leaf, np.ndarray | np.generic):
        host = _native_copy(leaf)
    else:
        raise _not_an_array(leaf, path, "to_jax", "torch tensors")
    try:
        return jax.device_put(_narrowed(host, path))  # may alias its argument: that is a copy of our own
    except TypeError as error:
        raise ConversionError(
            f"leaf {path!r} has dtype {host.dtype}; JAX has no such dtype; "
            "take it out of the tree or encode it as numbers"
        ) from error


def _tensor_to_numpy(tensor: torch.Tensor, path: str) -> np.ndarray:
    """Copies a tensor into a numpy array of the same dtype that nobody else holds."""
    if tensor.layout is not torch.strided:
        raise ConversionError(
            f"leaf {path!r} has layout {tensor.layout}; a JAX array is dense; write tensor.to_dense() first"
        )
    if tensor.is_quantized:
        raise ConversionError(
            f"leaf {path!r} is quantized ({tensor.dtype}); JAX has no quantized dtypes; write tensor.dequantize() first"
        )
    bits = _AS_BITS.get(tensor.dtype)
    if bits is None and tensor.dtype not in _NATIVE:
        raise ConversionError(
            f"leaf {path!r} has dtype {tensor.dtype}; JAX has no such dtype; "
            "convert it first, for example with tensor.to(torch.float32)"
        )
    try:
        # The casts undo lazy conjugation and negation; cpu() and contiguous() copy only where they must. Force is for
        # the zeros that torch's backward passes make without memory.
        dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        if bits is None:
            return np.array(dense.numpy(force=True))
        return np.array(dense.view(bits[1]).numpy(force=True)).view(bits[0])
    except (RuntimeError, TypeError) as error:  # NotImplementedError, from meta tensors, is a RuntimeError
        raise ConversionError(
            f"leaf {path!r} is a {type(tensor).__name__} on {tensor.device} that holds no data of its own "
            f"({str(error).splitlines()[0]}); only real tensors have values to copy; "
            "materialize it, or convert outside torch.func transforms and FakeTensorMode"
        ) from error


def _native_copy(array: Any) -> np.ndarray:
    """Copies into contiguous memory of our own, in this machine's byte order."""
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def _narrowed(host: np.ndarray, path: str) -> np.ndarray:
    """Casts 64-bit values to what JAX holds with `jax_enable_x64` as it is; refuses what does not fit."""
    dtype = jax.dtypes.canonicalize_dtype(host.dtype)
    if dtype == host.dtype or host.size == 0:
        return host.astype(dtype, copy=False)
    if host.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        misfit = (host < limits.min) | (host > limits.max)
    else:
        with np.errstate(over="ignore"):
            misfit = np.isfinite(host) & ~np.isfinite(host.astype(dtype))
    if misfit.any():
        worst = host[misfit].flat[0]
        raise ConversionError(
            f"leaf {path!r} is {host.dtype} and holds {worst}, which {dtype} cannot hold; JAX keeps 32 bits "
            "unless told otherwise; make the values smaller, or write "
            'jax.config.update("jax_enable_x64", True) at the start of the program'
        )
    return host.astype(dtype)


def _leaf_to_torch(leaf: Any, path: str) -> torch.Tensor:
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().clone()
    if isinstance(leaf, jax.Array):
        _refuse_without_values(leaf, path)
    elif not isinstance(leaf, np.ndarray | np.generic):
        raise _not_an_array(leaf, path, "to_torch", "JAX arrays")
    dtype = _FROM_NUMPY.get(np.dtype(leaf.dtype).newbyteorder("="))
    if dtype is None:
        raise ConversionError(
            f"leaf {path!r} has dtype {leaf.dtype}; torch has no such dtype; "
            "convert it first, for example with array.astype(jnp.float32)"
        )
    host = _native_copy(jax.device_get(leaf))  # explicit, for transfer guards; its result may alias the array
    if dtype in _NATIVE:
        return torch.from_numpy(host)
    bits = _AS_BITS[dtype][1]
    return torch.from_numpy(host.view(_NATIVE[bits])).view(dtype)


def _refuse_without_values(array: jax.Array, path: str) -> None:
    """Raises for JAX arrays whose values cannot be read here and now."""
    if isinstance(array, Tracer):
        raise ConversionError(
            f"leaf {path!r} is traced ({array.aval}); inside jit, grad and vmap there are no values yet; "
            "return it from the transformed function and convert the result"
        )
    if array.is_deleted():
        raise ConversionError(
            f"leaf {path!r} has been deleted; it was donated to a compiled step, which reused its memory; "
            "convert the state that the step returned"
        )
    if not array.is_fully_addressable and not array.is_fully_replicated:
        raise ConversionError(
            f"leaf {path!r} is spread over other processes ({array.sharding}); "
            "this process holds only a part; gather it first with "
            "jax.experimental.multihost_utils.process_allgather(array, tiled=True)"
        )
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise ConversionError(
            f"leaf {path!r} is a PRNG key ({array.dtype}); torch's generators have another state; "
            "convert jax.random.key_data(key) if the bits are wanted, or leave the key out"
        )


def _not_an_array(leaf: Any, path: str, function: str, arrays: str) -> ConversionError:
    if isinstance(leaf, torch.nn.Module):
        advice = "write module.state_dict() in its place"
    else:
        advice = "take it out of the tree, or make it a registered pytree, dataclass, dict, list or tuple"
    return ConversionError(
        f"leaf {path!r} is a {type(leaf).__module__}.{type(leaf).__qualname__}; "
        f"{function} converts {arrays} and passes None, numbers and strings; {advice}"
    )
