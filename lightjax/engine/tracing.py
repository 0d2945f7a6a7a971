"""Tracing: a task's step, traced once and looked at before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import jax

from lightjax import _tree
from lightjax._jaxpr import has_convolution
from lightjax.engine.packing import Packing


@dataclass(frozen=True)
class Traced:
    """A step as tracing found it.

    Attributes:
      step: the step, compiled inside larger programs.
      packing: how its metrics lie in vectors.
      has_convolution: whether it convolves.
      state: shapes of the state it was traced with.
      batch: shapes of the batch it was traced with.
      programs: what is compiled of it, or being compiled, by the signature of the stretch.
      unannounced: the signatures of stretches that came without being announced by `compile_ahead`.
    """

    step: Callable[..., Any]
    packing: Packing
    has_convolution: bool
    state: Any
    batch: Any
    programs: dict[Any, Future[Callable[..., Any]]] = field(default_factory=dict)
    unannounced: list[Any] = field(default_factory=list)


def trace(
    function: Callable[[Any, Any], Any], state: Any, batch: Any, known: Traced | None = None, *, numbered: bool = False
) -> Traced:
    """Traces a step; does not compile it.

    Args:
      function: `(state, batch) -> metrics`, or `(state, batch) -> (state, metrics)`; metrics by name.
      state: the state, or its shapes.
      batch: the batch, or its shapes.
      known: what the same step was traced as before; its programs are kept where they are still good.
      numbered: the function takes `(batch, number)` in the place of the batch.
    """
    shapes = (_tree.abstract(state), _tree.abstract(batch))
    if known is not None and (known.state, known.batch) == shapes:
        return known
    step = jax.jit(function)
    argument = (shapes[1], jax.ShapeDtypeStruct((), jax.numpy.int32)) if numbered else shapes[1]
    jaxpr, found = jax.make_jaxpr(step, return_shape=True)(shapes[0], argument)
    metrics = found[1] if isinstance(found, tuple) else found
    traced = Traced(step, Packing.of(metrics), has_convolution(jaxpr), *shapes)
    if known is not None and (known.state, known.packing) == (traced.state, traced.packing):
        # Batches of another size: the programs of the sizes before stay good.
        traced = dataclasses.replace(traced, programs=known.programs, unannounced=known.unannounced)
    return traced
