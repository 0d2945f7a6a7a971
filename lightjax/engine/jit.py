"""JitEngine: steps compiled ahead of time with `jax.jit`."""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lightjax import _tree
from lightjax.data.source import Source
from lightjax.data.stretch import STACK_BYTES, Stretch
from lightjax.engine.contract import checked_eval_step, checked_init, checked_predict_step, checked_train_step, strong
from lightjax.engine.packing import Packing, Vectors
from lightjax.engine.program import Steps, eval_program, eval_step_program, train_program, train_step_program
from lightjax.errors import RecompileError


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


class JitEngine:
    """Runs a task's functions on one device.

    Programs are compiled ahead of time in a background thread, one for each shape of stretch, and kept.

    Args:
      task: the user's functions.
      log_every_n_steps: length of the windows that training metrics are merged over.
      device: where to run; jax's default device when None.
      eval_batches_per_call: batches that one call evaluates at most.
      strict: raise where a step has to be compiled again, instead of warning.

    Attributes:
      compile_s: seconds the newest program took to compile.
    """

    def __init__(
        self,
        task: Any,
        *,
        log_every_n_steps: int = 50,
        device: Any = None,
        eval_batches_per_call: int = 8,
        strict: bool = False,
    ) -> None:
        self.task = task
        self.device = device or jax.devices()[0]
        self.log_every_n_steps = log_every_n_steps
        self.eval_batches_per_call = eval_batches_per_call
        self.strict = strict
        self._traced: dict[str, Traced] = {}
        self._predict: Callable[..., Any] | None = None
        self._compiler: ThreadPoolExecutor | None = None
        self.compile_s = 0.0

    def create_state(self, key: jax.Array, batch: Any) -> Any:
        """Runs the task's `init`, compiled."""
        state = jax.jit(checked_init(self.task))(self.place(key), self.place(batch))
        return _own_buffers(state)

    def abstract_state(self, key: jax.Array, batch: Any) -> Any:
        """Returns the shapes of the state that `init` makes, without making it."""
        return jax.eval_shape(checked_init(self.task), key, batch)

    def adopt_state(self, state: Any) -> Any:
        """Copies a state of the user's to the device: the steps donate what they run on."""
        return _own_buffers(self.place(jax.tree.map(lambda leaf: jnp.copy(strong(leaf)), state)))

    def place(self, tree: Any) -> Any:
        """Puts arrays on the device; does not wait."""
        return jax.device_put(tree, self.device)

    def place_stretch(self, stage: str, stretch: Stretch, *before: int) -> Stretch:
        """Puts a stretch on the device, in one transfer, with what the program has to know of what was done before.

        Args:
          stage: "train" or "eval".
          stretch: on the host.
          *before: for "train", optimizer steps and batches of the epoch done before; for "eval", batches evaluated.
        """
        control = np.array([stretch.count if self.loops(stage) else 0, *before], np.int32)
        steps, control = self.place((stretch.steps, control))
        return dataclasses.replace(stretch, steps=steps, control=control)

    def trace_train(self, state: Any, batch: Any) -> None:
        """Traces the train step, which checks its contract; does not compile."""
        self._trace("train", checked_train_step(self.task), state, batch)

    def trace_eval(self, state: Any, batch: Any) -> None:
        """Traces the eval step, which checks its contract; does not compile."""
        self._trace("eval", checked_eval_step(self.task), state, batch)

    def loops(self, stage: str) -> bool:
        """Says whether a stage ("train" or "eval") can run several steps in one call.

        XLA on the CPU gives convolutions their fast layout only outside of loops: the gradient of a 3x3 kernel takes
        9 ms outside and 360 ms inside one (docs/decisions.md). Such steps run one by one, always.
        """
        return not (self.device.platform == "cpu" and self._traced[stage].has_convolution)

    def compile_ahead(self, stage: str, specs: Sequence[Steps]) -> None:
        """Begins to compile the programs of a stage for stretches of these shapes; does not wait."""
        programs = self._traced[stage].programs
        for steps in specs:
            if steps.signature not in programs:
                programs[steps.signature] = self._submit(stage, steps)

    def train_totals(self) -> tuple[Vectors, Vectors]:
        """Returns the totals a training begins with."""
        return self._zeros("train"), self._zeros("train")

    def eval_totals(self) -> Vectors:
        """Returns the totals an evaluation begins with."""
        return self._zeros("eval")

    def program(self, stage: str, stretch: Stretch) -> Callable[..., Any]:
        """Returns the compiled program of a stretch; waits for the compiler where it is not ready."""
        programs = self._traced[stage].programs
        found = programs.get(stretch.steps.signature)
        if found is None:
            found = self._compile_again(stage, stretch.steps)
        return found.result()

    def is_ready(self, stage: str, stretch: Stretch) -> bool:
        """Says whether the program of a stretch is compiled."""
        found = self._traced[stage].programs.get(stretch.steps.signature)
        return found is not None and found.done()

    def train(self, state: Any, totals: Any, stretch: Stretch) -> tuple[Any, Any, Vectors]:
        """Runs a stretch of train steps, in one call where steps can be looped; does not wait for it.

        Args:
          state: donated.
          totals: `(window, epoch)` metrics.
          stretch: placed; runs once.

        Returns:
          The state after the stretch, the totals, and the window's metrics after each step, [capacity, length].
        """
        program = self.program("train", stretch)
        if self.loops("train"):
            return program(state, totals, stretch.steps, stretch.control)
        rows, control = self._zeros("train", stretch.steps.capacity), stretch.control
        for _ in range(stretch.count):
            state, totals, rows, control = program(state, totals, rows, stretch.steps, control)
        return state, totals, rows

    def evaluate(self, state: Any, totals: Vectors, stretch: Stretch) -> Vectors:
        """Merges the metrics of a stretch of eval steps into `totals`; does not wait for it.

        Args:
          state: left as it is.
          totals: metrics of the batches before.
          stretch: placed; runs once.
        """
        program = self.program("eval", stretch)
        if self.loops("eval"):
            return program(state, totals, stretch.steps, stretch.control)
        control = stretch.control
        for _ in range(stretch.count):
            totals, control = program(state, totals, stretch.steps, control)
        return totals

    def eval_capacity(self, data: Source) -> int:
        """Returns how many batches of this data a stretch of an evaluation has."""
        batch_bytes = _tree.size_in_bytes(self._traced["eval"].batch)
        fitting = max(1, STACK_BYTES // max(1, batch_bytes))
        return min(self.eval_batches_per_call, fitting, data.batches or fitting)

    def predict(self, state: Any, stretch: Stretch) -> Any:
        """Runs the predict step on the one batch of a stretch; does not wait for it."""
        if self._predict is None:
            step = checked_predict_step(self.task)
            self._predict = jax.jit(lambda state, steps: step(state, steps.batch(0)))
        return self._predict(state, self.place(stretch.steps))

    def compute(self, stage: str, vectors: Any) -> dict[str, Any]:
        """Computes packed metrics of a stage ("train" or "eval") that are on the host."""
        return self._traced[stage].packing.compute(vectors)

    def metric_names(self, stage: str) -> list[str]:
        """Returns the names that a stage ("train" or "eval") reports."""
        return list(self._traced[stage].packing.names)

    def compiling(self) -> bool:
        """Says whether programs are being compiled in the background."""
        return not all(program.done() for traced in self._traced.values() for program in traced.programs.values())

    def close(self) -> None:
        """Ends the compiler's thread, after what it is at; a later compilation begins a new one."""
        if self._compiler is not None:
            self._compiler.shutdown(cancel_futures=True)
            self._compiler = None
        for traced in self._traced.values():
            for signature in [key for key, program in traced.programs.items() if program.cancelled()]:
                del traced.programs[signature]

    def _compile_again(self, stage: str, steps: Steps) -> Future[Callable[..., Any]]:
        """Compiles for a stretch nobody announced: one odd size is the end of an epoch, more are worth a word."""
        traced = self._traced[stage]
        traced.unannounced.append(steps.signature)
        if len(traced.unannounced) > 1:
            change = _tree.difference(traced.batch, jax.eval_shape(lambda steps: steps.batch(0), steps))
            text = (
                f"The {stage} step is compiled for the {len(traced.programs) + 1}. time, for batches of another size: "
                f"{change}. The last compilation took {self.compile_s:.2g} s; give batches of one size "
                "(drop_last=True, or pad them)."
            )
            if self.strict:
                raise RecompileError(f"{text} Trainer(strict=False) only warns.")
            warnings.warn(text, stacklevel=2)
        program = traced.programs[steps.signature] = self._submit(stage, steps)
        return program

    def _zeros(self, stage: str, *leading: int) -> Vectors:
        lengths = self._traced[stage].packing.lengths
        return self.place({dtype: np.zeros((*leading, length), dtype) for dtype, length in lengths.items()})

    def _trace(self, stage: str, function: Callable[..., Any], state: Any, batch: Any) -> None:
        shapes = (_tree.abstract(state), _tree.abstract(batch))
        known = self._traced.get(stage)
        if known is not None and (known.state, known.batch) == shapes:
            return
        step = jax.jit(function)
        jaxpr, found = jax.make_jaxpr(step, return_shape=True)(*shapes)
        traced = Traced(
            step, Packing.of(found[1] if stage == "train" else found), _has_convolution(jaxpr.jaxpr), *shapes
        )
        if known is not None and (known.state, known.packing) == (traced.state, traced.packing):
            # Batches of another size: the programs of the sizes before stay good.
            traced = dataclasses.replace(traced, programs=known.programs, unannounced=known.unannounced)
        self._traced[stage] = traced

    def _submit(self, stage: str, steps: Steps) -> Future[Callable[..., Any]]:
        """Lowers here, where contexts such as `jax.default_matmul_precision` hold, and compiles in the background."""
        if self._compiler is None:
            self._compiler = ThreadPoolExecutor(1, thread_name_prefix="lightjax-compiler")
        options = _sequential() if self.device.platform == "cpu" and self.loops(stage) else None
        return self._compiler.submit(self._compile, self._lowered(stage, _tree.abstract(steps)), options)

    def _compile(self, lowered: Any, options: dict[str, str | bool] | None) -> Callable[..., Any]:
        begun_s = time.perf_counter()
        program = lowered.compile(compiler_options=options)
        self.compile_s = time.perf_counter() - begun_s
        return program

    def _lowered(self, stage: str, steps: Steps) -> Any:
        traced = self._traced[stage]
        step, packing = traced.step, traced.packing
        looped, every = self.loops(stage), self.log_every_n_steps
        totals, rows = jax.eval_shape(lambda: (packing.zeros(), packing.zeros(steps.capacity)))
        if stage == "train":
            control, totals = np.zeros(3, np.int32), (totals, totals)
            if looped:
                function, donated = train_program(step, packing, log_every_n_steps=every), (0,)
                arguments = (traced.state, totals, steps, control)
            else:
                function, donated = train_step_program(step, packing, log_every_n_steps=every), (0, 2)
                arguments = (traced.state, totals, rows, steps, control)
        else:
            function, donated = (eval_program if looped else eval_step_program)(step, packing), ()
            arguments = (traced.state, totals, steps, np.zeros(2, np.int32))
        # A program is compiled for arguments that lie where `place` puts them.
        placed = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(self.device)
            ),
            arguments,
        )
        return jax.jit(function, donate_argnums=donated).lower(*placed)


@functools.cache
def _sequential() -> dict[str, str | bool] | None:
    """Asks XLA on the CPU for the sequential order of operations, where it knows how.

    Its default order runs small operations side by side, and handing them to threads costs more than it gains: an MLP's
    step that logs 10 scalars takes 81 us instead of 107, with the same bits. Not for convolutions: a small CNN's step
    takes 9.3 ms instead of 7.3 (docs/decisions.md).
    """
    options: dict[str, str | bool] = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    try:
        jax.jit(lambda x: x).lower(jax.ShapeDtypeStruct((), np.float32)).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return None  # another version of XLA, without this option
    return options


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
