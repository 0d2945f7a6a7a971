"""Microbatches: a batch in parts, one after the other, with the gradient and the metrics of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightjax import _tree
from lightjax._jaxpr import has_convolution
from lightjax.errors import StepError
from lightjax.metrics import batch_size, is_metric
from lightjax.policy import Policy

# `(part, index, carried) -> (weight, (loss, gradients), carried, aux)`
Part = Callable[[Any, Any, Any], tuple[jax.Array, Any, Any, Any]]


def microbatch_size(policy: Policy, batch: Any) -> int | None:
    """Returns how many examples a microbatch of this batch has; None where the batch is not cut.

    Raises:
      StepError: the batch cannot be cut into equal parts, or has no examples to cut between.
    """
    if policy.microbatches == 1 and policy.microbatch_size is None:
        return None
    examples = batch_size(batch)
    if examples is None:
        leaves = ", ".join(f"{path!r} {_tree.describe(leaf)}" for path, leaf in _tree.named_leaves(batch).items())
        raise StepError(
            f"A batch is cut into microbatches along the first axis of its leaves, but these share none: {leaves}; "
            "give every leaf one row an example."
        )
    size = policy.microbatch_size
    if size is None:
        size, rest = divmod(examples, policy.microbatches)
        if rest:
            raise StepError(
                f"A batch of {examples} examples was to be cut into {policy.microbatches} equal microbatches, and "
                f"{examples} is not divisible by {policy.microbatches}; give a batch size that is, or parts of a fixed "
                "size with a shorter last one, state.with_policy(microbatch_size=...)."
            )
    return size if size < examples else None


def in_microbatches(part: Part, batch: Any, size: int, carried: Any) -> tuple[jax.Array, Any, Any, Any]:
    """Runs a function on parts of a batch and averages what it returns, by weight.

    Args:
      part: `(part, index, carried) -> (weight, means, carried, aux)`: `means` over the part are `(loss, gradients)`,
        `weight` is what they count, `carried` goes on to the next part, `aux` is joined.
      batch: leaves [examples, ...].
      size: examples of a part; the last one may have fewer.
      carried: for the first part.

    Returns:
      `(weight, means, carried, aux)` of the whole batch; means are added up, and given, in float32 at least.
    """
    examples = batch_size(batch)
    assert examples is not None
    count, rest = divmod(examples, size)
    stack = jax.tree.map(lambda leaf: leaf[: count * size].reshape(count, size, *leaf.shape[1:]), batch)
    shapes = jax.eval_shape(part, _first(stack), 0, carried)
    weight, sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _wide(leaf.dtype)), shapes[:2])

    def one(state: Any, step: Any) -> tuple[Any, Any]:
        weight, sums, carried = state
        rows, index = step
        more, means, carried, aux = part(rows, index, carried)
        return (weight + more, jax.tree.map(jnp.add, sums, weighted(means, more)), carried), aux

    state, steps = (weight, sums, carried), (stack, jnp.arange(count))
    # XLA on the CPU has slow convolutions inside of loops (docs/decisions.md): the parts are written out there.
    unrolled = jax.default_backend() == "cpu" and has_convolution(jax.make_jaxpr(one)(state, _first(steps)))
    state, stacked = lax.scan(one, state, steps, unroll=count if unrolled else 1)
    joined = [_stack_joined(stacked, size)]
    sizes = [count * size]
    if rest:
        state, aux = one(state, (jax.tree.map(lambda leaf: leaf[count * size :], batch), jnp.asarray(count)))
        joined.append(aux)
        sizes.append(rest)
    weight, sums, carried = state
    return weight, _divided(sums, weight), carried, _joined(joined, sizes)


def replica_mean(means: Any, weight: jax.Array, axis: str) -> Any:
    """Averages `(loss, gradients)` over a mapped axis, each replica counted with its weight."""
    return _divided(*lax.psum((weighted(means, weight), weight), axis))


def weighted(means: Any, weight: jax.Array) -> Any:
    """Multiplies means with their weight; without any, a mean is 0 / 0 and counts for nothing."""
    return jax.tree.map(lambda leaf: jnp.where(weight == 0, 0, leaf.astype(_wide(leaf.dtype)) * weight), means)


def _divided(sums: tuple[Any, Any], weight: jax.Array) -> tuple[Any, Any]:
    """Divides `(loss, gradients)` by their weight; without any, the loss is NaN and the gradient 0, as of one batch."""
    loss, gradients = sums
    return loss / weight, jax.tree.map(lambda leaf: leaf / jnp.where(weight == 0, 1, weight), gradients)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _stack_joined(stacked: Any, size: int) -> Any:
    """Joins what equal parts reported: leaves [parts, ...]."""

    def join(path: tuple[Any, ...], leaf: Any) -> Any:
        if is_metric(leaf):
            rest = jax.tree.map(lambda rows: rows[1:], leaf)
            return lax.scan(lambda before, metric: (before.merge(metric), None), _first(leaf), rest)[0]
        if leaf.ndim == 1:
            return jnp.mean(leaf, dtype=_wide(leaf.dtype))
        if leaf.shape[1] != size:
            raise StepError(
                f"A loss function that runs on microbatches returned {_tree.leaf_path(path)!r} as "
                f"{leaf.dtype}{list(leaf.shape[1:])}, which nobody can join: metrics are merged, numbers averaged, and "
                f"arrays with one row an example ({size} here) put one after the other; report one of these."
            )
        return leaf.reshape(-1, *leaf.shape[2:])

    return jax.tree_util.tree_map_with_path(join, stacked, is_leaf=is_metric)


def _joined(parts: list[Any], sizes: list[int]) -> Any:
    """Joins what unequal parts reported."""
    if len(parts) == 1:
        return parts[0]

    def join(first: Any, second: Any) -> Any:
        if is_metric(first):
            return first.merge(second)
        if jnp.ndim(first) == 0:
            return (first * sizes[0] + second * sizes[1]) / sum(sizes)
        return jnp.concatenate([first, second])

    return jax.tree.map(join, *parts, is_leaf=is_metric)
