"""TorchEngine: runs a torch module's steps, natively, where the loop runs compiled ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import torch

from lightjax.data.share import ALL
from lightjax.data.stage import FitData
from lightjax.data.stretch import Stretch
from lightjax.errors import ConfigurationError
from lightjax.policy_request import PolicyRequest
from lightjax.summary import Summary
from lightjax_torch import logged as logs
from lightjax_torch.attachment import detached
from lightjax_torch.average import Average
from lightjax_torch.evaluation_step import EvaluationStep
from lightjax_torch.hooks import ModuleHooks, overridden
from lightjax_torch.logged import Logged, StepValues
from lightjax_torch.module_calls import ModuleCalls
from lightjax_torch.module_log import ModuleLog
from lightjax_torch.notes import notes, restore_notes
from lightjax_torch.numerics import Numerics, to_device
from lightjax_torch.optimization import Scheduler
from lightjax_torch.preparation import Preparation
from lightjax_torch.profiling import TorchTracer
from lightjax_torch.replica import Replica
from lightjax_torch.stand_ins import group_values, stand_in
from lightjax_torch.state import TorchState, load_optimizer, optimizer_rest
from lightjax_torch.train_step import TrainStep
from lightjax_torch.trainer_view import TrainerView
from lightjax_torch.weights import arrays_of, load_weights, saved_leaves, summarize

if TYPE_CHECKING:
    from lightjax.callbacks import Callback
    from lightjax.checkpoint import Checkpoint
    from lightjax.run import Run
    from lightjax.trainer import Trainer
    from lightjax_torch.task import TorchTask


class TorchEngine:
    """Runs a module in torch; see `lightjax.engine.engine.Engine` for what the loop asks of it.

    The state of a training lies in the module, as in any torch program. Values that the module logs stay on the device
    until a look.

    Args:
      task: the module, its backend and its device.
      trainer: says what is asked for.

    Attributes:
      run: the training, evaluation or prediction under way.
      stage: "train", "validation", "test" or "predict"; None between.
      attached: whether the module is this engine's at present.
      epoch: the epoch, counted from 0.
      steps: train steps done.
      optimizer_steps: steps of all optimizers together; with one optimizer, the same.
      calls: the module's steps and hooks.
      log: what the module logs.
      average: of the parameters, where a callback asks for one.
      schedulers_rest: whether somebody else leads the learning rates.
    """

    platform = "torch"
    compile_s = 0.0
    reads_ahead = False
    own_names = True
    share = ALL
    calls_in_flight = 4

    def __init__(self, task: TorchTask, trainer: Trainer) -> None:
        self.task = task
        self.request = PolicyRequest()
        self.trainer = trainer
        self.module: Any = task.module
        self.device = task.device
        self.processes = task.processes
        self.tracer = TorchTracer(task.device, task.backend)
        asked = dict(trainer.policy)
        self.numerics = Numerics(asked.pop("precision", None), self.device)
        self.clip_value: float | None = asked.pop("gradient_clip_val", None)
        self.clip_algorithm: str | None = asked.pop("gradient_clip_algorithm", None)
        self.on_nonfinite: str | None = asked.pop("on_nonfinite", None)
        if asked or trainer.microbatches > 1:
            names = [*asked, *(["microbatches"] if trainer.microbatches > 1 else [])]
            raise ConfigurationError(
                f"The trainer was asked for {', '.join(names)}, which belongs to gradients of JAX; a torch module does "
                "that itself: leave it out."
            )
        self.average = Average(self.module)
        self._stand_ins = {id(one): (one, stand_in(self, one)) for one in trainer.callbacks}
        self.callbacks: Sequence[Callback] = (ModuleHooks(self),)
        self.run: Run | None = None
        self.data: Any = None
        self.datamodule: Any = None
        self.stage: str | None = None
        self.attached = False
        self.epoch = self.steps = self.optimizer_steps = 0
        self.last_batch = False
        self.replica: Replica | None = None
        self.optimizers: list[torch.optim.Optimizer] = []
        self.wrapped: list[Any] = []
        self.schedulers: list[Scheduler] = []
        self.schedulers_rest = False
        self.outputs: list[Any] | None = None
        self.outputs_of_evaluation: list[Any] | None = None
        self.resumed_random: Any = None
        self.restored_optimizers: dict[str, Any] = {}
        self.calls = ModuleCalls(self)
        self.log = ModuleLog(self)
        self.preparation = Preparation(self)
        self.train_step = TrainStep(self)
        self.evaluation_step = EvaluationStep(self)
        self.view = TrainerView(self)
        self._live = TorchState(self._arrays)

    # What is asked before anything runs.

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """What the module kept with `save_hyperparameters`."""
        found = getattr(self.module, "hparams", None)
        return dict(found) if isinstance(found, Mapping) else {}

    def fit_data(
        self,
        train_data: Any,
        val_data: Any,
        datamodule: Any,
        limits: Mapping[str, int | float | None],
        **how: Any,
    ) -> FitData:
        """Sets the module up for training, in Lightning's order, and returns its data."""
        self.data = self.preparation.fit_data(train_data, val_data, datamodule, limits, **how)
        return self.data

    def stage_data(
        self, stage: Literal["val", "test", "predict"], data: Any, datamodule: Any, limit: int | float | None
    ) -> dict[str, Any]:
        """Sets the module up for an evaluation or prediction, and returns its data."""
        return self.preparation.stage_data(stage, data, datamodule, limit)

    def stand_in(self, callback: Callback) -> Callback:
        """Returns what runs in the place of a callback that works on states of JAX."""
        if id(callback) not in self._stand_ins:
            self._stand_ins[id(callback)] = (callback, stand_in(self, callback))
        return self._stand_ins[id(callback)][1]

    def create_state(self, key: Any, batch: Any) -> TorchState:
        """Returns the state that the module is in."""
        return self._live

    def present_state(self) -> TorchState:
        """Returns the state that the module is in: a module has weights before it was trained."""
        return self._live

    def adopt_state(self, state: Any) -> TorchState:
        """Puts a state into the module; the one that was there before keeps its values."""
        if state is self._live:
            return state
        arrays = state.arrays
        self.hold_live()
        evaluating = self.average.put_back()
        load_weights(self.module, state)
        self.average.load(arrays.get("average", {}))
        if evaluating:
            self.average.put_in()
        if self.optimizers and arrays["optimizers"]:
            self.restored_optimizers = arrays["optimizers"]
            for number, optimizer in enumerate(self.optimizers):
                found = arrays["optimizers"].get(str(number), {})
                load_optimizer(optimizer, found, state.rest[number] if state.rest else optimizer_rest(optimizer))
        self.steps = self.optimizer_steps = state.step
        return self._live

    place_state = adopt_state

    def restore_state(self, checkpoint: Checkpoint, key: Any, batch: Any) -> TorchState:
        """Reads the state of a checkpoint: weights as the module has them, optimizers as they were saved."""
        like = self._arrays()
        for item in ("optimizers", "average"):
            like[item] = saved_leaves(checkpoint.about()["leaves"], item)
        return checkpoint.restore(TorchState(like))

    def state_to_save(self, state: TorchState) -> TorchState:
        """Returns a copy that training leaves alone."""
        return TorchState(jax.tree.map(np.array, state.arrays))

    def summarize(self, state: TorchState) -> Summary:
        """Lists the parameters and buffers of the module."""
        return summarize(self.module, self.optimizers)

    def facts(self) -> Mapping[str, str]:
        """Returns what the first screen says of the device, the backend and the precision."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        backend = self.task.backend if isinstance(self.task.backend, str) else self.task.backend.__name__
        dtypes = ", ".join(sorted({str(one.dtype).removeprefix("torch.") for one in self.module.parameters()}))
        compute = f", compute {str(self.numerics.dtype).removeprefix('torch.')}" if self.numerics.mixed else ""
        return {
            "devices": f"{self.processes.count} x {name}, torch {torch.__version__}, backend {backend!r}",
            "precision": f"parameters {dtypes or 'none'}{compute} ({self.numerics.name})",
        }

    def flops_per_step(self, state: Any, batch: Any) -> None:
        """Returns None: a step is whatever the module does."""

    def gauges(self) -> Mapping[str, Any]:
        """Returns the learning rates, and the memory of a GPU."""
        found = group_values(self.optimizers, {"learning_rate": ("lr",)})
        if self.device.type == "cuda":
            found["device_memory_bytes"] = torch.cuda.memory_allocated(self.device)
        return found

    def notes(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps beside the arrays, as JSON."""
        return notes(self)

    def restore_notes(self, notes: dict[str, Any]) -> None:
        """Takes back what `notes` returned."""
        restore_notes(self, notes)

    # What runs.

    def place_stretch(self, stage: str, stretch: Stretch, *before: int) -> Stretch:
        """Returns the stretch as it is: batches are moved when their hooks have seen them."""
        return stretch

    def trace_train(self, state: Any, batch: Any) -> None:
        """Has nothing to trace."""

    def trace_eval(self, state: Any, batch: Any, stage: str = "eval", number: int = 0) -> None:
        """Has nothing to trace."""

    def loops(self, stage: str) -> bool:
        """Returns True: how steps are cut into calls makes no difference."""
        return True

    def compile_ahead(self, stage: str, specs: Sequence[Any]) -> None:
        """Has nothing to compile."""

    def compiling(self) -> bool:
        """Returns False."""
        return False

    def program(self, stage: str, stretch: Stretch) -> Callable[..., Any]:
        """Returns the method that runs the stage."""
        return self.train if stage == "train" else self.evaluate

    def is_ready(self, stage: str, stretch: Stretch) -> bool:
        """Returns True."""
        return True

    def train_totals(self) -> tuple[Any, Any]:
        """Returns the values of the newest step and of the epoch, which the loop hands around."""
        return StepValues({}, None, 0), self.log.current

    def train(self, state: TorchState, totals: Any, stretch: Stretch) -> tuple[Any, Any, Any]:
        """Runs the batches of one optimizer step."""
        values = self.train_step.run(stretch)
        self.average.after_step()
        return state, (values, self.log.current), values

    def eval_capacity(self, data: Any, stage: str = "eval") -> int:
        """Returns 1."""
        return 1

    def eval_totals(self, stage: str = "eval") -> Logged:
        """Returns what an evaluation gathers."""
        return self.log.begin_loader()

    def evaluate(self, state: TorchState, totals: Logged, stretch: Stretch, stage: str = "eval") -> Logged:
        """Evaluates a batch."""
        return self.evaluation_step.evaluate(totals, stretch, stage)

    def predict(self, state: TorchState, stretch: Stretch) -> Any:
        """Predicts a batch."""
        return self.evaluation_step.predict(stretch)

    def fetch(self, outputs: Any) -> Any:
        """Returns the outputs of a batch with their tensors on the CPU; waits for them."""
        return to_device(outputs, torch.device("cpu"))

    def join(self, outputs: Sequence[Any]) -> list[Any]:
        """Returns the outputs of the batches as a list: they may be anything."""
        return list(outputs)

    def row(self, rows: StepValues, step: int) -> StepValues:
        """Returns the values of the step."""
        return rows

    def finished(self, rows: StepValues) -> bool:
        """Says whether the values of a step can be read without waiting."""
        return self.device.type == "cpu"

    def wait(self, rows: StepValues) -> None:
        """Waits for nothing: torch itself bounds how far the host runs ahead."""

    def compute(self, stage: str, vectors: Any, level: str | None = None) -> dict[str, Any]:
        """Reads logged values; waits for the device."""
        if isinstance(vectors, StepValues):
            self.log.check_loss(vectors)
            return logs.read(vectors.values)
        return logs.read(vectors.freeze(self.processes))

    def metric_names(self, stage: str) -> list[str]:
        """Returns []: a module logs what it logs."""
        return []

    def close(self) -> None:
        """Lets the module go."""
        self.stage = None
        self.attached = False
        if self.replica is not None:
            self.replica.close()
            self.replica = None
        detached(self.module)

    # What its parts use.

    def begin_epoch(self, run: Run) -> None:
        """Begins to gather an epoch, unless a resumed run has."""
        if run.epoch != self.epoch or not run.batch:
            self.log.begin_epoch()
        self.epoch = run.epoch
        self.outputs = [] if overridden(self.module, "training_epoch_end") else None
        run.totals = self.train_totals()

    def hold_live(self) -> None:
        """Gives the state that lies in the module arrays of its own: the module goes on to another one."""
        self._live.hold([optimizer_rest(one) for one in self.optimizers])
        self._live = TorchState(self._arrays)

    def _arrays(self) -> dict[str, Any]:
        return arrays_of(self.module, self.average, self.optimizers, self.steps)
