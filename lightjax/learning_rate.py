"""Learning rates: what an optimizer's state and its schedules say they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lightjax import _tree
from lightjax.errors import ConfigurationError
from lightjax.train_states import train_states


def learning_rates(optimizer: Any, opt_state: Any) -> dict[str, jax.Array]:
    """Reads the learning rates of an optax optimizer; pure, may be traced.

    What `optax.inject_hyperparams` keeps counts first, then every schedule, then a constant.

    Args:
      optimizer: the transformation.
      opt_state: its state.

    Returns:
      float32 scalars by name: "" for the only one, else a number or the path in the state. {} where the optimizer has
      none. An injected one is that of the last step, a schedule's that of the next.

    Raises:
      ConfigurationError: schedules and counters cannot be told apart.

    Example:
      >>> optimizer = optax.adamw(optax.linear_schedule(1.0, 0.0, 10))
      >>> state = optimizer.init({"w": jnp.ones(2)})
      >>> _, state = optimizer.update({"w": jnp.ones(2)}, state, {"w": jnp.ones(2)})
      >>> {name: round(float(value), 3) for name, value in learning_rates(optimizer, state).items()}
      {'': 0.9}
    """
    injected = {
        _tree.leaf_path(path): node.hyperparams["learning_rate"]
        for path, node in jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_injected)
        if _is_injected(node)
    }
    if injected:
        return {"": next(iter(injected.values()))} if len(injected) == 1 else injected
    counts = [node.count for node in jax.tree.leaves(opt_state, is_leaf=_is_scheduled) if _is_scheduled(node)]
    schedules = list(_closed_over(optimizer, "step_size_fn"))
    if len(schedules) != len(counts):
        raise ConfigurationError(
            f"The optimizer has {len(schedules)} schedules and {len(counts)} counters of steps, which cannot be told "
            "apart; name the schedule, LearningRateMonitor(schedule=...), or use optax.inject_hyperparams."
        )
    # The sign is part of the step: optax goes down by scaling with a negative rate.
    found = [abs(jnp.float32(schedule(count))) for schedule, count in zip(schedules, counts, strict=True)]
    if not found:
        sizes = _closed_over(optimizer, "step_size")
        found = [jnp.float32(-size) for size in sizes if isinstance(size, float) and size < 0]
    return {"": found[0]} if len(found) == 1 else {str(i): rate for i, rate in enumerate(found)}


def named_learning_rates(state: Any) -> dict[str, jax.Array]:
    """Reads the learning rates of every `TrainState` in a state: "learning_rate", with a path where there are several.

    Raises:
      ConfigurationError: as `learning_rates`.
    """
    return {
        "/".join(filter(None, ("learning_rate", path, name))): rate + 0
        for path, one in train_states(state).items()
        for name, rate in learning_rates(one.optimizer, one.opt_state).items()
    }


def injected_hyperparameters(state: Any, kinds: Mapping[str, Sequence[str]]) -> dict[str, jax.Array]:
    """Reads what `optax.inject_hyperparams` keeps in the optimizers of every `TrainState`; pure, may be traced.

    Args:
      state: any pytree that holds them.
      kinds: names in the optimizer of which the first there is counts, by the name in the result.

    Returns:
      Scalars by kind, with a path where there are several.
    """
    found = {}
    for path, one in train_states(state).items():
        nodes = [(at, node) for at, node in jax.tree_util.tree_leaves_with_path(one.opt_state, is_leaf=_is_injected)]
        nodes = [(at, node.hyperparams) for at, node in nodes if _is_injected(node)]
        for kind, names in kinds.items():
            for at, kept in nodes:
                if (name := next((name for name in names if name in kept), None)) is not None:
                    place = _tree.leaf_path(at) if len(nodes) > 1 else ""
                    found["/".join(filter(None, (kind, path, place)))] = kept[name] + 0
    return found


def _is_injected(node: Any) -> bool:
    return "learning_rate" in (getattr(node, "hyperparams", None) or ())


def _is_scheduled(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def _closed_over(value: Any, name: str, seen: set[int] | None = None) -> Iterator[Any]:
    """Finds what the functions inside of an optimizer have closed over under a name, in the order of their states.

    An optax schedule is nowhere but there.
    """
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, str | int | float | jax.Array | type | None):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _closed_over(value[key], name, seen)
    elif isinstance(value, optax.GradientTransformation):
        yield from _closed_over(value.update, name, seen)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _closed_over(one, name, seen)
    elif (owner := getattr(value, "__self__", None)) is not None:
        yield from _closed_over(getattr(owner, "__dict__", None), name, seen)
    elif callable(value):
        function = getattr(value, "__wrapped__", None) or getattr(value, "func", value)
        cells = zip(
            getattr(getattr(function, "__code__", None), "co_freevars", ()),
            getattr(function, "__closure__", None) or (),
            strict=True,
        )
        for variable, cell in cells:
            if variable == name:
                yield cell.cell_contents
            else:
                yield from _closed_over(cell.cell_contents, name, seen)
