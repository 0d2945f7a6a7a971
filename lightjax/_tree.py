"""Words for places in a pytree: the path of a leaf, what a leaf is, where two trees differ."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def leaf_path(path: tuple[Any, ...]) -> str:
    """Names a leaf the way people write it: `params/Dense_0/kernel`.

    Args:
      path: a key path as `jax.tree_util.tree_flatten_with_path` gives it.

    Returns:
      The keys joined by "/"; the root of a bare leaf is "".

    Example:
      >>> import jax
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"params": {"bias": 0.0}})
      >>> leaf_path(path)
      'params/bias'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Maps the path of every leaf to the leaf, in the order of the flattened tree."""
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def describe(leaf: Any) -> str:
    """Says what a leaf is: `float32[64,10]` for arrays, the type's name for anything else.

    Example:
      >>> describe(np.zeros((2, 3), np.float32)), describe("text")
      ('float32[2,3]', 'str')
    """
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return type(leaf).__name__
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def abstract(tree: Any, *, placed: bool = False) -> Any:
    """Replaces every leaf by its shape and dtype (weak types kept); `placed` keeps where it lies as well."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        if isinstance(leaf, np.ndarray):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        if isinstance(leaf, jax.Array):  # `typeof` takes up to 0.15 ms for each
            sharding = leaf.sharding if placed else None
            weak_type = getattr(leaf, "weak_type", False)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=weak_type)
        aval = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)

    return jax.tree.map(one, tree)


def size_in_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def difference(before: Any, after: Any) -> str | None:
    """Describes the first place where two trees differ in structure, shape or dtype.

    Args:
      before: a pytree of arrays or shapes.
      after: the pytree to compare with it.

    Returns:
      One clause naming the leaf path with what it was and what it became, or None where both agree.

    Example:
      >>> difference({"w": np.zeros(2, np.float32)}, {"w": np.zeros(3, np.float32)})
      "leaf 'w' was float32[2] and became float32[3]"
    """
    old, new = named_leaves(before), named_leaves(after)
    for path, leaf in old.items():
        if path not in new:
            return f"leaf {path!r} was {describe(leaf)} and is gone"
        if describe(leaf) != describe(new[path]):
            return f"leaf {path!r} was {describe(leaf)} and became {describe(new[path])}"
    for path, leaf in new.items():
        if path not in old:
            return f"leaf {path!r} was not there and became {describe(leaf)}"
    if jax.tree.structure(before) != jax.tree.structure(after):
        return f"the tree was {jax.tree.structure(before)} and became {jax.tree.structure(after)}"
    return None
