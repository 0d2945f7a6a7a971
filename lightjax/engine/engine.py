"""Engine: what the loop needs of whatever runs the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax

from lightjax.data.grouped import Accumulation
from lightjax.data.share import Share
from lightjax.data.source import Source
from lightjax.data.stage import FitData, Limit, Loaders
from lightjax.data.stretch import Stretch
from lightjax.engine.packing import Vectors
from lightjax.engine.program import Steps
from lightjax.metrics import Level
from lightjax.policy_request import PolicyRequest
from lightjax.profiler.tracer import Tracer
from lightjax.summary import Summary

if TYPE_CHECKING:
    from lightjax.callbacks import Callback
    from lightjax.checkpoint import Checkpoint


class Engine(Protocol):
    """Runs a task's functions in stretches of steps; what it returns lies on the devices, and nothing waits for them.

    `stage` is "train", "eval", or "eval/NAME" for one of several loaders, everywhere. A stage is
    traced before anything else is asked about it.

    A task whose method `engine(trainer)` returns one brings its own; every other task runs in a `JitEngine`.

    Attributes:
      task: the user's functions.
      request: what the policy of states shall say.
      callbacks: hooks of the task's own, called after those of the trainer's callbacks that monitor nothing.
      hyperparameters: of the task's own, for the loggers.
      reads_ahead: whether batches are made while earlier ones run; not where a step and a loader share random numbers.
      tracer: tells profilers of the library that runs the steps.
      own_names: whether metrics have the names the user gave them, instead of ones that begin with the stage.
    """

    task: Any
    request: PolicyRequest
    callbacks: Sequence[Callback]
    hyperparameters: Mapping[str, Any]
    reads_ahead: bool
    own_names: bool
    tracer: Tracer

    @property
    def platform(self) -> str:
        """The kind of device steps run on: "cpu", "gpu", "tpu"."""
        ...

    @property
    def share(self) -> Share:
        """What of the data this process reads."""
        ...

    @property
    def calls_in_flight(self) -> int:
        """How many calls may be unfinished."""
        ...

    @property
    def compile_s(self) -> float:
        """Seconds the newest program took to compile."""
        ...

    def fit_data(
        self,
        train_data: Any,
        val_data: Any,
        datamodule: Any,
        limits: Mapping[str, Limit],
        *,
        overfit_batches: int | float,
        reload_every_n_epochs: int,
        accumulation: Accumulation,
        kept: Any,
        given: Any,
    ) -> FitData:
        """Returns the data of a training, as `lightjax.data.stage.fit_data` does.

        Args:
          train_data: what the user passed.
          val_data: what the user passed.
          datamodule: makes both instead.
          limits: batches of an epoch at most.
          overfit_batches: train on so many batches only.
          reload_every_n_epochs: how often the loaders are made anew.
          accumulation: how many batches make a step.
          kept: what the data module's `state_dict` returned in the run that is resumed; None without one.
          given: the state or the checkpoint that the training begins with; None for a new state.
        """
        ...

    def stage_data(self, stage: Literal["val", "test", "predict"], data: Any, datamodule: Any, limit: Limit) -> Loaders:
        """Returns the data of an evaluation or prediction, as `lightjax.data.stage.stage_data` does."""
        ...

    def stand_in(self, callback: Callback) -> Callback:
        """Returns what runs in the place of one of the trainer's callbacks: itself, unless it works on other states."""
        ...

    def create_state(self, key: jax.Array, batch: Any) -> Any:
        """Runs the task's `init`, compiled; every leaf is made where it is to lie."""
        ...

    def present_state(self) -> Any:
        """Returns the state there is although nobody gave or trained one; None where there is none."""
        ...

    def restore_state(self, checkpoint: Checkpoint, key: jax.Array, batch: Any) -> Any:
        """Reads the state of a checkpoint that was opened by its path.

        Raises:
          CheckpointError: it is damaged, or of another task.
        """
        ...

    def state_to_save(self, state: Any) -> Any:
        """Returns a state as the tree of arrays that a checkpoint keeps."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Returns what an engine of the task's own says on the first screen: "devices", "precision", ..."""
        ...

    def notes(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep beside the state, as JSON."""
        ...

    def restore_notes(self, notes: dict[str, Any]) -> None:
        """Takes back what `notes` returned, once the state is restored."""
        ...

    def flops_per_step(self, state: Any, batch: Any) -> float | None:
        """Counts the floating-point operations of a train step, given shapes; None where nobody can tell."""
        ...

    def gauges(self) -> Mapping[str, Any]:
        """Returns what an engine of the task's own measures, for the loggers: numbers, which are read late."""
        ...

    def summarize(self, state: Any) -> Summary:
        """Lists what a state is made of, without reading any value."""
        ...

    def adopt_state(self, state: Any) -> Any:
        """Copies a state of the user's to the devices: the steps donate what they run on."""
        ...

    def place_state(self, state: Any) -> Any:
        """Puts a state that is only read where its leaves are to lie."""
        ...

    def place_stretch(self, stage: str, stretch: Stretch, *before: int) -> Stretch:
        """Puts a stretch on the devices, with what the program has to know of what was done before.

        Args:
          stage: what it is for.
          stretch: on the host.
          *before: for "train", optimizer steps and batches of the epoch done before; for "eval", batches evaluated.
        """
        ...

    def trace_train(self, state: Any, batch: Any) -> None:
        """Traces the train step, which checks its contract; does not compile."""
        ...

    def trace_eval(self, state: Any, batch: Any, stage: str = "eval", number: int = 0) -> None:
        """Traces the eval step, which checks its contract; does not compile.

        Args:
          state: the state, or its shapes.
          batch: one of the loader's, or its shapes.
          stage: what it is traced for.
          number: of the loader.
        """
        ...

    def loops(self, stage: str) -> bool:
        """Says whether a stage can run several steps in one call."""
        ...

    def compile_ahead(self, stage: str, specs: Sequence[Steps]) -> None:
        """Begins to compile the programs of a stage for stretches of these shapes."""
        ...

    def compiling(self) -> bool:
        """Says whether programs are being compiled in the background."""
        ...

    def program(self, stage: str, stretch: Stretch) -> Callable[..., Any]:
        """Returns the compiled program of a stretch; waits for the compiler where it is not ready."""
        ...

    def is_ready(self, stage: str, stretch: Stretch) -> bool:
        """Says whether the program of a stretch is compiled."""
        ...

    def train_totals(self) -> tuple[Vectors, Vectors]:
        """Returns the totals a training begins with: `(window, epoch)`."""
        ...

    def train(self, state: Any, totals: Any, stretch: Stretch) -> tuple[Any, Any, Vectors]:
        """Runs a stretch of train steps, in one call where steps can be looped; the state is donated.

        Returns:
          The state after the stretch, the totals, and the window's metrics after each step, [capacity, length].
        """
        ...

    def eval_capacity(self, data: Source, stage: str = "eval") -> int:
        """Returns how many batches of this data a stretch of an evaluation has."""
        ...

    def eval_totals(self, stage: str = "eval") -> Vectors:
        """Returns the totals an evaluation begins with."""
        ...

    def evaluate(self, state: Any, totals: Vectors, stretch: Stretch, stage: str = "eval") -> Vectors:
        """Merges the metrics of a stretch of eval steps into `totals`."""
        ...

    def predict(self, state: Any, stretch: Stretch) -> Any:
        """Runs the predict step on the one batch of a stretch."""
        ...

    def fetch(self, outputs: Any) -> Any:
        """Returns the outputs of a predict step on the host; waits for them."""
        ...

    def join(self, outputs: Sequence[Any]) -> Any:
        """Joins the outputs of the batches of a loader, on the host."""
        ...

    def row(self, rows: Any, step: int) -> Any:
        """Picks a step of the window's metrics that `train` returned, on the host."""
        ...

    def finished(self, rows: Any) -> bool:
        """Says whether the call that returned these metrics is finished; does not wait."""
        ...

    def wait(self, rows: Any) -> None:
        """Waits until the call that returned these metrics is finished."""
        ...

    def compute(self, stage: str, vectors: Any, level: Level | None = None) -> dict[str, Any]:
        """Computes packed metrics of a stage that are on the host; of a level, those that belong to it."""
        ...

    def metric_names(self, stage: str) -> list[str]:
        """Returns the names that a stage reports."""
        ...

    def close(self) -> None:
        """Ends what runs in the background; the engine can be used again."""
        ...
