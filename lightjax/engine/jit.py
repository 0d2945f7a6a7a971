"""JitEngine: steps compiled ahead of time with `jax.jit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lightjax import _tree
from lightjax.data.stretch import Stretch
from lightjax.engine.contract import checked_eval_step, checked_init, checked_predict_step, checked_train_step, strong
from lightjax.engine.packing import Packing
from lightjax.engine.program import Vectors, eval_program, train_program


@dataclass(frozen=True)
class Traced:
    """A step as tracing found it.

    Attributes:
      step: the step, compiled inside larger programs.
      packing: how its metrics lie in vectors.
      looped: whether it runs inside a loop.
      signature: the shapes it was traced with.
      programs: what was compiled of it, by the shapes of the stretch.
    """

    step: Callable[..., Any]
    packing: Packing
    looped: bool
    signature: Any
    programs: dict[Any, Callable[..., Any]] = field(default_factory=dict)


class JitEngine:
    """Runs a task's functions on one device.

    Programs are compiled ahead of time, one for each shape of stretch, and kept.

    Args:
      task: the user's functions.
      log_every_n_steps: length of the windows that training metrics are merged over.
      device: where to run; jax's default device when None.
    """

    def __init__(self, task: Any, *, log_every_n_steps: int = 50, device: Any = None) -> None:
        self.task = task
        self.device = device or jax.devices()[0]
        self.log_every_n_steps = log_every_n_steps
        self._traced: dict[str, Traced] = {}
        self._predict: Callable[..., Any] | None = None

    def create_state(self, key: jax.Array, batch: Any) -> Any:
        """Runs the task's `init`, compiled."""
        state = jax.jit(checked_init(self.task))(self.place(key), self.place(batch))
        return _own_buffers(state)

    def adopt_state(self, state: Any) -> Any:
        """Copies a state of the user's to the device: the steps donate what they run on."""
        return _own_buffers(self.place(jax.tree.map(lambda leaf: jnp.copy(strong(leaf)), state)))

    def place(self, tree: Any) -> Any:
        """Puts arrays on the device; does not wait."""
        return jax.device_put(tree, self.device)

    def trace_train(self, state: Any, batch: Any) -> Traced:
        """Traces the train step, which checks its contract; does not compile."""
        return self._trace("train", checked_train_step(self.task), state, batch)

    def trace_eval(self, state: Any, batch: Any) -> Traced:
        """Traces the eval step, which checks its contract; does not compile."""
        return self._trace("eval", checked_eval_step(self.task), state, batch)

    def train_totals(self) -> tuple[Vectors, Vectors]:
        """Returns the totals a training begins with."""
        return self._empty_totals("train"), self._empty_totals("train")

    def eval_totals(self) -> Vectors:
        """Returns the totals an evaluation begins with."""
        return self._empty_totals("eval")

    def train(
        self, state: Any, totals: Any, stretch: Stretch, steps_before: int, epoch_before: int
    ) -> tuple[Any, Any, Vectors]:
        """Runs a stretch of train steps in one call; does not wait for it.

        Args:
          state: donated.
          totals: `(window, epoch)` metrics.
          stretch: the batches.
          steps_before: optimizer steps done.
          epoch_before: batches of this epoch done.

        Returns:
          The state after the stretch, the totals, and the window's metrics after each step, [capacity, length].
        """
        control = np.array([stretch.count, steps_before, epoch_before], np.int32)
        arguments = (state, totals, *self.place((stretch.batches, control)))
        traced = self._traced["train"]
        program = traced.programs.get(stretch.shapes)
        if program is None:
            function = train_program(
                traced.step, traced.packing, looped=traced.looped, log_every_n_steps=self.log_every_n_steps
            )
            program = traced.programs[stretch.shapes] = _compiled(function, arguments, donate=(0,))
        return program(*arguments)

    def evaluate(self, state: Any, totals: Vectors, stretch: Stretch, batches_before: int) -> Vectors:
        """Merges the metrics of a stretch of eval steps into `totals`, in one call; does not wait for it."""
        traced = self._traced["eval"]
        control = np.array([stretch.count, batches_before], np.int32)
        arguments = (state, totals, *self.place((stretch.batches, control)))
        program = traced.programs.get(stretch.shapes)
        if program is None:
            function = eval_program(traced.step, traced.packing, looped=traced.looped)
            program = traced.programs[stretch.shapes] = _compiled(function, arguments)
        return program(*arguments)

    def predict(self, state: Any, batch: Any) -> Any:
        """Runs the predict step on one batch; does not wait for it."""
        if self._predict is None:
            self._predict = jax.jit(checked_predict_step(self.task))
        return self._predict(state, self.place(batch))

    def unpack(self, stage: str, vectors: Any) -> Any:
        """Makes packed metrics of a stage ("train" or "eval") into metrics."""
        return self._traced[stage].packing.unpack(vectors)

    def metric_names(self, stage: str) -> list[str]:
        """Returns the names that a stage ("train" or "eval") reports."""
        packing = self._traced[stage].packing
        return list(jax.tree.unflatten(packing.structure, packing.leaves))

    def capacity(self, stage: str, wanted: int) -> int:
        """Returns how many steps of a stage one call can run: `wanted`, or 1 for a step that runs in no loop."""
        return wanted if self._traced[stage].looped else 1

    def _empty_totals(self, stage: str) -> Vectors:
        lengths = self._traced[stage].packing.lengths
        return self.place({dtype: np.zeros(length, dtype) for dtype, length in lengths.items()})

    def _trace(self, stage: str, function: Callable[..., Any], state: Any, batch: Any) -> Traced:
        signature = (_tree.abstract(state), _tree.abstract(batch))
        if (known := self._traced.get(stage)) is not None and known.signature == signature:
            return known
        step = jax.jit(function)
        jaxpr, shapes = jax.make_jaxpr(step, return_shape=True)(*signature)
        metrics = shapes[1] if stage == "train" else shapes
        # XLA on the CPU gives convolutions their fast layout only outside of loops: the gradient of a 3x3 kernel
        # takes 9 ms outside and 360 ms inside one (docs/decisions.md).
        looped = not (self.device.platform == "cpu" and _has_convolution(jaxpr.jaxpr))
        traced = self._traced[stage] = Traced(step, Packing.of(metrics), looped, signature)
        return traced


def _compiled(function: Callable[..., Any], arguments: Any, donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    return jax.jit(function, donate_argnums=donate).lower(*arguments).compile()


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter) and _has_convolution(getattr(parameter, "jaxpr", parameter)):
                return True
    return False


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _own_buffers(state: Any) -> Any:
    """Gives every leaf a buffer of its own: a buffer that stands in a donated state twice cannot be donated."""
    seen: set[int] = set()

    def own(leaf: jax.Array) -> jax.Array:
        data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        pointer = data.unsafe_buffer_pointer()
        if pointer in seen:
            return jnp.copy(leaf)
        seen.add(pointer)
        return leaf

    return jax.tree.map(own, state)
