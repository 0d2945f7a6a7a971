"""Metrics: pytrees that merge on the device and compute at the end.

The protocol is the one clu and metrax metrics follow, so that theirs work wherever ours do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree
from lightjax.errors import MetricError

Level = Literal["step", "epoch"]


@runtime_checkable
class Metric(Protocol):
    """A pytree of arrays that knows how to join another of its kind.

    `merge` runs inside compiled code and keeps shapes and dtypes; `compute` turns what was gathered into the
    reported value, and is called with numpy leaves on the host. One of a train step that has an attribute `level` is
    reported for windows of steps ("step") or for whole epochs ("epoch") alone.
    """

    def merge(self, other: Any, /) -> Any:
        """Returns the metric of both sets of examples."""
        ...

    def compute(self) -> Any:
        """Returns the reported value: a number, an array, or a dict of them."""
        ...


class _Accumulator:
    """A metric whose named fields are its leaves; subclasses are built from values and hold accumulators."""

    fields: ClassVar[tuple[str, ...]] = ()
    # Whether `compute` treats stacked metrics row by row, so that many are computed in one go.
    elementwise: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "compute" in cls.__dict__ and "elementwise" not in cls.__dict__:
            cls.elementwise = False
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda metric: (
                [(jax.tree_util.GetAttrKey(name), getattr(metric, name)) for name in cls.fields],
                None,
            ),
            lambda _, leaves: cls._from(*leaves),
        )

    @classmethod
    def _from(cls, *leaves: Any) -> Self:
        metric = object.__new__(cls)
        for name, leaf in zip(cls.fields, leaves, strict=True):
            setattr(metric, name, leaf)
        return metric

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)}' for name in self.fields)})"


class Sum(_Accumulator):
    """The sum of all values, kept in two floats so that long epochs lose no digits.

    Values are added up in float32 (float64 where x64 is on and the values have it); `residual` holds what rounding
    took from `total` (Knuth's two-sum), so that a million merges are as exact as one.

    Example:
      >>> Sum(np.array([1.0, 2.0])).merge(Sum(3.0)).compute().item()
      6.0
    """

    fields = ("total", "residual")
    elementwise = True
    total: Any
    residual: Any

    def __init__(self, values: Any) -> None:
        self.total = jnp.sum(_accumulable(values))
        self.residual = jnp.zeros_like(self.total)

    def merge(self, other: Self) -> Self:
        """Returns the sum over both."""
        total = self.total + other.total
        moved = total - self.total
        lost = (self.total - (total - moved)) + (other.total - moved)
        residual = self.residual + other.residual + lost
        # The residual flows back into the total as soon as the total can hold some of it.
        settled = total + residual
        return type(self)._from(settled, residual - (settled - total))

    def compute(self) -> Any:
        """Returns the sum."""
        return self.total + self.residual


class Mean(_Accumulator):
    """The weighted mean of all values: exact over batches of unequal size and examples of unequal weight.

    As a loss it stays exact through microbatches and devices, which a scalar mean does not.

    Args:
      values: numbers of any shape.
      weights: of the shape of `values`, or a scalar; 1 by default. A value of weight 0 is ignored, NaN included.

    Raises:
      MetricError: the shapes differ.

    Example:
      >>> Mean(np.array([1.0, 3.0])).merge(Mean(5.0)).compute().item()
      3.0
      >>> Mean(np.array([1.0, 9.0]), weights=np.array([1.0, 0.0])).compute().item()
      1.0
    """

    fields = ("total", "weight")
    elementwise = True
    total: Sum
    weight: Sum

    def __init__(self, values: Any, weights: Any = None) -> None:
        values = _accumulable(values)
        if weights is None:
            self.total, self.weight = Sum(values), Sum(jnp.asarray(values.size, values.dtype))
            return
        weights = _accumulable(weights)
        if weights.shape not in ((), values.shape):
            raise MetricError(
                f"Mean got values of shape {values.shape} and weights of shape {weights.shape}: every value needs a "
                "weight; broadcast the weights first, jnp.broadcast_to(weights, values.shape)."
            )
        weights = jnp.broadcast_to(weights, values.shape)
        self.total = Sum(jnp.where(weights == 0, 0, values * weights))
        self.weight = Sum(weights)

    def merge(self, other: Self) -> Self:
        """Returns the mean over both, each value counted with its weight."""
        return type(self)._from(self.total.merge(other.total), self.weight.merge(other.weight))

    def compute(self) -> Any:
        """Returns the mean, NaN where no value had weight."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.total.compute() / self.weight.compute()


class Accuracy(Mean):
    """The share of examples whose largest logit is at the label.

    Args:
      logits: floating, [..., classes].
      labels: integer class indices, [...].
      weights: [...], or None; 0 leaves an example out.

    Raises:
      MetricError: the shapes do not belong together.

    Example:
      >>> Accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])).compute().item()
      0.5
    """

    def __init__(self, logits: Any, labels: Any, weights: Any = None) -> None:
        logits, labels = jnp.asarray(logits), jnp.asarray(labels)
        if logits.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise MetricError(
                f"Accuracy got logits {_tree.describe(logits)} and labels {_tree.describe(labels)}: labels are integer "
                "class indices with the shape of the logits less the last axis; one-hot labels become "
                "labels.argmax(-1)."
            )
        super().__init__(logits.argmax(-1) == labels, weights)


class _Extreme(_Accumulator):
    fields = ("value",)
    elementwise = True
    value: Any

    def compute(self) -> Any:
        """Returns the extreme value."""
        return self.value


class Max(_Extreme):
    """The largest value.

    Example:
      >>> Max(np.array([1.0, 4.0])).merge(Max(2.0)).compute().item()
      4.0
    """

    def __init__(self, values: Any) -> None:
        self.value = jnp.max(jnp.asarray(values))

    def merge(self, other: Self) -> Self:
        """Returns the larger of both; NaN where either is."""
        return type(self)._from(jnp.maximum(self.value, other.value))


class Min(_Extreme):
    """The smallest value.

    Example:
      >>> Min(np.array([1.0, 4.0])).merge(Min(2.0)).compute().item()
      1.0
    """

    def __init__(self, values: Any) -> None:
        self.value = jnp.min(jnp.asarray(values))

    def merge(self, other: Self) -> Self:
        """Returns the smaller of both; NaN where either is."""
        return type(self)._from(jnp.minimum(self.value, other.value))


class Last(_Accumulator):
    """The newest value: a learning rate, a scale, a temperature.

    Example:
      >>> Last(1.0).merge(Last(2.0)).compute().item()
      2.0
    """

    fields = ("value",)
    elementwise = True
    value: Any

    def __init__(self, value: Any) -> None:
        self.value = jnp.asarray(value)

    def merge(self, other: Self) -> Self:
        """Returns the later of both."""
        return other

    def compute(self) -> Any:
        """Returns the newest value."""
        return self.value


def as_metrics(reported: Any, batch: Any, step_name: str) -> dict[str, Metric]:
    """Makes what a step reported into metrics that merge.

    Runs while the step is traced. Nested dicts are joined with "/"; a bare scalar becomes the mean weighted by the
    batch's size.

    Args:
      reported: the step's metrics: a dict of names to metrics, scalars, or dicts of them.
      batch: the batch of the step, for its size.
      step_name: what the user calls the step, for messages.

    Raises:
      MetricError: the report is no dict, a value is neither number nor metric, or a bare scalar has no batch size.
    """
    if not isinstance(reported, Mapping):
        raise MetricError(
            f"{step_name} reported its metrics as {_kind(reported)}; they are a dict of names to numbers or metrics: "
            '{"loss": loss, "accuracy": lj.Mean(correct)}.'
        )
    metrics: dict[str, Metric] = {}
    for name, value in reported.items():
        if isinstance(value, Mapping):
            inner = as_metrics(value, batch, step_name)
            metrics |= {f"{name}/{inner_name}": metric for inner_name, metric in inner.items()}
        else:
            metrics[str(name)] = _as_metric(str(name), value, batch, step_name)
    return metrics


def computed(metrics: Mapping[str, Metric], prefix: str = "") -> dict[str, Any]:
    """Computes metrics whose leaves are on the host.

    Returns:
      Python floats by name (arrays stay arrays); a metric that computes to a dict gives `name/key` for each key.
    """
    return numbers({name: metric.compute() for name, metric in metrics.items()}, prefix)


def numbers(computed_values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Makes what metrics computed into Python floats by name, as `computed` does."""
    values: dict[str, Any] = {}
    for name, value in computed_values.items():
        if isinstance(value, float):
            values[prefix + name] = value
            continue
        parts = {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
        for part_name, part in parts.items():
            part = np.asarray(part)
            values[prefix + part_name] = float(part) if part.ndim == 0 else part
    return values


def batch_size(batch: Any) -> int | None:
    """Returns the leading dimension all array leaves of a batch share, or None where they share none."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch) if getattr(leaf, "ndim", 0)}
    return sizes.pop() if len(sizes) == 1 else None


def is_metric(value: Any) -> bool:
    """Says whether a value merges and computes; asks its type, which keeps tracers from being touched."""
    return callable(getattr(type(value), "merge", None)) and callable(getattr(type(value), "compute", None))


def _as_metric(name: str, value: Any, batch: Any, step_name: str) -> Metric:
    if is_metric(value):
        # Some of metrax's keep a Python number among their arrays.
        return jax.tree.map(jnp.asarray, value)
    if not isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array) or np.ndim(value) != 0:
        raise MetricError(
            f"{step_name} reported metric {name!r} as {_kind(value)}, which is neither a number nor a metric; report "
            f"a scalar, or a metric such as lj.Mean(values)."
        )
    size = batch_size(batch)
    if size is None:
        shapes = ", ".join(f"{path!r} {_tree.describe(leaf)}" for path, leaf in _tree.named_leaves(batch).items())
        raise MetricError(
            f"{step_name} reported metric {name!r} as a bare number, which is weighted by the batch's size, but the "
            f"leaves of the batch share no leading dimension ({shapes}); report lj.Mean(value, weights=examples)."
        )
    return Mean(value, weights=size)


def _accumulable(values: Any) -> jax.Array:
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _kind(value: Any) -> str:
    return f"{_tree.describe(value)} array" if hasattr(value, "shape") else f"{value!r} ({type(value).__name__})"
