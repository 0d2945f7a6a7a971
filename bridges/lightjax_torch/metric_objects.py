"""Metric objects of torchmetrics in a ported module.

While a step is captured, a metric object begins with the states it has before the first batch, so that the step leaves
the states of its batch alone. These are joined on the devices, as the object says it (`dist_reduce_fx`), and its value
is computed in torch, on the host, from what was joined.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from lightjax_torch import operators  # noqa: F401  (defines state_before)
from lightjax_torch.arrays import to_jax, to_torch
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.lowering.table import lowers
from lightjax_torch.program import Node, line_of, origin
from lightjax_torch.source_lines import current_line

_aten = torch.ops.aten
_JOIN = {"sum": jnp.add, "max": jnp.maximum, "min": jnp.minimum}
# How an update may join a state with that of a batch, in the graph.
_JOINS = {
    "sum": (_aten.add.Tensor,),
    "max": (_aten.maximum.default, _aten.max.other),
    "min": (_aten.minimum.default, _aten.min.other),
}
# Wrappers that only arrange what the metric in them computes.
_PLAIN_WRAPPERS = ("ClasswiseWrapper", "MultitaskWrapper")


@lowers(torch.ops.lightjax.state_before.default)
def _state_before(like: jax.Array, state: jax.Array) -> jax.Array:
    return state


def is_metric_object(value: Any) -> bool:
    """Says whether something is a metric of torchmetrics."""
    library = sys.modules.get("torchmetrics")
    return library is not None and isinstance(value, library.Metric)


def is_collection(value: Any) -> bool:
    """Says whether something is a collection of them."""
    library = sys.modules.get("torchmetrics")
    return library is not None and isinstance(value, library.MetricCollection)


@jax.tree_util.register_pytree_node_class
class MetricStates:
    """The states of a metric object after some batches: merges and computes as every metric of lightjax.

    Args:
      states: arrays by name.
      updates: int32 scalar, how often it was updated.
      gathered: the metric object they are of.
    """

    elementwise = False

    def __init__(self, states: Mapping[str, Any], updates: Any, gathered: Gathered) -> None:
        self.states, self.updates, self.gathered = dict(states), updates, gathered

    def tree_flatten(self) -> tuple[Any, Any]:
        """Returns the arrays, and what is the same for every batch."""
        return (*self.states.values(), self.updates), (tuple(self.states), self.gathered)

    @classmethod
    def tree_unflatten(cls, same: Any, leaves: Any) -> MetricStates:
        """Puts it together again."""
        *values, updates = leaves
        return cls(dict(zip(same[0], values, strict=True)), updates, same[1])

    def merge(self, other: MetricStates) -> MetricStates:
        """Joins the states as the metric object says it."""
        joins = self.gathered.reductions
        states = {name: _JOIN[joins[name]](one, other.states[name]) for name, one in self.states.items()}
        return MetricStates(states, self.updates + other.updates, self.gathered)

    def compute(self) -> Any:
        """Computes the metric in torch."""
        return self.gathered.compute(self.states, self.updates)


class Gathered:
    """A metric object in the steps of a stage, and how its states are joined.

    Args:
      path: of the metric object in the module.
      twin: a copy of it, that is nobody else's.
      reported: whether its value is reported; states that only a hook reads are gathered all the same.

    Attributes:
      reductions: "sum", "max" or "min" by the state's name.
      defaults: the states before the first batch.
      latest: the states and the number of updates that were computed from last.
    """

    def __init__(self, path: str, twin: Any, *, reported: bool) -> None:
        self.path, self.twin, self.reported = path, twin, reported
        places = states_of(twin)
        self.reductions = {name: _reduction(path, one, state) for name, (one, state) in places.items()}
        self.defaults = {name: one._defaults[state] for name, (one, state) in places.items()}
        self.latest: tuple[dict[str, torch.Tensor], int] | None = None

    def compute(self, states: Mapping[str, Any], updates: Any) -> Any:
        """Returns the value of states that are on the host, {} where it is not reported; keeps them as the latest."""
        tensors = {name: to_torch(jnp.asarray(value)).to(self.defaults[name].dtype) for name, value in states.items()}
        self.latest = (tensors, int(updates))
        if not self.reported:
            return {}
        put(self.twin, *self.latest)
        return as_numbers(self.twin.compute())

    def metric(self, value: Mapping[str, Any]) -> MetricStates:
        """Makes the metric of the states that a step left."""
        return MetricStates(value["states"], jnp.asarray(value["updates"], jnp.int32), self)

    def metric_or_none(self, value: Mapping[str, Any] | None, dtype: Any, examples: int) -> MetricStates:
        """Makes the metric of states that only some steps leave: `value` None for one that does not."""
        return self.metric(value or {"states": to_jax(self.defaults), "updates": 0})


def _reduction(path: str, metric: Any, state: str) -> str:
    """Returns how a state is joined.

    Raises:
      CaptureError: a compiled step cannot join it.
    """
    from torchmetrics.utilities import data

    name, default = type(metric).__name__, metric._defaults[state]
    known = {data.dim_zero_sum: "sum", data.dim_zero_max: "max", data.dim_zero_min: "min"}
    found = known.get(metric._reductions[state])
    if isinstance(default, list):
        what = "keeps a list, one entry a batch; metrics of curves have a form of fixed size, thresholds=100"
    elif found is None:
        what = "has a dist_reduce_fx other than 'sum', 'max' or 'min'"
    elif default.device.type == "meta":
        what = "is on the meta device; make metrics outside of `with torch.device('meta')`"
    elif found == "sum" and bool(default.count_nonzero()):
        what = "is a sum that does not begin with 0"
    else:
        return found
    raise CaptureError(
        f"The metric object {path} ({name}) cannot be gathered in a compiled step: its state {state!r} {what}. Return "
        f"what it needs from predict_step, or {WAY_OUT}."
    )


def states_of(metric: Any) -> dict[str, tuple[Any, str]]:
    """Returns the places of a metric object's states, those of metrics in it included: the metric and the attribute."""
    return {
        f"{path}.{state}".removeprefix("."): (one, state)
        for path, one in metric.named_modules()
        if is_metric_object(one)
        for state in one._defaults
    }


def put(metric: Any, states: Mapping[str, torch.Tensor], updates: int) -> None:
    """Gives a metric object states."""
    for one in metric.modules():
        if is_metric_object(one):
            one.__dict__.update(_update_count=updates, _computed=None)
    for name, (one, state) in states_of(metric).items():
        setattr(one, state, states[name])


def as_numbers(value: Any) -> Any:
    """Returns what a metric object computed as numpy arrays."""
    if isinstance(value, Mapping):
        return {str(name): as_numbers(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return {str(number): as_numbers(one) for number, one in enumerate(value)}
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


class MetricObjects:
    """The metric objects of a module.

    Args:
      module: the module.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        found = {path: one for path, one in module.named_modules() if is_metric_object(one)}
        inner = {path for path in found for other in found if path.startswith(f"{other}.")}
        self._tops = [path for path in found if path not in inner]
        self._twins = {path: copy.deepcopy(found[path]) for path in self._tops}
        self._gathered: dict[tuple[str, str, bool], Gathered] = {}
        self._computing = 0

    @property
    def present(self) -> bool:
        """Whether there are any."""
        return bool(self._tops)

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """Gives every metric object the states before the first batch, and takes from it what needs values.

        Writes attributes, which whoever captures puts back.
        """
        for path in self._tops:
            for one in self._module.get_submodule(path).modules():
                if is_metric_object(one):
                    self._begin(path, one)
        for one in self._module.modules():
            if is_collection(one):
                # Which metrics share their states is asked of values.
                one.__dict__.update(_enable_compute_groups=False, _groups_checked=False)
        with _ways_without_values() if self._tops else contextlib.nullcontext():
            yield

    def _begin(self, path: str, metric: Any) -> None:
        attributes = metric.__dict__
        _reset(metric)
        if "validate_args" in attributes:
            attributes["validate_args"] = False
        if (strategy := attributes.get("nan_strategy")) is not None and hasattr(metric, "_cast_and_nan_check_input"):
            attributes["_cast_and_nan_check_input"] = _without_nans(path, metric, strategy)
        if lists := [state for state, default in metric._defaults.items() if isinstance(default, list)]:
            attributes["update"] = lambda *_, **__: _reduction(path, metric, lists[0])
        if _is_wrapper(metric) and type(metric).__name__ not in _PLAIN_WRAPPERS:
            attributes.update(update=partial(_remembers, path, metric), forward=partial(_remembers, path, metric))
            return
        compute, reset = metric.compute, partial(_reset, metric)

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._computing += 1
            try:
                return type(metric).forward(metric, *args, **kwargs)
            finally:
                self._computing -= 1

        attributes.update(
            forward=forward, compute=self._refused(path, "compute", compute), reset=self._refused(path, "reset", reset)
        )

    def _refused(self, path: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._computing:
                return method(*args, **kwargs)
            raise CaptureError(
                f"{current_line()}: {path}.{name}() is called in a step, which knows its own batch alone. Log the "
                f"object, self.log(name, self.{path}): its value of the epoch is computed when the epoch ends, where "
                f"it is reset; or call it in the hook on_..._epoch_end, or {WAY_OUT}."
            )

        return call

    def left(self, logged: Mapping[str, Any], part: str, stage: str, *, gathers: bool) -> dict[str, tuple[Any, Any]]:
        """Returns what a captured part did to the metric objects: states and how they are joined, by the metric's name.

        Args:
          logged: metric objects by the name they were logged under.
          part: what the user calls it.
          stage: what the part belongs to.
          gathers: whether the part may update them.

        Raises:
          CaptureError: they were not updated, or in a way that cannot be joined.
        """
        paths = {id(one): path for path, one in self._module.named_modules()}
        named = [(name, paths.get(id(one), ""), True) for name, one in logged.items()]
        seen = tuple(path for _, path, _ in named)
        for path in self._tops:
            if path not in seen and not any(one.startswith(f"{path}.") for one in seen) and self._updates(path):
                named.append((f"torchmetrics:{path}", path, False))
        found = {}
        for name, path, reported in named:
            updates = self._updates(path) if path else 0
            if not path or not updates or not gathers:
                why = (
                    "is no attribute of the module: assign it in __init__, self.accuracy = ..."
                    if not path
                    else "was not updated there: call it before it is logged, self.accuracy(logits, labels)"
                    if not updates
                    else "was updated there: do so in training_step"
                )
                raise CaptureError(f"{part}: the metric object {path or name!r} {why}; or {WAY_OUT}.")
            how = self._of(stage, path, reported)
            places = states_of(self._module.get_submodule(path))
            states = {state: getattr(one, attribute) for state, (one, attribute) in places.items()}
            found[name] = ({"states": states, "updates": updates}, how)
        return found

    def _updates(self, path: str) -> int:
        metrics: Any = (one for one in self._module.get_submodule(path).modules() if is_metric_object(one))
        return max(one._update_count for one in metrics)

    def _of(self, stage: str, path: str, reported: bool) -> Gathered:
        key = (stage, path, reported)
        if key not in self._gathered:
            top = next(one for one in self._tops if path == one or path.startswith(f"{one}."))
            twin = self._twins[top] if path == top else self._twins[top].get_submodule(path.removeprefix(f"{top}."))
            with _disable_current_modes():
                self._gathered[key] = Gathered(path, twin, reported=reported)
        return self._gathered[key]

    @contextlib.contextmanager
    def lent(self, stage: str) -> Iterator[list[Any]]:
        """Lets the metric objects have the states of the epoch that ended, and takes them away again.

        Args:
          stage: what ended.

        Yields:
          The metric objects that have some.
        """
        before = []
        found: dict[str, list[Any]] = {}
        for (of, path, _), one in self._gathered.items():
            if of.partition("/")[0] == stage:
                found.setdefault(path, []).append(one)
        lent = []
        for path, several in found.items():
            metric = self._module.get_submodule(path)
            before += [(one, dict(one.__dict__)) for one in metric.modules() if is_metric_object(one)]
            put(metric, *_joined(several))
            lent.append(metric)
        try:
            yield lent
        finally:
            for one, attributes in before:
                one.__dict__.clear()
                one.__dict__.update(attributes)


def _joined(several: list[Gathered]) -> tuple[dict[str, torch.Tensor], int]:
    """Returns the states of a metric object over all loaders of an evaluation."""
    join = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}
    states, updates = {name: one.clone() for name, one in several[0].defaults.items()}, 0
    for one in several:
        more, count = one.latest or (one.defaults, 1)  # a sanity check reports nothing
        states = {name: join[one.reductions[name]](state, more[name]) for name, state in states.items()}
        updates += count
    return states, updates


def _reset(metric: Any) -> None:
    """Resets a metric object, with states that are tensors of the captured program: they may be written in place."""
    metric.__dict__.update(_update_count=0, _computed=None, _forward_cache=None, _cache=None, _is_synced=False)
    for state, default in metric._defaults.items():
        if isinstance(default, torch.Tensor):
            like = torch.empty(default.shape, dtype=default.dtype)
            setattr(metric, state, torch.ops.lightjax.state_before(like, default))
        else:
            setattr(metric, state, [])


def _remembers(path: str, metric: Any, *_: Any, **__: Any) -> None:
    raise CaptureError(
        f"{current_line()}: the metric object {path} is a {type(metric).__name__}, which remembers what it computed "
        f"before; use the metric in it, or {WAY_OUT}."
    )


def _is_wrapper(metric: Any) -> bool:
    return any(kind.__name__ == "WrapperMetric" for kind in type(metric).__mro__)


@contextlib.contextmanager
def _ways_without_values() -> Iterator[None]:
    """Lets torchmetrics take its ways for accelerators, which ask for no values."""
    others = {"_XLA_AVAILABLE": True, "normalize_logits_if_needed": _normalized}
    modules = [one for name, one in list(sys.modules.items()) if name.startswith("torchmetrics.")]
    before = [(one, name, vars(one)[name]) for one in modules for name in others if name in vars(one)]
    for module, name, _ in before:
        setattr(module, name, others[name])
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _normalized(tensor: torch.Tensor, normalization: str | None = None) -> torch.Tensor:
    """Makes probabilities of what are none."""
    if not normalization:
        return tensor
    inside = ((tensor >= 0) & (tensor <= 1)).all()
    return torch.where(inside, tensor, tensor.sigmoid() if normalization == "sigmoid" else tensor.softmax(1))


def _without_nans(path: str, metric: Any, strategy: Any) -> Callable[..., Any]:
    """Returns what an aggregation does about NaN, without looking whether there is any."""
    neutral = {"MaxMetric": -torch.inf, "MinMetric": torch.inf}.get(type(metric).__name__, 0.0)

    def cast(x: Any, weight: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.as_tensor(x, dtype=None if isinstance(x, torch.Tensor) else metric.dtype)
        weight = torch.ones_like(x) if weight is None or strategy == "disable" else torch.as_tensor(weight)
        if strategy == "error":
            raise CaptureError(
                f"The metric object {path} stops at NaN (nan_strategy='error'), which a compiled step cannot; use "
                f"'ignore', and Trainer(on_nonfinite='raise'), or {WAY_OUT}."
            )
        if strategy != "disable":
            bad = x.isnan() | weight.isnan()
            left_out = strategy in ("warn", "ignore")
            x = torch.where(bad, neutral if left_out else strategy, x)
            weight = torch.where(bad, 0.0 if left_out else 1.0, weight)
        return x.to(metric.dtype), weight.to(metric.dtype)

    return cast


def check_joins(logged: Mapping[str, Any], how: Mapping[str, Any], nodes: list[Node]) -> None:
    """Checks that updates join the states of batches as the metric objects say.

    Args:
      logged: nodes of what a part logged, by name.
      how: how each is gathered.
      nodes: of the graph, in their order.

    Raises:
      CaptureError: a state depends on the states before in another way: joined states of batches would be others.
    """
    depends: set[Node] = set()
    for node in nodes:
        if node.target is torch.ops.lightjax.state_before.default or any(n in depends for n in node.all_input_nodes):
            depends.add(node)
    for name, gathered in how.items():
        if not isinstance(gathered, Gathered):
            continue
        for state, node in logged[name]["states"].items():
            metric, _ = states_of(gathered.twin)[state]
            # An object that says its states are joined from those of batches is taken at its word.
            if metric.full_state_update is not False and not _joins(node, _JOINS[gathered.reductions[state]], depends):
                raise CaptureError(
                    f"{line_of(node)}: {type(metric).__name__} ({gathered.path}) updates its state {state!r} in "
                    f"another way than by {gathered.reductions[state]}, its dist_reduce_fx; states of batches cannot "
                    f"be joined then. Write self.{state} = self.{state} + ... for a sum, or {WAY_OUT}."
                )


def _joins(node: Any, targets: tuple[Any, ...], depends: set[Node]) -> bool:
    while (node := origin(node)).target is _aten.clone.default:
        node = node.args[0]
    if node.target is torch.ops.lightjax.state_before.default:
        return True
    if node.target not in targets or node.kwargs:
        return False
    both = [one for one in node.args if isinstance(one, Node) and one in depends]
    return len(both) == 1 and _joins(both[0], targets, depends)
