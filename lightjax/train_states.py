"""The `TrainState`s in a state, which may be any pytree: their policy, what a step sees of them, what they report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from lightjax import _tree
from lightjax.metrics import Last, Metric
from lightjax.nonfinite import Nonfinite
from lightjax.precision import Precision
from lightjax.state import TrainState
from lightjax.trainable import only, trained_leaves


def train_states(state: Any) -> dict[str, TrainState]:
    """Finds the `TrainState`s in a state, by path: "" for one that is the state itself."""
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_train_state)
    return {_tree.leaf_path(path): leaf for path, leaf in leaves if _is_train_state(leaf)}


def map_train_states(function: Callable[[TrainState], TrainState], state: Any) -> Any:
    """Replaces every `TrainState` in a state."""
    return jax.tree.map(lambda leaf: function(leaf) if _is_train_state(leaf) else leaf, state, is_leaf=_is_train_state)


def for_compute(state: Any) -> Any:
    """Casts the parameters of every `TrainState` to what its policy computes with."""
    return map_train_states(lambda one: one.replace(params=one.compute_params), state)


def precision_of(state: Any) -> Precision:
    """Returns the precision of a state: that of its first `TrainState`; one that casts nothing without any."""
    return next((one.policy.precision for one in train_states(state).values()), Precision())


def policy_metrics(state: Any, reported: Mapping[str, Metric]) -> dict[str, Metric]:
    """Makes the metrics that policies ask for: `loss_scale`, `skipped_steps`, `grad_norm`.

    Those of a `TrainState` at a path are prefixed with it.

    Args:
      state: after a step.
      reported: the step's own metrics, which count where names are equal.
    """
    metrics: dict[str, Metric] = {}
    for path, one in train_states(state).items():
        prefix = f"{path}/" if path else ""
        if one.loss_scale is not None:
            metrics[f"{prefix}loss_scale"] = Last(one.loss_scale.scale)
        if one.skipped_steps is not None:
            metrics[f"{prefix}skipped_steps"] = Last(one.skipped_steps)
        if one.grad_norm is not None:
            metrics[f"{prefix}grad_norm"] = Last(one.grad_norm)
        if one.nonfinite is not None:
            names = list(_tree.named_leaves(only(trained_leaves(one.policy.trainable, one.params), one.params)))
            paths = [f"{prefix}{name}" for name in names]
            metrics[f"{prefix}nonfinite"] = Nonfinite.of(one.step, one.nonfinite, paths, reported)
    return metrics | dict(reported)


def _is_train_state(value: Any) -> bool:
    return isinstance(value, TrainState)
