"""Transformations around the optimizer of a state: what callbacks keep and change inside of the compiled step.

Each has its own state beside that of the optimizer it is around, so it is saved, resumed and sharded like the rest, and
the loop need not stop for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from lightjax import _tree
from lightjax.errors import ConfigurationError
from lightjax.train_states import map_train_states, train_states
from lightjax.trainable import only, trained_leaves

Node = TypeVar("Node")


class Averaged(NamedTuple):
    """Parameters averaged over steps.

    Attributes:
      inner: the state of the optimizer inside.
      average: like the parameters, in float32 at least.
      averaged: int32 scalar, updates that went into the average.
      steps: int32 scalar, updates in all.
    """

    inner: Any
    average: Any
    averaged: jax.Array
    steps: jax.Array


class Frozen(NamedTuple):
    """Groups of parameters that can be frozen.

    Attributes:
      inner: the state of the optimizer inside.
      trained: bool [groups], which are trained now.
    """

    inner: Any
    trained: jax.Array


class Masked(NamedTuple):
    """Parameters of which some entries are held at zero.

    Attributes:
      inner: the state of the optimizer inside.
      masks: bool, like the parameters; False where an entry is zero.
    """

    inner: Any
    masks: Any


class Scaled(NamedTuple):
    """Updates that are scaled, and an average that is made between epochs.

    Attributes:
      inner: the state of the optimizer inside.
      scale: float32 scalar.
    """

    inner: Any
    scale: jax.Array


def averaging(
    inner: optax.GradientTransformation, share: Callable[[jax.Array], jax.Array], *, every: int, start: int
) -> optax.GradientTransformationExtraArgs:
    """Averages the parameters that every update leads to.

    Args:
      inner: the optimizer.
      share: of the new parameters in the average, given how many updates it holds already (int32).
      every: updates between two that are averaged.
      start: updates before the average begins; until then it is the parameters themselves.
    """
    inside = optax.with_extra_args_support(inner)

    def init(params: Any) -> Averaged:
        average = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), params)
        return Averaged(inside.init(params), average, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Averaged]:
        updates, inner_state = inside.update(updates, state.inner, params, **extra)
        steps = state.steps + 1
        counts = (steps > start) & ((steps - start) % every == 0)
        new_share = jnp.where(state.averaged == 0, 1.0, share(state.averaged))

        def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
            new = new.astype(old.dtype)
            joined = jnp.where(state.averaged == 0, new, old + new_share.astype(old.dtype) * (new - old))
            return jnp.where(counts, joined, jnp.where(steps <= start, new, old))

        average = jax.tree.map(averaged, state.average, optax.apply_updates(params, updates))
        return updates, Averaged(inner_state, average, state.averaged + counts, steps)

    return optax.GradientTransformationExtraArgs(init, update)


def freezing(
    inner: optax.GradientTransformation, groups: Sequence[str], trained: Sequence[bool]
) -> optax.GradientTransformationExtraArgs:
    """Holds groups of parameters fixed, whatever their gradients, momentum and weight decay are.

    Args:
      inner: the optimizer.
      groups: regular expressions searched in the parameters' paths; the first that is found counts.
      trained: which groups are trained in the beginning.
    """
    inside = optax.with_extra_args_support(inner)

    def held(tree: Any, state: Frozen) -> Any:
        def one(path: Any, leaf: jax.Array) -> jax.Array:
            name = _tree.leaf_path(path)
            group = next((i for i, pattern in enumerate(groups) if re.search(pattern, name)), None)
            return leaf if group is None else jnp.where(state.trained[group], leaf, jnp.zeros_like(leaf))

        return jax.tree_util.tree_map_with_path(one, tree)

    def init(params: Any) -> Frozen:
        return Frozen(inside.init(params), jnp.asarray(trained, bool))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Frozen]:
        updates, inner_state = inside.update(held(updates, state), state.inner, params, **extra)
        return held(updates, state), state._replace(inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def masking(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Holds entries of parameters at zero where their mask says so."""
    inside = optax.with_extra_args_support(inner)

    def init(params: Any) -> Masked:
        return Masked(inside.init(params), jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Masked]:
        updates, inner_state = inside.update(updates, state.inner, params, **extra)
        # Minus the parameter: added to it, that is exactly zero.
        updates = jax.tree.map(
            lambda mask, update, param: jnp.where(mask, update, -param.astype(update.dtype)),
            state.masks,
            updates,
            params,
        )
        return updates, state._replace(inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def scaling(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Scales the updates by a number in the state, 1 in the beginning."""
    inside = optax.with_extra_args_support(inner)

    def init(params: Any) -> Scaled:
        return Scaled(inside.init(params), jnp.ones((), jnp.float32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Scaled]:
        updates, inner_state = inside.update(updates, state.inner, params, **extra)
        updates = jax.tree.map(lambda leaf: leaf * state.scale.astype(leaf.dtype), updates)
        return updates, state._replace(inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def put_around(state: Any, kind: type, make: Callable[[optax.GradientTransformation], Any], who: str) -> Any:
    """Puts a transformation around the optimizer of every `TrainState`; one that has it already is left as it is.

    Args:
      state: any pytree; pure, may be traced.
      kind: what the transformation keeps.
      make: makes it of an optimizer; its `init` is given the parameters and its `inner` is replaced by what there is.
      who: asks, for the message.

    Raises:
      ConfigurationError: there is no `TrainState`.
    """
    if not train_states(state):
        raise ConfigurationError(
            f"{who} works on the optimizer of a TrainState, and the state is {type(state).__name__} without one; "
            "return lj.TrainState.create(...) from init."
        )

    def one(train_state: Any) -> Any:
        if nodes_of(train_state.opt_state, kind):
            return train_state
        optimizer = make(train_state.optimizer)
        kept: Any = optimizer.init(_trained(train_state))
        return train_state.replace(optimizer=optimizer, opt_state=kept._replace(inner=train_state.opt_state))

    return map_train_states(one, state)


def nodes_of(tree: Any, kind: type[Node]) -> list[Node]:
    """Returns the states of a kind that are in a tree."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def replace_nodes(tree: Any, kind: type[Node], change: Callable[[Node], Node]) -> Any:
    """Replaces the states of a kind that are in a tree."""
    return jax.tree.map(
        lambda leaf: change(leaf) if isinstance(leaf, kind) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, kind),
    )


def averaged(state: Any) -> Any:
    """Returns a state with averaged parameters in the place of the last ones; pure, and free of copies.

    Args:
      state: of a run with `lj.EMA` or another average, or of its checkpoint.

    Raises:
      ConfigurationError: the state holds no average.

    Example:
      >>> import lightjax as lj
      >>> state = lj.TrainState.create(params={"w": jnp.zeros(())}, optimizer=optax.sgd(1.0))
      >>> state = lj.EMA(decay=0.5).extend_state(state)
      >>> for _ in range(2):
      ...     state = state.apply_gradients({"w": jnp.ones(())})
      >>> float(state.params["w"]), float(averaged(state).params["w"])
      (-2.0, -1.5)
    """
    # A state of another kind, such as a torch module's, does it itself.
    if callable(own := getattr(state, "averaged", None)) and (found := own()) is not None:
        return found
    if not nodes_of(state, Averaged):
        raise ConfigurationError(
            "averaged was called on a state without an average; train with callbacks=[lj.EMA(decay=0.999)]."
        )

    def one(train_state: Any) -> Any:
        found = nodes_of(train_state.opt_state, Averaged)
        if not found:
            return train_state
        # Parameters that are not trained have no average.
        params = jax.tree.map(
            lambda leaf, average: (
                leaf
                if isinstance(average, optax.MaskedNode)
                else jnp.where(found[0].averaged > 0, average.astype(leaf.dtype), leaf)
            ),
            train_state.params,
            found[0].average,
        )
        return train_state.replace(params=params)

    return map_train_states(one, state)


def _trained(train_state: Any) -> Any:
    """Returns what the optimizer sees of the parameters."""
    return only(trained_leaves(train_state.policy.trainable, train_state.params), train_state.params)
