"""Metrics of classifiers and language models that merge on the device; docs/metrics.md says where others are."""

from __future__ import annotations

from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree
from lightjax.errors import MetricError
from lightjax.metrics import Mean, Sum, _Accumulator

Average = Literal["macro", "micro", "weighted"] | None


class TopKAccuracy(Mean):
    """The share of examples whose label is among the k largest logits.

    Args:
      logits: floating, [..., classes].
      labels: integer class indices, [...].
      k: how many of the largest count.
      weights: [...], or None; 0 leaves an example out.

    Raises:
      MetricError: the shapes do not belong together, or k is no number of classes.

    Example:
      >>> logits = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
      >>> TopKAccuracy(logits, np.array([2, 2]), k=2).compute().item()
      0.5
    """

    def __init__(self, logits: Any, labels: Any, k: int = 5, weights: Any = None) -> None:
        logits, labels = jnp.asarray(logits), jnp.asarray(labels)
        _check("TopKAccuracy", logits.shape[:-1], logits, labels)
        if not 1 <= k <= logits.shape[-1]:
            raise MetricError(f"TopKAccuracy got k={k} for {logits.shape[-1]} classes; give a number from 1 to that.")
        _, largest = jax.lax.top_k(logits, k)
        super().__init__((largest == labels[..., None]).any(-1), weights)


class Perplexity(Mean):
    """The exponential of the mean loss of a token.

    Args:
      losses: cross-entropies in nats, of any shape.
      weights: of the shape of `losses`; 0 leaves a token out.

    Example:
      >>> Perplexity(np.log(np.array([2.0, 8.0]))).compute().round(3).item()
      4.0
    """

    def compute(self) -> Any:
        """Returns the perplexity, NaN where no token had weight."""
        return np.exp(super().compute())


class ConfusionMatrix(_Accumulator):
    """How often each class was taken for each.

    Args:
      predictions: integer class indices, [...]; or logits or probabilities, floating [..., classes].
      labels: integer class indices, [...].
      num_classes: classes; known from logits.
      weights: [...], or None; 0 leaves an example out.

    Raises:
      MetricError: the shapes do not belong together, or the number of classes is not known.

    Example:
      >>> ConfusionMatrix(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2).compute().tolist()
      [[1.0, 1.0], [0.0, 1.0]]
    """

    fields = ("counts",)
    counts: Sum

    def __init__(self, predictions: Any, labels: Any, num_classes: int | None = None, weights: Any = None) -> None:
        predictions, labels = jnp.asarray(predictions), jnp.asarray(labels)
        if jnp.issubdtype(predictions.dtype, jnp.floating):
            num_classes, predictions = predictions.shape[-1], predictions.argmax(-1)
        name = type(self).__name__
        _check(name, predictions.shape, predictions, labels)
        if num_classes is None:
            raise MetricError(f"{name} got class indices and no num_classes; write {name}(..., num_classes=10).")
        weights = jnp.ones(labels.shape) if weights is None else jnp.broadcast_to(weights, labels.shape)
        cells = (labels * num_classes + predictions).ravel()
        counts = jnp.zeros(num_classes**2).at[cells].add(weights.ravel().astype(jnp.float32))
        counts = counts.reshape(num_classes, num_classes)
        self.counts = Sum._from(counts, jnp.zeros_like(counts))

    def merge(self, other: Self) -> Self:
        """Returns the matrix of both."""
        return type(self)._from(self.counts.merge(other.counts))

    def compute(self) -> Any:
        """Returns the counts, float32 [label, prediction]."""
        return self.counts.compute()


class _Score(ConfusionMatrix):
    """A score of each class, averaged over the classes.

    The average is part of the metric's structure: the same step reports several side by side.
    """

    average: Average

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda metric: ([(jax.tree_util.GetAttrKey("counts"), metric.counts)], metric.average),
            lambda average, leaves: cls._with(average, *leaves),  # pyright: ignore[reportArgumentType]
        )

    @classmethod
    def _with(cls, average: Average, counts: Any) -> Self:
        metric = object.__new__(cls)
        metric.counts, metric.average = counts, average
        return metric

    def __init__(
        self,
        predictions: Any,
        labels: Any,
        num_classes: int | None = None,
        weights: Any = None,
        *,
        average: Average = "macro",
    ) -> None:
        if average not in ("macro", "micro", "weighted", None):
            raise MetricError(
                f"{type(self).__name__} got average={average!r}; write 'macro', 'micro', 'weighted' or None for every "
                "class."
            )
        super().__init__(predictions, labels, num_classes, weights)
        self.average = average

    def merge(self, other: Any) -> Self:
        """Returns the score of both."""
        return self._with(self.average, self.counts.merge(other.counts))

    def compute(self) -> Any:
        """Returns the score: a number, or one for each class, {"0": ..., "1": ...}; 0 where it is not defined."""
        counts = np.asarray(super().compute(), np.float64)
        hits, predicted, labelled = counts.diagonal(), counts.sum(0), counts.sum(1)
        if self.average == "micro":
            hits, predicted, labelled = (np.array([one.sum()]) for one in (hits, predicted, labelled))
        scores = _ratio(*self._parts(hits, predicted, labelled))
        if self.average is None:
            return {str(i): score for i, score in enumerate(scores)}
        if self.average == "weighted":
            return _ratio((scores * labelled).sum(), labelled.sum())
        # A class that is neither in the labels nor in the predictions says nothing about the model.
        there = (predicted + labelled) > 0
        return _ratio((scores * there).sum(), there.sum())

    def _parts(self, hits: Any, predicted: Any, labelled: Any) -> tuple[Any, Any]:
        raise NotImplementedError


class PrecisionScore(_Score):
    """The share of the predictions of a class that are right.

    Args:
      predictions: as for `ConfusionMatrix`.
      labels: integer class indices, [...].
      num_classes: classes; known from logits.
      weights: [...], or None.
      average: "macro" is the mean over the classes, "weighted" that by how often each is a label, "micro" counts all
        classes together, None gives each.

    Example:
      >>> float(PrecisionScore(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), num_classes=2).compute().round(3))
      0.833
    """

    def _parts(self, hits: Any, predicted: Any, labelled: Any) -> tuple[Any, Any]:
        return hits, predicted


class RecallScore(_Score):
    """The share of the examples of a class that are found; arguments as for `PrecisionScore`.

    Example:
      >>> float(RecallScore(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), num_classes=2).compute())
      0.75
    """

    def _parts(self, hits: Any, predicted: Any, labelled: Any) -> tuple[Any, Any]:
        return hits, labelled


class F1Score(_Score):
    """The harmonic mean of precision and recall of a class; arguments as for `PrecisionScore`.

    Example:
      >>> float(F1Score(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), num_classes=2).compute().round(3))
      0.733
    """

    def _parts(self, hits: Any, predicted: Any, labelled: Any) -> tuple[Any, Any]:
        return 2 * hits, predicted + labelled


def _ratio(part: Any, whole: Any) -> Any:
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)


def _check(name: str, shape: tuple[int, ...], predictions: Any, labels: Any) -> None:
    if shape != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise MetricError(
            f"{name} got predictions {_tree.describe(predictions)} and labels {_tree.describe(labels)}: labels are "
            "integer class indices, one for each prediction; one-hot labels become labels.argmax(-1)."
        )
