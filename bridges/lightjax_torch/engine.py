"""TorchEngine: runs a torch module's steps, natively, where the loop runs compiled ones."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import torch

from lightjax.data.grouped import Accumulation
from lightjax.data.position import decode, encode
from lightjax.data.share import ALL
from lightjax.data.stage import FitData
from lightjax.data.stretch import Stretch
from lightjax.errors import CheckpointError, ConfigurationError, MetricError, StepError
from lightjax.policy_request import PolicyRequest
from lightjax.summary import Row, Summary
from lightjax.training import steps_of
from lightjax_torch import logged as logs
from lightjax_torch import random_states
from lightjax_torch.attachment import attached, detached
from lightjax_torch.hooks import ModuleHooks, overridden
from lightjax_torch.loader_source import LoaderSource, sources, train_source
from lightjax_torch.logged import Logged, StepValues
from lightjax_torch.numerics import Numerics, clip, to_device
from lightjax_torch.optimization import Scheduler, configured, stepped_by_module
from lightjax_torch.profiling import TorchTracer
from lightjax_torch.state import TorchState, load_optimizer, optimizer_arrays, optimizer_rest, to_array
from lightjax_torch.trainer_view import TrainerView

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
      epoch: the epoch, counted from 0.
      steps: train steps done.
      optimizer_steps: steps of all optimizers together; with one optimizer, the same.
      newest: the newest value of every name that was logged, on the device.
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
        extending = [one for one in trainer.callbacks if one.overrides("extend_state", "evaluated_state")]
        if extending:
            raise ConfigurationError(
                f"{type(extending[0]).__name__} keeps what it needs in the state of a JAX task, which a torch module "
                "does not have; leave it out, or average in the module with torch.optim.swa_utils.AveragedModel."
            )
        self.callbacks: Sequence[Callback] = (ModuleHooks(self),)
        self.run: Run | None = None
        self.data: Any = None
        self.datamodule: Any = None
        self.stage: str | None = None
        self.epoch = self.steps = self.optimizer_steps = 0
        self.last_batch = False
        self.optimizers: list[torch.optim.Optimizer] = []
        self.wrapped: list[Any] = []
        self.schedulers: list[Scheduler] = []
        self.newest: dict[str, torch.Tensor] = {}
        self.logged = self.train_log = self.hook_log = Logged()
        self.evaluated: list[Logged] = []
        self.outputs: list[Any] | None = None
        self.outputs_of_evaluation: list[Any] | None = None
        self.resumed_random: Any = None
        self.view = TrainerView(self)
        self._hook: str | None = None
        self._batch: Any = None
        self._batch_size: int | None = None
        self._loaders: list[str] = [""]
        self._train_source: LoaderSource | None = None
        self._request_train: Callable[[], LoaderSource] | None = None
        self._restored_optimizers: dict[str, Any] = {}
        self._warned_of_nan = False
        self._overridden: dict[str, bool] = {}
        self._steps_of_module: dict[str, Callable[..., Any]] = {}
        self._accepted: dict[str, int] = {}
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
        *,
        overfit_batches: int | float,
        reload_every_n_epochs: int,
        accumulation: Accumulation,
        kept: Any,
        given: Any,
    ) -> FitData:
        """Sets the module up for training, in Lightning's order, and returns its data."""
        self._check_module()
        self._attach()
        self._resolve_callbacks()
        if datamodule is not None and (train_data is not None or val_data is not None):
            raise ConfigurationError("fit got both loaders and a datamodule; pass one or the other.")
        self._set_up("fit", datamodule, kept)
        self._hold_live()
        self.steps = self.optimizer_steps = 0
        self.newest.clear()
        self._configure_optimizers_later(train_data, limits, overfit_batches, accumulation)
        self.call("on_fit_start")
        self.module.zero_grad()

        def validation() -> dict[str, LoaderSource]:
            if limits["val"] == 0 or not overridden(self.module, "validation_step"):
                return {}
            loaders = self._loader("val_dataloader") if val_data is None else val_data
            found = sources(loaders, "val_data", limits["val"])
            self._loaders = list(found)
            return found

        def make() -> tuple[Any, Any]:
            # What the sanity check needs is made and drawn before the training data, in vain; without one, after it.
            if self.trainer.num_sanity_val_steps:
                with random_states.isolated():
                    val = validation()
                train = self._train_data()
            else:
                train = self._train_data()
                train.begin(0) if given is None else None
                val = validation()
            return train, val

        def renew() -> tuple[Any, Any]:
            self._train_source = None
            return make()

        train, val = make()
        self.data = FitData(
            train,
            val,
            make=renew if reload_every_n_epochs else None,
            every_n_epochs=reload_every_n_epochs,
            datamodule=datamodule,
        )
        return self.data

    def stage_data(
        self, stage: Literal["val", "test", "predict"], data: Any, datamodule: Any, limit: int | float | None
    ) -> dict[str, Any]:
        """Sets the module up for an evaluation or prediction, and returns its data."""
        name = {"val": "validation", "test": "test", "predict": "predict"}[stage]
        if not (overridden(self.module, f"{name}_step") or stage == "predict"):
            raise ConfigurationError(
                f"{type(self.module).__name__} has no {name}_step(self, batch, batch_idx), which this runs; define it."
            )
        self._attach()
        self._resolve_callbacks()
        if datamodule is not None and data is not None:
            raise ConfigurationError(f"Both {stage} data and a datamodule were given; pass one or the other.")
        self._set_up("validate" if stage == "val" else stage, datamodule)
        self.newest.clear()
        loaders = self._loader(f"{stage}_dataloader") if data is None else data
        found = sources(loaders, f"{stage} data", limit)
        if not found:
            raise ConfigurationError(
                f"No {stage} data was given; pass data or datamodule, or give the module a {stage}_dataloader()."
            )
        self._loaders = list(found)
        return found

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
        self._hold_live()
        self.load(state)
        if self.optimizers and arrays["optimizers"]:
            self._restored_optimizers = arrays["optimizers"]
            for number, optimizer in enumerate(self.optimizers):
                found = arrays["optimizers"].get(str(number), {})
                load_optimizer(optimizer, found, state.rest[number] if state.rest else optimizer_rest(optimizer))
        self.steps = self.optimizer_steps = state.step
        return self._live

    place_state = adopt_state

    def restore_state(self, checkpoint: Checkpoint, key: Any, batch: Any) -> TorchState:
        """Reads the state of a checkpoint: weights as the module has them, optimizers as they were saved."""
        like = self._arrays()
        like["optimizers"] = _saved_leaves(checkpoint.about()["leaves"], "optimizers")
        return checkpoint.restore(TorchState(like))

    def load(self, state: TorchState) -> None:
        """Copies the weights of a state into the module.

        Raises:
          CheckpointError: they do not fit.
        """
        own = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        found = state.tensors()
        wrong = [
            f"{name}: {tuple(found[name].shape) if name in found else 'missing'} in the state, "
            f"{tuple(own[name].shape) if name in own else 'missing'} in the module"
            for name in sorted({*own, *found})
            if name not in own or name not in found or own[name].shape != found[name].shape
        ]
        if wrong:
            raise CheckpointError(
                f"The state does not fit {type(self.module).__name__}:\n  " + "\n  ".join(wrong[:20]) + "\n"
                "A state fits the module that made it."
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(found[name])

    def state_to_save(self, state: TorchState) -> TorchState:
        """Returns a copy that training leaves alone."""
        return TorchState(jax.tree.map(np.array, state.arrays))

    def summarize(self, state: TorchState) -> Summary:
        """Lists the parameters and buffers of the module."""
        params, buffers = list(self.module.named_parameters()), list(self.module.named_buffers())
        rows = [_row(name, one, one.numel() if one.requires_grad else 0) for name, one in params]
        rows += [_row(name, one, 0) for name, one in buffers]
        optimizer_bytes = sum(array.nbytes for array in jax.tree.leaves(self._arrays()["optimizers"]))
        in_params = sum(row.bytes for row in rows[: len(params)])
        in_buffers = sum(row.bytes for row in rows[len(params) :])
        return Summary(
            rows=tuple(rows),
            parameters=sum(row.parameters for row in rows),
            parameter_bytes=in_params,
            model_state_bytes=in_buffers,
            optimizer_bytes=optimizer_bytes,
            bytes=in_params + in_buffers + optimizer_bytes,
        )

    def facts(self) -> Mapping[str, str]:
        """Returns what the first screen says of the device, the backend and the precision."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        backend = self.task.backend if isinstance(self.task.backend, str) else self.task.backend.__name__
        dtypes = ", ".join(sorted({str(one.dtype).removeprefix("torch.") for one in self.module.parameters()}))
        compute = f", compute {str(self.numerics.dtype).removeprefix('torch.')}" if self.numerics.mixed else ""
        return {
            "devices": f"1 x {name}, torch {torch.__version__}, backend {backend!r}",
            "precision": f"parameters {dtypes or 'none'}{compute} ({self.numerics.name})",
        }

    def notes(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps beside the arrays, as JSON.

        Raises:
          CheckpointError: something in it would need a pickle; it is named.
        """
        found: dict[str, Any] = {
            "optimizers": [optimizer_rest(one) for one in self.optimizers],
            "schedulers": [one.scheduler.state_dict() for one in self.schedulers],
            "scaler": None if self.numerics.scaler is None else self.numerics.scaler.state_dict(),
            "optimizer_steps": self.optimizer_steps,
            "random": random_states.states() if self.resumed_random is None else self.resumed_random,
            "newest": dict(self.newest),
            "epoch": [
                [name, one.reduce, one.forked, one.total, one.weight]
                for name, one in self.logged.running.items()
                if isinstance(one.reduce, str)
            ],
            "metrics": {
                name: {state: getattr(metric, state) for state in metric._defaults}
                | {"_update_count": metric._update_count}
                for name, metric in self._torchmetrics().items()
            },
            "module": self._saved_by_module(),
        }
        kept = {}
        for name, value in found.items():
            try:
                kept[name] = encode(value)
            except CheckpointError as error:
                what = str(error).partition(", which")[0].partition("holds ")[2]
                raise CheckpointError(
                    f"A checkpoint holds arrays and JSON, never pickles, but the {name} of "
                    f"{type(self.module).__name__} hold {what}; keep numbers, strings, arrays and tensors there."
                ) from error
        return kept

    def restore_notes(self, notes: dict[str, Any]) -> None:
        """Takes back what `notes` returned."""
        found = {name: decode(value) for name, value in notes.items()}
        for number, (optimizer, rest) in enumerate(zip(self.optimizers, found["optimizers"], strict=True)):
            load_optimizer(optimizer, self._restored_optimizers.get(str(number), {}), rest)
        self._restored_optimizers = {}
        for scheduler, state in zip(self.schedulers, found["schedulers"], strict=True):
            for name, value in vars(scheduler.scheduler).items():
                if isinstance(value, Counter) and name in state:
                    state[name] = Counter(state[name])
            scheduler.scheduler.load_state_dict(state)
        if self.numerics.scaler is not None and found["scaler"] is not None:
            self.numerics.scaler.load_state_dict(found["scaler"])
        self.optimizer_steps = found["optimizer_steps"]
        self.resumed_random = found["random"]
        self.newest.update({name: value.to(self.device) for name, value in found["newest"].items()})
        self.logged = self.train_log = Logged()
        for name, reduce, forked, total, weight in found["epoch"]:
            running = self.logged.running[name] = logs.Running(reduce, forked)
            running.total, running.weight = total.to(self.device), weight
        for name, metric in self._torchmetrics().items():
            for state, value in found["metrics"].get(name, {}).items():
                setattr(metric, state, to_device(value, self.device))
        self.call("on_load_checkpoint", self._checkpoint_dict() | (found["module"] or {}))

    # What runs.

    def place_stretch(self, stage: str, stretch: Stretch, *before: int) -> Stretch:
        """Returns the stretch as it is: batches are moved when their hooks have seen them."""
        return stretch

    def trace_train(self, state: Any, batch: Any) -> None:
        """Has nothing to trace."""

    def trace_eval(self, state: Any, batch: Any, stage: str = "eval") -> None:
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
        return StepValues({}, None, 0), self.logged

    def train(self, state: TorchState, totals: Any, stretch: Stretch) -> tuple[Any, Any, Any]:
        """Runs the batches of one optimizer step."""
        batches: Any = stretch.steps
        self.stage, log = "train", self.logged
        log.steps = {}
        group, count = self.data.train.group(self.epoch), len(batches.items)
        loss = None
        for place, batch in enumerate(batches.items):
            self.last_batch = batches.last and place == count - 1
            loss = self._train_batch(batch, batches.first + place, group, first=not place, steps=place == count - 1)
        self.steps += 1
        rows = StepValues(log.steps, loss, self.steps)
        return state, (rows, log), rows

    def _train_batch(self, batch: Any, number: int, group: int, *, first: bool, steps: bool) -> torch.Tensor | None:
        batch = self._batch = self._moved(batch)
        self._batch_size = None
        if self.call("on_train_batch_start", batch, number) == -1:
            self.data.train.cut_at(number + 1)
            self.last_batch = True
            self.step_schedulers("epoch", self.epoch, plateau=False)
            return None
        if getattr(self.module, "automatic_optimization", True):
            output = self._optimize(batch, number, group, first=first, steps=steps)
        else:
            output = self._outputs(self._run_step("training_step", batch, number), needs_loss=False)
        if steps:
            self.step_schedulers("step", number, plateau=False)
        if self.last_batch:
            self.step_schedulers("epoch", self.epoch, plateau=False)
        self.call("on_train_batch_end", output, batch, number)
        if self.outputs is not None:
            self.outputs.append(output)
        if steps:
            self.step_schedulers("step", number, plateau=True)
        self._batch = None
        self.newest.update(self.logged.steps)
        return output.get("loss") if isinstance(output, dict) else None

    def _optimize(self, batch: Any, number: int, group: int, *, first: bool, steps: bool) -> dict[str, Any]:
        """Runs a train step, its gradient and, where a group of batches ends, the optimizer."""
        optimizer = self.optimizers[0] if self.optimizers else None
        output: dict[str, Any] = {}

        def closure() -> torch.Tensor | None:
            output.clear()
            found = self._run_step("training_step", batch, number)
            output.update(self._outputs(found, needs_loss=True))
            loss = found["loss"] if isinstance(found, Mapping) else found
            if first and optimizer is not None:
                self.call("on_before_zero_grad", optimizer)
                if self._has("optimizer_zero_grad"):
                    self.call("optimizer_zero_grad", self.epoch, number, optimizer)
                else:
                    optimizer.zero_grad()
            if loss is None:
                return None
            if group > 1:
                loss = loss / group
                output["loss"] = loss.detach()
            self._backward(loss)
            return loss

        if not steps or optimizer is None:
            closure()
        elif self._has("optimizer_step"):
            self.call("optimizer_step", self.epoch, number, self.wrapped[0], closure)
        else:
            self._step(optimizer, closure)
        if steps:
            self.optimizer_steps += 1
        return output

    def _backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if self.numerics.scaler is not None:
            loss = self.numerics.scaler.scale(loss)
        self.call("on_before_backward", loss)
        if self._has("backward"):
            self.call("backward", loss, *args, **kwargs)
        else:
            loss.backward(*args, **kwargs)
        self.call("on_after_backward")

    def backward_by_module(self, loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Runs the gradient that a module asked for (`self.manual_backward`)."""
        hook = self._hook
        self._backward(loss, *args, **kwargs)
        self._hook = hook

    def _step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """Steps an optimizer after the closure made its gradients, with the hooks in between."""
        scaler = self.numerics.scaler
        if scaler is None:
            after = self._after_closure

            def whole() -> Any:
                found = closure()
                after(optimizer)
                return found

            return optimizer.step(closure=whole, **kwargs)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigurationError("LBFGS evaluates its closure several times, which loss scaling (16-mixed) cannot.")
        found = torch.enable_grad()(closure)()
        if getattr(self.module, "automatic_optimization", True) and found is not None:
            scaler.unscale_(optimizer)
        self._after_closure(optimizer)
        if found is not None or not getattr(self.module, "automatic_optimization", True):
            scaler.step(optimizer, **kwargs)
            scaler.update()
        return found

    def _step_by_module(
        self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None, **kwargs: Any
    ) -> Any:
        """Steps an optimizer for the module: its wrapped optimizer's `step`."""
        if getattr(self.module, "automatic_optimization", True):
            return self._step(optimizer, closure or _nothing, **kwargs)
        hook = self._hook
        found = self._step(optimizer, closure or _nothing, **kwargs)
        self._hook = hook
        self.optimizer_steps += 1
        return found

    def _after_closure(self, optimizer: torch.optim.Optimizer) -> None:
        self.call("on_before_optimizer_step", optimizer)
        if not getattr(self.module, "automatic_optimization", True):
            return
        if self._has("configure_gradient_clipping"):
            self.call("configure_gradient_clipping", optimizer, self.clip_value, self.clip_algorithm)
        elif self.clip_value is not None:
            self.clip(optimizer, self.clip_value, self.clip_algorithm or "norm")

    def clip(self, optimizer: torch.optim.Optimizer, value: float, algorithm: Any = "norm") -> None:
        """Clips the gradients of an optimizer's parameters."""
        if value > 0:
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            clip(parameters, value, getattr(algorithm, "value", algorithm))

    def step_schedulers(self, interval: str, index: int, *, plateau: bool) -> None:
        """Steps the schedulers whose turn it is.

        Args:
          interval: "step" or "epoch".
          index: of the batch or the epoch, counted from 0.
          plateau: those that look at a metric, or the others.

        Raises:
          MetricError: a metric that a scheduler looks at was not logged.
        """
        if not getattr(self.module, "automatic_optimization", True):
            return
        for one in self.schedulers:
            due = one.interval == interval and (index + 1) % one.frequency == 0
            if not due or one.reduce_on_plateau is not plateau:
                continue
            value = None
            if plateau:
                value = self.newest.get(one.monitor or "")
                if value is None and one.strict:
                    raise MetricError(
                        f"{type(one.scheduler).__name__} looks at {one.monitor!r}, which nobody logged; logged are: "
                        f"{', '.join(sorted(self.newest)) or 'none'}. Log it, or set the scheduler's monitor."
                    )
                if value is None:
                    continue
            if self._has("lr_scheduler_step"):
                self.call("lr_scheduler_step", one.scheduler, value)
            elif value is None:
                one.scheduler.step()
            else:
                one.scheduler.step(value)

    def eval_capacity(self, data: Any, stage: str = "eval") -> int:
        """Returns 1."""
        return 1

    def eval_totals(self, stage: str = "eval") -> Logged:
        """Returns what an evaluation gathers."""
        self.logged = Logged()
        self.evaluated.append(self.logged)
        return self.logged

    def evaluate(self, state: TorchState, totals: Logged, stretch: Stretch, stage: str = "eval") -> Logged:
        """Evaluates a batch."""
        assert self.stage is not None
        with torch.inference_mode():
            loader = self._loaders.index(stage.partition("/")[2]) if len(self._loaders) > 1 else 0
            steps: Any = stretch.steps
            batch = self._batch = self._moved(steps.items[0], loader)
            self._batch_size = None
            more = (loader,) if len(self._loaders) > 1 else ()
            number = steps.first
            self.call(f"on_{self.stage}_batch_start", batch, number, *more)
            output = self._run_step(f"{self.stage}_step", batch, number, *more)
            if (end := getattr(self.module, f"{self.stage}_step_end", None)) is not None:
                output = end(output)
            self.call(f"on_{self.stage}_batch_end", output, batch, number, *more)
            if self.outputs_of_evaluation is not None:
                self.outputs_of_evaluation.append(output)
            self.newest.update(totals.steps)
            self._batch = None
        return totals

    def predict(self, state: TorchState, stretch: Stretch) -> Any:
        """Predicts a batch."""
        with torch.inference_mode():
            loader = self._loaders.index(self.run.loader) if self.run is not None and len(self._loaders) > 1 else 0
            steps: Any = stretch.steps
            batch = self._batch = self._moved(steps.items[0], loader)
            more = (loader,) if len(self._loaders) > 1 else ()
            number = steps.first
            self.call("on_predict_batch_start", batch, number, *more)
            if overridden(self.module, "predict_step"):
                output = self._run_step("predict_step", batch, number, *more)
            else:
                with self.numerics.scope():
                    output = self.module(batch)
            self.call("on_predict_batch_end", output, batch, number, *more)
        return output

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

    def compute(self, stage: str, vectors: Any) -> dict[str, Any]:
        """Reads logged values; waits for the device."""
        if isinstance(vectors, StepValues):
            self._check_loss(vectors)
            return logs.read(vectors.values)
        return logs.read(vectors.freeze())

    def metric_names(self, stage: str) -> list[str]:
        """Returns []: a module logs what it logs."""
        return []

    def close(self) -> None:
        """Lets the module go."""
        self.stage = None
        detached(self.module)

    # What hooks and steps use.

    def call(self, hook: str, *arguments: Any, default: Callable[[], Any] | None = None) -> Any:
        """Calls a hook of the module if it has one of its own, else the default."""
        if not self._has(hook):
            return default() if default is not None else None
        self._hook, before = hook, self._hook
        # Hooks of evaluation run without gradients, as its steps do.
        evaluating = self.stage not in (None, "train")
        with torch.inference_mode() if evaluating else nullcontext():
            found = getattr(self.module, hook)(*arguments)
        self._hook = before
        return found

    def begin_epoch(self, run: Run) -> None:
        """Begins to gather an epoch, unless a resumed run has."""
        if run.epoch != self.epoch or not run.batch:
            self.logged = self.train_log = Logged()
        self.epoch = run.epoch
        self.outputs = [] if overridden(self.module, "training_epoch_end") else None
        run.totals = self.train_totals()

    def freeze(self, log: Logged, *, silent: bool = False) -> dict[str, torch.Tensor]:
        """Ends what was gathered; the values are the newest of their names."""
        found = log.freeze()
        if not silent:
            self.newest.update(found)
            self.newest.update({name: found[f"{name}_epoch"] for name, one in log.running.items() if one.forked})
        return found

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Takes a value (`self.log`); nothing waits for the device."""
        step, epoch = logs.levels(self._hook, name, on_step, on_epoch)
        if isinstance(value, Mapping):
            for key, part in value.items():
                self.log(
                    f"{name}.{key}", part, on_step=step, on_epoch=epoch, reduce_fx=reduce_fx, batch_size=batch_size
                )
            return
        if add_dataloader_idx and len(self._loaders) > 1 and self.stage != "train" and self._batch is not None:
            name = f"{name}/dataloader_idx_{len(self.evaluated) - 1}"
        self.logged.add(
            name,
            logs.as_value(name, value, self.device),
            on_step=step,
            on_epoch=epoch,
            reduce=reduce_fx,
            batch_size=self._examples if batch_size is None else lambda: int(batch_size),
        )

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Takes several values (`self.log_dict`)."""
        items = dictionary.items(keep_base=False) if hasattr(dictionary, "clone") else dictionary.items()
        for name, value in items:
            self.log(name, value, *args, **kwargs)

    def estimated_steps(self) -> int | float:
        """Returns the optimizer steps of the whole training; what is not known is infinite."""
        found = steps_of(self.trainer, self._train_data().batches)
        return math.inf if found is None else found

    def _examples(self) -> int:
        if self._batch_size is None:
            self._batch_size = logs.batch_size(self._batch)
        return self._batch_size

    def _has(self, hook: str) -> bool:
        found = self._overridden.get(hook)
        if found is None:
            found = self._overridden[hook] = overridden(self.module, hook)
        return found

    def _run_step(self, name: str, *arguments: Any) -> Any:
        """Runs a step of the module with as many of the arguments as it takes."""
        step = self._steps_of_module.get(name)
        if step is None:
            step = self._steps_of_module[name] = self.task.compiled(getattr(self.module, name))
            self._accepted[name] = _accepted(getattr(self.module, name), name)
        self._hook, before = name, self._hook
        with self.numerics.scope():
            found = step(*arguments[: self._accepted[name]])
        self._hook = before
        return found

    def _outputs(self, found: Any, *, needs_loss: bool) -> dict[str, Any]:
        """Returns what `training_step` returned as a dict, detached."""
        if found is None:
            return {}
        if isinstance(found, torch.Tensor):
            return {"loss": found.detach()}
        if isinstance(found, Mapping):
            if needs_loss and "loss" not in found:
                raise StepError(
                    f"{type(self.module).__name__}.training_step returned a dict without 'loss' ({sorted(found)}), so "
                    "there is nothing to differentiate; return the loss, or {'loss': loss, ...}, or None to skip."
                )
            return {
                key: value.detach() if isinstance(value, torch.Tensor) and key == "loss" else value
                for key, value in found.items()
            }
        if not needs_loss:
            return {"loss": found}
        raise StepError(
            f"{type(self.module).__name__}.training_step returned {type(found).__name__}; return the loss as a tensor, "
            "a dict with 'loss', or None to skip the batch."
        )

    def _check_loss(self, values: StepValues) -> None:
        """Says when a loss is not a number, at a look."""
        if self._warned_of_nan or not isinstance(values.loss, torch.Tensor) or values.loss.numel() != 1:
            return
        if math.isfinite(loss := float(values.loss)):
            return
        text = (
            f"The loss of {type(self.module).__name__}.training_step is {loss} at step {values.step}: the weights are, "
            "or will be, of no use. Look for a division by zero, a log of zero or a learning rate that is too high "
            "(torch.autograd.set_detect_anomaly(True) finds the operation)"
        )
        if self.on_nonfinite == "raise":
            raise StepError(f"{text}; on_nonfinite='raise' ends the run here.")
        self._warned_of_nan = True
        warnings.warn(f"{text}; Trainer(on_nonfinite='raise') ends such runs.", stacklevel=2)

    def _moved(self, batch: Any, loader: int = 0) -> Any:
        batch = self.numerics.convert_batch(batch)
        for hook in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
            owner = (
                self.datamodule if overridden_in(self.datamodule, hook) else self.module if self._has(hook) else None
            )
            if owner is not None:
                more = (self.device,) if hook == "transfer_batch_to_device" else ()
                batch = getattr(owner, hook)(batch, *more, loader)
            elif hook == "transfer_batch_to_device":
                batch = to_device(batch, self.device)
        return batch

    # Setting up.

    def _check_module(self) -> None:
        for method, why in (
            ("training_step", "(self, batch, batch_idx), which returns the loss"),
            ("configure_optimizers", "(self), which returns an optimizer"),
        ):
            if not overridden(self.module, method):
                raise ConfigurationError(
                    f"{type(self.module).__name__} has no {method}{why}, so it cannot be trained; define it."
                )
        if "dataloader_iter" in inspect.signature(self.module.training_step).parameters:
            raise ConfigurationError(
                f"{type(self.module).__name__}.training_step takes dataloader_iter, which lightjax does not give; take "
                "batch and batch_idx."
            )

    def _attach(self) -> None:
        attached(self.module, self.view, self.task.plain(self.log), self.task.plain(self.log_dict))
        self._overridden.clear()
        self._steps_of_module.clear()
        self._warned_of_nan = False

    def _resolve_callbacks(self) -> None:
        found = self.module.configure_callbacks() if overridden(self.module, "configure_callbacks") else []
        found = list(found) if isinstance(found, list | tuple) else [found]
        from lightjax.callbacks import Callback

        if wrong := [one for one in found if not isinstance(one, Callback)]:
            raise ConfigurationError(
                f"{type(self.module).__name__}.configure_callbacks returned {type(wrong[0]).__name__} of "
                f"{type(wrong[0]).__module__}, which is no callback of lightjax; return lj.EarlyStopping, "
                "lj.ModelCheckpoint, or a subclass of lj.Callback."
            )
        self.callbacks = (*found, ModuleHooks(self))

    def _set_up(self, stage: str, datamodule: Any, kept: Any = None) -> None:
        """Runs what prepares data and module, in Lightning's order."""
        self.datamodule = datamodule
        if datamodule is not None:
            datamodule.trainer = self.view
        for owner in (datamodule, self.module):
            if owner is not None and overridden(owner, "prepare_data"):
                owner.prepare_data()
        for owner in (datamodule, self.module):
            if owner is not None and overridden(owner, "setup"):
                owner.setup(stage)
        if datamodule is not None and kept and overridden(datamodule, "load_state_dict"):
            datamodule.load_state_dict(kept)
        self.call("configure_model")
        self.numerics.convert_module(self.module)
        self.module.to(self.device)

    def _configure_optimizers_later(self, train_data: Any, limits: Any, overfit: Any, accumulation: Any) -> None:
        """Configures the optimizers; the training data is asked for when they want to know how long it is."""
        self._train_source = None

        def request() -> LoaderSource:
            loader = self._loader("train_dataloader") if train_data is None else train_data
            return train_source(loader, limits["train"], overfit, accumulation)

        self._request_train = request
        found = self.module.configure_optimizers()
        automatic = getattr(self.module, "automatic_optimization", True)
        self.optimizers, self.schedulers = configured(found, self.module, automatic=automatic)
        self.wrapped = [stepped_by_module(one, self._step_by_module, self.module) for one in self.optimizers]
        self.view.strategy._lightning_optimizers = self.wrapped
        if not automatic and (self.clip_value is not None or accumulation.largest > 1):
            raise ConfigurationError(
                f"{type(self.module).__name__} optimizes by itself (automatic_optimization=False), so that "
                "gradient_clip_val and accumulate_grad_batches have nothing to act on; do both in training_step "
                "(self.clip_gradients), and leave the arguments out."
            )

    def _train_data(self) -> LoaderSource:
        assert self._request_train is not None
        if self._train_source is None:
            self._train_source = self._request_train()
        return self._train_source

    def _loader(self, method: str) -> Any:
        """Asks the data module, or the module, for a loader; None where neither has one."""
        for owner in (self.datamodule, self.module):
            if overridden_in(owner, method):
                return getattr(owner, method)()
            if owner is self.datamodule and owner is not None:
                return None
        return None

    def _hold_live(self) -> None:
        self._live.hold([optimizer_rest(one) for one in self.optimizers])
        self._live = TorchState(self._arrays)

    def _arrays(self) -> dict[str, Any]:
        return {
            "params": {name: to_array(one) for name, one in self.module.named_parameters()},
            "buffers": {name: to_array(one) for name, one in self.module.named_buffers()},
            "optimizers": {
                str(number): arrays for number, one in enumerate(self.optimizers) if (arrays := optimizer_arrays(one))
            },
            "step": np.asarray(self.steps),
        }

    def _torchmetrics(self) -> dict[str, Any]:
        """Returns the torchmetrics objects of the module by name: their state crosses the steps of an epoch."""
        return {
            name: one
            for name, one in self.module.named_modules()
            if hasattr(one, "_defaults") and hasattr(one, "_update_count")
        }

    def _checkpoint_dict(self) -> dict[str, Any]:
        return {"state_dict": self.module.state_dict(), "epoch": self.epoch, "global_step": self.optimizer_steps}

    def _saved_by_module(self) -> dict[str, Any]:
        """Returns what `on_save_checkpoint` put into the checkpoint."""
        if not self._has("on_save_checkpoint"):
            return {}
        checkpoint = self._checkpoint_dict()
        own = set(checkpoint)
        self.call("on_save_checkpoint", checkpoint)
        return {name: value for name, value in checkpoint.items() if name not in own}


def overridden_in(owner: Any, name: str) -> bool:
    """Says whether an object, which may be None, has a method of its own."""
    return owner is not None and overridden(owner, name)


def _nothing() -> None:
    """Closes over nothing: the gradients are there already."""


def _accepted(step: Callable[..., Any], name: str) -> int:
    """Returns how many arguments a step takes: the batch, its number, the number of the loader."""
    parameters = inspect.signature(step).parameters.values()
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters):
        return 3
    count = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    if not count:
        raise StepError(f"{name} takes no batch; define {name}(self, batch, batch_idx).")
    return count


def _row(name: str, tensor: torch.Tensor, parameters: int) -> Row:
    size = tensor.numel() * tensor.element_size()
    return Row(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), parameters, size)


def _saved_leaves(leaves: Mapping[str, str], item: str) -> dict[str, Any]:
    """Makes arrays without values of what a checkpoint describes: {"optimizers/0/1/exp_avg": "float32[2]"}."""
    found: dict[str, Any] = {}
    for name, kind in leaves.items():
        first, *path = name.split("/")
        if first != item:
            continue
        dtype, _, shape = kind.rstrip("]").partition("[")
        node = found
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.empty([int(size) for size in shape.split(",") if size], np.dtype(dtype))
    return found
