"""The hooks of a ported module that are Python: they run on the host, between compiled steps, with the real weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import torch

import lightjax as lj
from lightjax.errors import ConfigurationError
from lightjax_torch.arrays import to_jax
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.hook_attributes import AttributesOfSteps
from lightjax_torch.hooks import overridden
from lightjax_torch.logger_view import LoggerView
from lightjax_torch.metric_objects import as_numbers, is_metric_object
from lightjax_torch.module_state import names_in_code, python_values
from lightjax_torch.schedule import metric_of
from lightjax_torch.step_view import attached_to
from lightjax_torch.trainer_values import TrainerValues

if TYPE_CHECKING:
    from lightjax.run import Run
    from lightjax_torch.port import PortedTask

_INSTEAD = {
    "optimizer_step": "use a learning-rate scheduler, or an optax optimizer, from_torch(..., optimizer=optax...)",
    "optimizer_zero_grad": "gradients of a compiled step are new in every step",
    "backward": "write automatic_optimization = False, with manual_backward",
    "configure_gradient_clipping": "give the trainer gradient_clip_val, or clip in on_before_optimizer_step",
    "lr_scheduler_step": "give the scheduler a step() without arguments",
    "transfer_batch_to_device": "change the batch in on_before_batch_transfer or on_after_batch_transfer",
    "training_step_end": "move it into training_step",
    "validation_step_end": "move it into validation_step",
    "test_step_end": "move it into test_step",
    "training_epoch_end": "self.log what is to be gathered",
    "validation_epoch_end": "self.log what is to be gathered",
    "test_epoch_end": "self.log what is to be gathered",
}
# Where the metrics of what ended are known.
_ENDS = (
    "on_train_epoch_end", "on_validation_epoch_end", "on_validation_end", "on_test_epoch_end", "on_test_end",
)  # fmt: skip
_OF_GRADIENTS = ("on_after_backward", "on_before_optimizer_step", "on_before_zero_grad", "on_before_backward")


def prepare(module: torch.nn.Module) -> None:
    """Refuses what a compiled step cannot call, and calls the hooks that make what a module consists of.

    Raises:
      ConfigurationError: the module overrides such a method; lists all.
    """
    refused = [f"{name} ({instead})" for name, instead in _INSTEAD.items() if overridden(module, name)]
    if getattr(module, "automatic_optimization", True) is False:
        refused += [f"{name} (move it into training_step)" for name in _OF_GRADIENTS if overridden(module, name)]
    if getattr(module, "truncated_bptt_steps", None):
        refused.append("truncated_bptt_steps (cut the sequences in the data, and keep the hidden state in a buffer)")
    if refused:
        raise ConfigurationError(
            f"{type(module).__name__} defines what a ported module cannot: {'; '.join(refused)}; or {WAY_OUT}."
        )
    for name in ("on_save_checkpoint", "on_load_checkpoint"):
        if overridden(module, name):
            warnings.warn(
                f"{type(module).__name__}.{name} is not called: a checkpoint of a ported module holds its state, "
                "docs/porting.md; task.state_dict(state) gives torch's.",
                stacklevel=4,
            )
    if overridden(module, "configure_model"):
        module.configure_model()  # pyright: ignore[reportCallIssue]
    if overridden(module, "setup"):
        module.setup("fit")  # pyright: ignore[reportCallIssue]


class _Reading:
    """The trainer that `configure_optimizers` sees."""

    current_epoch = global_step = 0
    world_size = num_devices = num_nodes = 1
    global_rank = local_rank = node_rank = 0
    is_global_zero = True

    def __init__(self, values: TrainerValues) -> None:
        self.values = values
        self.read: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = self.read[name] = self.values.read(name)
        return found


@contextlib.contextmanager
def reading(module: torch.nn.Module, values: TrainerValues) -> Iterator[dict[str, Any]]:
    """Lets a module read the trainer, and yields what it read."""
    view = _Reading(values)
    with attached_to(module, {"_trainer": view, "trainer": view}):
        yield view.read


class HostHooks(lj.Callback):
    """Calls hooks of a ported module where Lightning does, with the weights of the state in the module.

    What a hook writes into parameters and buffers goes into the state. What it changes in Python is looked at: where a
    captured step would be another one for it, that is an error.

    Args:
      task: the task.
    """

    def __init__(self, task: PortedTask) -> None:
        self.task = task
        self.module: Any = task.module
        self._without_values = False

    def miss_values(self) -> None:
        """Notes that `init` ran on a module without values."""
        self._without_values = True

    def setup(self, run: Run, stage: str) -> None:
        """Refuses a state that `init` made of nothing.

        Raises:
          ConfigurationError: the module is on the meta device.
        """
        if self.task.tensors.on_meta:
            jax.effects_barrier()
            missed, self._without_values = self._without_values, False
            if missed:
                self.task.tensors.check_values()

    def on_fit_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_fit_start")

    def on_fit_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_fit_end")

    def on_train_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_train_start")

    def on_train_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_train_end")

    def on_train_epoch_start(self, run: Run) -> None:
        """Puts the numbers of epoch and batch into the state, and calls the module's hook."""
        held = run.state.model_state or {}
        numbers = {"counter:current_epoch": run.epoch, "counter:batch_idx": run.batch}
        changed = {name: jnp.asarray(value, jnp.int32) for name, value in numbers.items() if name in held}
        if changed and any(int(held[name]) != value for name, value in numbers.items() if name in held):
            run.state = run.state.replace(model_state={**held, **changed})
        if not run.batch:
            self._call(run, "on_train_epoch_start")

    def on_train_epoch_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_train_epoch_end")

    def on_validation_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_validation_start", "val")

    def on_validation_epoch_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_validation_epoch_start", "val")

    def on_validation_epoch_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_validation_epoch_end", "val")

    def on_validation_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_validation_end", "val")

    def on_test_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_test_start", "test")

    def on_test_epoch_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_test_epoch_start", "test")

    def on_test_epoch_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_test_epoch_end", "test")

    def on_test_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_test_end", "test")

    def on_predict_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_predict_start", "predict")

    def on_predict_epoch_start(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_predict_epoch_start", "predict")

    def on_predict_epoch_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_predict_epoch_end", "predict")

    def on_predict_end(self, run: Run) -> None:
        """Calls the module's hook."""
        self._call(run, "on_predict_end", "predict")

    def teardown(self, run: Run, stage: str) -> None:
        """Calls the module's hook."""
        if overridden(self.module, "teardown"):
            self._run(run, "teardown", "train", stage)

    def _call(self, run: Run, name: str, stage: str = "train") -> None:
        if overridden(self.module, name):
            self._run(run, name, stage)

    def _run(self, run: Run, name: str, stage: str, *arguments: Any) -> None:
        task, module = self.task, self.module
        task.tensors.check_values()
        tensors = task.tensors.parameters | task.tensors.buffers | task.tensors.attributes
        given = {one: tensor.detach().clone() for one, tensor in tensors.items()}
        modes = {one: one.training for one in module.modules()}
        trained = {one: tensor.requires_grad for one, tensor in tensors.items()}
        held = task.arrays(run.state)
        with torch.no_grad():
            for one, array in task.tensors_of(held).items():
                tensors[one].copy_(array)
        task.tensors.restore_modes()
        if stage != "train":
            module.eval()
        before = {one: tensor.detach().clone() for one, tensor in tensors.items()}
        modes_before = {one: one.training for one in module.modules()}
        python = python_values(module)
        attributes = AttributesOfSteps(task.tensors, task.carried(run.state), run.state.model_state or {})
        attributes.lend()
        view = HostView(run, task.values, stage)
        lent: dict[str, Any] = {"_trainer": view, "trainer": view, "log": view.log, "log_dict": view.log_dict}
        lent |= {"current_epoch": run.epoch, "global_step": run.step} | task.lent(run)
        if name in _ENDS:
            run.history.settle()  # metric objects then have the states of what ended
        objects = task.tensors.metrics.lent(stage) if name in _ENDS else contextlib.nullcontext([])
        try:
            with attached_to(module, lent), objects as metrics:
                getattr(module, name)(*arguments)
                self._check_objects(name, metrics, view)
            now, of_steps, strange = attributes.take_back(name)
            self._check(name, modes_before, trained, tensors, python, strange)
            if of_steps:
                run.state = run.state.replace(model_state={**run.state.model_state, **of_steps})
            changed = {one: now[one] for one, was in before.items() if not _same(now[one], was)}
            if changed:
                new = {
                    one: jnp.asarray(to_jax(value.detach().clone()), held[one].dtype) for one, value in changed.items()
                }
                run.state = task.with_arrays(run.state, new)
            task.filled(run)
        finally:
            attributes.restore()
            with torch.no_grad():
                for one, tensor in tensors.items():
                    tensor.copy_(given[one])
            for one, training in modes.items():
                one.training = training

    def _check_objects(self, name: str, metrics: list[Any], view: HostView) -> None:
        used = [one for one in metrics if one._computed is not None and one._update_count]
        kept = [type(one).__name__ for one in used if not any(one is logged for logged in view.objects)]
        if kept and not names_in_code(self.module, "reset"):
            raise CaptureError(
                f"{name} computes the metric object {kept[0]} and nobody resets it: torch would go on gathering over "
                "epochs, a ported module gathers each by itself. Call reset() after compute(), or self.log the "
                f"object; or {WAY_OUT}."
            )

    def _check(self, name: str, modes: Any, trained: Any, tensors: Any, python: Any, strange: list[str]) -> None:
        module = self.module
        other = [n for n, one in module.named_modules() if one in modes and one.training != modes[one]]
        if other and name.startswith(("on_fit", "on_train")):
            raise CaptureError(
                f"{name} changes the mode, training or evaluation, of {', '.join(other)}; a compiled step has the "
                f"modes that the module was given in: put it into them before from_torch, or {WAY_OUT}."
            )
        if switched := [n for n, was in trained.items() if tensors[n].requires_grad != was]:
            for one in switched:
                tensors[one].requires_grad_(trained[one])
            raise CaptureError(
                f"{name} changes requires_grad of {', '.join(switched)}; which parameters a compiled step trains is "
                f"fixed: set it before from_torch, give the trainer trainable=[...] or a lj.Finetuning callback, or "
                f"{WAY_OUT}."
            )
        changed = [place for place, leaves in python_values(module).items() if python.get(place) != leaves]
        if (changed or strange) and not self.task.captured_again_is_the_same():
            names = ", ".join([f"{path}.{one}".removeprefix(".") for path, one in changed] + strange)
            raise CaptureError(
                f"{name} changes {names}, a Python value that the compiled steps read when they were captured; keep it "
                f"in a buffer, self.register_buffer: what hooks write into buffers, steps see; or {WAY_OUT}."
            )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one, other) or bool((one.isnan() & other.isnan() | (one == other)).all())


class _Metrics(Mapping[str, torch.Tensor]):
    """The newest value of every metric, under lightjax's name and under the one that the module logged it with."""

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self._metrics = metrics

    def __getitem__(self, name: str) -> torch.Tensor:
        if (value := metric_of(self._metrics, name)) is None:
            raise KeyError(name)
        return torch.as_tensor(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)


class HostView:
    """The trainer that a hook on the host sees.

    Args:
      run: what is going on.
      values: numbers of the trainer's.
      stage: what the hook is of: names of what it logs begin with it.

    Attributes:
      objects: metric objects that the hook logged.
    """

    world_size = num_devices = num_nodes = 1
    global_rank = local_rank = node_rank = 0
    is_global_zero = True

    def __init__(self, run: Run, values: TrainerValues, stage: str) -> None:
        self._run, self._values, self._stage = run, values, stage
        self.objects: list[Any] = []
        self.current_epoch, self.global_step = run.epoch, run.step
        self.sanity_checking = run.sanity_checking
        self.training = stage == "train"
        self.validating, self.testing, self.predicting = (stage == one for one in ("val", "test", "predict"))
        self.log_dir = None if run.directory is None else str(run.directory)
        self.datamodule = run.datamodule

    @property
    def callback_metrics(self) -> Mapping[str, torch.Tensor]:
        """The newest value of every metric; waits for the device."""
        return _Metrics(self._run.metrics)

    logged_metrics = progress_bar_metrics = callback_metrics

    @property
    def loggers(self) -> list[Any]:
        """The loggers."""
        view: Any = self
        loggers = enumerate(self._run.trainer.loggers)
        return [LoggerView(one, number, view, lambda: self._run, []) for number, one in loggers]

    @property
    def logger(self) -> Any:
        """The first logger; None for none."""
        return next(iter(self.loggers), None)

    @property
    def should_stop(self) -> bool:
        """Whether the training is to end."""
        return self._run.stopped_by is not None

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        if stop:
            self._run.stop("trainer.should_stop")

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        """Reports a number at once; of a metric object, what it computes of the epoch."""
        if is_metric_object(value):
            self.objects.append(value)
            found = as_numbers(value.compute())
            value = found if isinstance(found, Mapping) else float(found)
        if isinstance(value, Mapping):
            for key, one in value.items():
                self.log(f"{name}/{key}", float(one))
        elif not self._run.sanity_checking:
            value = value.detach().item() if isinstance(value, torch.Tensor) else float(value)
            self._run.log({f"{self._stage}/{name}": value})

    def log_dict(self, dictionary: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """Reports several numbers."""
        for name, value in dictionary.items():
            self.log(name, value)

    def print(self, *values: Any, **options: Any) -> None:
        """Prints."""
        print(*values, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._values.read(name)
