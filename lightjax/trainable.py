"""Trainable: which parameters are trained, and trees without the others."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax

from lightjax import _tree
from lightjax.errors import ConfigurationError


def hashable(trainable: Any, conflicts: list[str]) -> Any:
    """Makes patterns a tuple of strings and a mask a tuple of (path, trained): a state's structure is hashed.

    Args:
      trainable: a regular expression or several, a pytree of bools, None, or what this function returned before.
      conflicts: gets a sentence where it is none of these.
    """
    if trainable is None:
        return None
    patterns = [trainable] if isinstance(trainable, str) else trainable
    if isinstance(patterns, list | tuple) and all(isinstance(one, str) for one in patterns):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                conflicts.append(f"trainable={pattern!r} is no regular expression ({error})")
        return tuple(patterns)
    if _is_mask(trainable):
        return trainable
    mask = _tree.named_leaves(trainable)
    if not mask or not all(isinstance(leaf, bool) for leaf in mask.values()):
        conflicts.append(
            f"trainable={trainable!r} is neither regular expressions nor a tree of bools like the parameters"
        )
    return tuple(sorted(mask.items()))


def trained_leaves(trainable: Any, params: Any) -> list[bool]:
    """Says of every parameter, in the order of the flattened tree, whether it is trained.

    Args:
      trainable: as `hashable` returned it.
      params: the parameters.

    Raises:
      ConfigurationError: `trainable` does not belong to these parameters, or trains none.
    """
    names = list(_tree.named_leaves(params))
    if trainable is None:
        return [True] * len(names)
    if _is_mask(trainable):
        mask = dict(trainable)
        if odd := sorted(mask.keys() ^ set(names)):
            raise ConfigurationError(
                f"trainable is a mask that is not shaped like the parameters: {odd[0]!r} stands in only one of them; "
                "give a tree of bools with the tree of the parameters, or regular expressions."
            )
        trained = [mask[name] for name in names]
    else:
        for pattern in trainable:
            if not any(re.search(pattern, name) for name in names):
                raise ConfigurationError(
                    f"trainable={pattern!r} is found in no parameter's path; there are {', '.join(names)}."
                )
        trained = [any(re.search(pattern, name) for pattern in trainable) for name in names]
    if not any(trained):
        raise ConfigurationError("trainable trains no parameter at all; leave at least one.")
    return trained


def only(trained: list[bool], tree: Any) -> Any:
    """Leaves out what is not trained: an empty node in its place, as optax does it.

    Example:
      >>> only([True, False], {"a": 1, "b": 2})
      {'a': 1, 'b': MaskedNode()}
    """
    if all(trained):
        return tree
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        [leaf if wanted else optax.MaskedNode() for wanted, leaf in zip(trained, leaves, strict=True)]
    )


def merged(trained: list[bool], tree: Any, new: Any) -> Any:
    """Puts new leaves where a tree is trained.

    Example:
      >>> merged([True, False], {"a": 1, "b": 2}, {"a": 3, "b": optax.MaskedNode()})
      {'a': 3, 'b': 2}
    """
    leaves, structure = jax.tree.flatten(tree)
    changed = iter(jax.tree.leaves(new))
    return structure.unflatten(
        [next(changed) if wanted else leaf for wanted, leaf in zip(trained, leaves, strict=True)]
    )


def _is_mask(trainable: Any) -> bool:
    return isinstance(trainable, tuple) and bool(trainable) and isinstance(trainable[0], tuple)
