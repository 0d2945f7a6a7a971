"""Engine: what the loop needs of whatever runs the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from lightjax.data.share import Share
from lightjax.data.source import Source
from lightjax.data.stretch import Stretch
from lightjax.engine.packing import Vectors
from lightjax.engine.program import Steps
from lightjax.policy_request import PolicyRequest


class Engine(Protocol):
    """Runs a task's functions in stretches of steps; what it returns lies on the devices, and nothing waits for them.

    `stage` is "train", "eval", or "eval/NAME" for one of several loaders, everywhere. A stage is
    traced before anything else is asked about it.

    Attributes:
      task: the user's functions.
      request: what the policy of states shall say.
    """

    task: Any
    request: PolicyRequest

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

    def create_state(self, key: jax.Array, batch: Any) -> Any:
        """Runs the task's `init`, compiled; every leaf is made where it is to lie."""
        ...

    def abstract_state(self, key: jax.Array, batch: Any) -> Any:
        """Returns the shapes of the state that `init` makes, without making it."""
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

    def trace_eval(self, state: Any, batch: Any, stage: str = "eval") -> None:
        """Traces the eval step, which checks its contract; does not compile."""
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

    def compute(self, stage: str, vectors: Any) -> dict[str, Any]:
        """Computes packed metrics of a stage that are on the host."""
        ...

    def metric_names(self, stage: str) -> list[str]:
        """Returns the names that a stage reports."""
        ...

    def close(self) -> None:
        """Ends what runs in the background; the engine can be used again."""
        ...
