"""JitEngine: steps compiled ahead of time with `jax.jit`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lightjax import _tree
from lightjax.data.share import Share, put_everywhere
from lightjax.data.source import Source
from lightjax.data.stretch import STACK_BYTES, Stretch
from lightjax.engine.compiler import Compiler
from lightjax.engine.contract import (
    checked_eval_step,
    checked_init,
    checked_predict_step,
    checked_train_step,
    position_arguments,
    strong,
)
from lightjax.engine.layout import Layout
from lightjax.engine.memory import check_memory
from lightjax.engine.packing import Vectors
from lightjax.engine.program import Steps, eval_program, eval_step_program, train_program, train_step_program
from lightjax.engine.pure import PureEngine
from lightjax.engine.tracing import Traced, trace
from lightjax.errors import RecompileError
from lightjax.metrics import Level
from lightjax.policy_request import PolicyRequest


class JitEngine(PureEngine):
    """Runs a task's functions as single programs over all devices of a layout.

    Programs are compiled ahead of time in a background thread, one for each shape of stretch, and kept.

    Args:
      task: the user's functions.
      layout: where states and batches lie.
      log_every_n_steps: length of the windows that training metrics are merged over.
      eval_batches_per_call: batches that one call evaluates at most.
      strict: raise where a step has to be compiled again, instead of warning.
      deterministic: choose kernels that give the same bits every time.
      checks_memory: refuse a train step that needs more memory than a device has, before it runs.
      request: what the policy of states shall say.
    """

    def __init__(
        self,
        task: Any,
        layout: Layout,
        *,
        log_every_n_steps: int = 50,
        eval_batches_per_call: int = 8,
        strict: bool = False,
        deterministic: bool = False,
        checks_memory: bool = True,
        request: PolicyRequest | None = None,
    ) -> None:
        self.task = task
        self.layout = layout
        self.request = request or PolicyRequest()
        self.log_every_n_steps = log_every_n_steps
        self.eval_batches_per_call = eval_batches_per_call
        self.strict = strict
        self.checks_memory = checks_memory
        self._traced: dict[str, Traced] = {}
        self._predict: Callable[..., Any] | None = None
        # XLA on the CPU and on TPUs knows no other kernels.
        self._options = {"xla_gpu_deterministic_ops": True} if deterministic and self.platform == "gpu" else {}
        self._compiler = Compiler(self._options)

    @property
    def platform(self) -> str:
        """The kind of device steps run on: "cpu", "gpu", "tpu"."""
        return self.layout.platform

    @property
    def share(self) -> Share:
        """What of the data this process reads."""
        return self.layout.share

    @property
    def calls_in_flight(self) -> int:
        """How many calls may be unfinished."""
        return self.layout.calls_in_flight

    @property
    def compile_s(self) -> float:
        """Seconds the newest program took to compile."""
        return self._compiler.compile_s

    def create_state(self, key: jax.Array, batch: Any) -> Any:
        """Runs the task's `init`, compiled; every leaf is made where it is to lie."""
        with self.layout.scope():
            jaxpr, shapes = jax.make_jaxpr(checked_init(self.task, self.request), return_shape=True)(key, batch)
            shardings = jax.tree.leaves(self.layout.state(shapes))
            init = jax.jit(core.jaxpr_as_fun(jaxpr), out_shardings=shardings, compiler_options=self._options or None)
            placed = (put_everywhere(key, self.layout.replicated), self.layout.put_batch(batch))
            return _own_buffers(jax.tree.unflatten(jax.tree.structure(shapes), init(*jax.tree.leaves(placed))))

    def abstract_state(self, key: jax.Array, batch: Any) -> Any:
        """Returns the shapes of the state that `init` makes, and where it is to lie, without making it."""
        shapes = jax.eval_shape(checked_init(self.task, self.request), key, batch)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.layout.state(shapes),
        )

    def adopt_state(self, state: Any) -> Any:
        """Copies a state of the user's to the devices: the steps donate what they run on."""
        return _own_buffers(self.layout.put_state(jax.tree.map(lambda leaf: jnp.copy(strong(leaf)), state)))

    def place_state(self, state: Any) -> Any:
        """Puts a state that is only read where its leaves are to lie; does not wait."""
        return self.layout.put_state(state)

    def place_stretch(self, stage: str, stretch: Stretch, *before: int) -> Stretch:
        """Puts a stretch on the devices, in one transfer, with what the program has to know of what was done before.

        Args:
          stage: "train" or "eval".
          stretch: on the host.
          *before: for "train", optimizer steps and batches of the epoch done before; for "eval", batches evaluated.
        """
        control = np.array([stretch.count if self.loops(stage) else 0, *before], np.int32)
        steps, control = self.layout.put(stretch.steps, control, stretch.parts)
        return dataclasses.replace(stretch, steps=steps, control=control)

    def trace_train(self, state: Any, batch: Any) -> None:
        """Traces the train step, which checks its contract; does not compile."""
        with self.layout.scope():
            self._traced["train"] = trace(
                self.layout.mapped(checked_train_step(self.task)), state, batch, self._traced.get("train")
            )

    def trace_eval(self, state: Any, batch: Any, stage: str = "eval", number: int = 0) -> None:
        """Traces the eval step, which checks its contract; does not compile.

        Loaders with batches of different shapes have a stage each; those of one shape share its programs, unless the
        step asks which loader it sees.
        """
        shapes = (_tree.abstract(state), _tree.abstract(batch))
        alike = (one for name, one in self._traced.items() if name != "train" and (one.state, one.batch) == shapes)
        step = checked_eval_step(self.task, number)
        tells_apart = "dataloader_idx" in position_arguments(self.task.eval_step)
        known = self._traced.get(stage) if tells_apart else next(alike, self._traced.get(stage))
        with self.layout.scope():
            self._traced[stage] = trace(self.layout.mapped(step), state, batch, known, numbered=True)

    def loops(self, stage: str) -> bool:
        """Says whether a stage ("train", "eval", "eval/NAME") can run several steps in one call.

        XLA on the CPU gives convolutions their fast layout only outside of loops: the gradient of a 3x3 kernel takes
        9 ms outside and 360 ms inside one (docs/decisions.md). Such steps run one by one, always.
        """
        return not (self.platform == "cpu" and self._traced[stage].has_convolution)

    def compile_ahead(self, stage: str, specs: Sequence[Steps]) -> None:
        """Begins to compile the programs of a stage for stretches of these shapes; does not wait."""
        programs = self._traced[stage].programs
        for steps in specs:
            if steps.signature not in programs:
                programs[steps.signature] = self._submit(stage, steps)

    def train_totals(self) -> tuple[Vectors, Vectors]:
        """Returns the totals a training begins with."""
        return self._zeros("train"), self._zeros("train")

    def eval_totals(self, stage: str = "eval") -> Vectors:
        """Returns the totals an evaluation begins with."""
        return self._zeros(stage)

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
        with jax.transfer_guard("disallow"):
            if self.loops("train"):
                return program(state, totals, stretch.steps, stretch.control)
            rows, control = self._zeros("train", stretch.steps.capacity), stretch.control
            for _ in range(stretch.count):
                state, totals, rows, control = program(state, totals, rows, stretch.steps, control)
            return state, totals, rows

    def evaluate(self, state: Any, totals: Vectors, stretch: Stretch, stage: str = "eval") -> Vectors:
        """Merges the metrics of a stretch of eval steps into `totals`; does not wait for it.

        Args:
          state: left as it is.
          totals: metrics of the batches before.
          stretch: placed; runs once.
          stage: which eval step.
        """
        program = self.program(stage, stretch)
        with jax.transfer_guard("disallow"):
            if self.loops(stage):
                return program(state, totals, stretch.steps, stretch.control)
            control = stretch.control
            for _ in range(stretch.count):
                totals, control = program(state, totals, stretch.steps, control)
            return totals

    def eval_capacity(self, data: Source, stage: str = "eval") -> int:
        """Returns how many batches of this data a stretch of an evaluation has."""
        batch_bytes = _tree.size_in_bytes(self._traced[stage].batch)
        fitting = max(1, STACK_BYTES // max(1, batch_bytes))
        return min(self.eval_batches_per_call, fitting, data.batches or fitting)

    def predict(self, state: Any, stretch: Stretch) -> Any:
        """Runs the predict step on the one batch of a stretch; does not wait for it."""
        if self._predict is None:
            step = self.layout.mapped(checked_predict_step(self.task), rows=True)
            # Where a process sees but a part of the outputs, every one gets them whole.
            alone = self.layout.replicated.is_fully_addressable
            self._predict = jax.jit(
                lambda state, steps: step(state, steps.batch(0)),
                out_shardings=None if alone else self.layout.replicated,
                compiler_options=self._options or None,
            )
        steps, _ = self.layout.put(stretch.steps, np.zeros(0, np.int32), stretch.parts)
        with self.layout.scope():
            return self._predict(state, steps)

    def compute(self, stage: str, vectors: Any, level: Level | None = None) -> dict[str, Any]:
        """Computes packed metrics of a stage ("train", "eval", "eval/NAME") that are on the host."""
        return self._traced[stage].packing.compute(vectors, level)

    def metric_names(self, stage: str) -> list[str]:
        """Returns the names that a stage ("train", "eval", "eval/NAME") reports."""
        return list(self._traced[stage].packing.names)

    def compiling(self) -> bool:
        """Says whether programs are being compiled in the background."""
        return not all(program.done() for traced in self._traced.values() for program in traced.programs.values())

    def close(self) -> None:
        """Ends the compiler's thread, after what it is at; a later compilation begins a new one."""
        self._compiler.close()
        for traced in self._traced.values():
            for signature in [key for key, program in traced.programs.items() if program.cancelled()]:
                del traced.programs[signature]

    def _compile_again(self, stage: str, steps: Steps) -> Future[Callable[..., Any]]:
        """Compiles for a stretch nobody announced: one odd size is the end of an epoch, more are worth a word."""
        traced = self._traced[stage]
        traced.unannounced.append(steps.signature)
        if len(traced.unannounced) > 1:
            batch = jax.eval_shape(lambda steps: steps.batch(0), steps)
            # Of accumulated batches, the step was traced with one: a group may be as large.
            path, leaf = next(iter(_tree.named_leaves(batch).items()))
            change = _tree.difference(traced.batch, batch) or f"leaf {path!r} is {_tree.describe(leaf)}"
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
        zeros = {dtype: np.zeros((*leading, length), dtype) for dtype, length in lengths.items()}
        return put_everywhere(zeros, self.layout.replicated)

    def traced(self, stage: str) -> Traced:
        """Returns a stage as tracing found it."""
        return self._traced[stage]

    def lower_step(self) -> Any:
        """Lowers one train step alone: `(state, batch) -> (state, metrics)`, the state donated."""
        traced, layout = self._traced["train"], self.layout
        state = layout.state(traced.state)
        with layout.scope():
            step = jax.jit(
                layout.held(traced.step),
                in_shardings=(state, layout.batch(traced.batch)),
                out_shardings=(state, layout.replicated),
                donate_argnums=0,
            )
            return step.lower(traced.state, traced.batch)

    def _submit(self, stage: str, steps: Steps) -> Future[Callable[..., Any]]:
        """Lowers here, where contexts such as `jax.default_matmul_precision` hold, and compiles in the background."""
        lowered = self.lower(stage, _tree.abstract(steps))
        check = partial(check_memory, device=self.layout.device) if self.checks_memory and stage == "train" else None
        return self._compiler.submit(lowered, sequential=self.platform == "cpu" and self.loops(stage), check=check)

    def lower(self, stage: str, steps: Steps) -> Any:
        """Lowers the program of a stage for stretches of these shapes."""
        traced, everywhere = self._traced[stage], self.layout.replicated
        step, packing = self.layout.held(traced.step), traced.packing
        looped, every = self.loops(stage), self.log_every_n_steps
        totals, rows = jax.eval_shape(lambda: (packing.zeros(), packing.zeros(steps.capacity)))
        # A program is compiled for arguments that lie where they are placed.
        state, placed = self.layout.state(traced.state), self.layout.steps(steps)
        if stage == "train":
            control, totals = np.zeros(3, np.int32), (totals, totals)
            if looped:
                function, donated = train_program(step, packing, log_every_n_steps=every), (0,)
                arguments, inputs = (traced.state, totals, steps, control), (state, everywhere, placed, everywhere)
                outputs = (state, everywhere, everywhere)
            else:
                function, donated = train_step_program(step, packing, log_every_n_steps=every), (0, 2)
                arguments = (traced.state, totals, rows, steps, control)
                inputs = (state, everywhere, everywhere, placed, everywhere)
                outputs = (state, everywhere, everywhere, everywhere)
        else:
            function, donated = (eval_program if looped else eval_step_program)(step, packing), ()
            arguments = (traced.state, totals, steps, np.zeros(2, np.int32))
            inputs, outputs = (state, everywhere, placed, everywhere), everywhere
        with self.layout.scope():
            program = jax.jit(function, in_shardings=inputs, out_shardings=outputs, donate_argnums=donated)
            return program.lower(*arguments)


def _own_buffers(state: Any) -> Any:
    """Gives every leaf a buffer of its own: a buffer that stands in a donated state twice cannot be donated."""
    seen: set[int] = set()

    def own(leaf: jax.Array) -> jax.Array:
        data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        pointer = data.addressable_shards[0].data.unsafe_buffer_pointer()
        if pointer in seen:
            return jnp.copy(leaf)
        seen.add(pointer)
        return leaf

    return jax.tree.map(own, state)
