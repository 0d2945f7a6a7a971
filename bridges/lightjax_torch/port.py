"""PortedTask: a LightningModule as pure step functions of JAX, with torch's meaning."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from jax.core import Tracer

import lightjax as lj
from lightjax.errors import ConfigurationError
from lightjax_torch.arrays import jax_dtype, to_jax, to_torch
from lightjax_torch.captured_step import CARRIES, CapturedStep, abstract, counted
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.hooks import overridden
from lightjax_torch.host_hooks import HostHooks, prepare, reading
from lightjax_torch.lightning_checkpoint import load_optimization, read_checkpoint
from lightjax_torch.manual import ManualOptimization
from lightjax_torch.module_state import ModuleState, names_in_code
from lightjax_torch.optim import CapturedOptimizer, CapturedState
from lightjax_torch.parts import (
    METHODS,
    Part,
    Stage,
    after_step,
    call_step,
    evaluation,
    tells_loaders_apart,
    training,
    with_gradients,
)
from lightjax_torch.schedule import Schedules, configured
from lightjax_torch.step_view import weighted
from lightjax_torch.trainer_values import NoTrainerError, TrainerValues
from lightjax_torch.verification import Verifying, verify


def port_task(
    module: torch.nn.Module, *, optimizer: optax.GradientTransformation | None = None, verify: bool = False
) -> PortedTask:
    """Makes pure step functions of a LightningModule, or of any module with its methods.

    `training_step` is captured once for every shape of batch, with torch's backward in it, and becomes the task's
    `train_step` over an `lj.TrainState`: `params` holds the parameters that require a gradient, `model_state`
    everything else (frozen parameters, buffers, tensors on attributes), all named as in the state_dict. The module is
    left as it is; it gives the first weights.

    Args:
      module: has `training_step(batch, batch_idx)` and `configure_optimizers()`; `validation_step`, `test_step`,
        `predict_step` as needed.
      optimizer: an optax transformation in the place of what `configure_optimizers` returns.
      verify: before training, run the step on the first batch in torch and in JAX, operation by operation, and raise at
        the first one that differs; `task.verify(state, batch)` does so at any time.

    Returns:
      The task.

    Raises:
      ConfigurationError: the module has no training_step, or its optimizers are of a kind that is not ported.
      CaptureError: (when first run) the module cannot be captured.

    Example:
      >>> import torch, lightjax as lj
      >>> class Line(torch.nn.Linear):
      ...     def training_step(self, batch, batch_idx):
      ...         x, y = batch
      ...         return ((self(x) - y) ** 2).mean()
      ...     def configure_optimizers(self):
      ...         return torch.optim.SGD(self.parameters(), lr=0.1)
      >>> data = [(torch.ones(4, 1), torch.full((4, 1), 3.0))] * 5
      >>> trainer = lj.Trainer(max_epochs=20, logger=False, enable_checkpointing=False, enable_progress_bar=False,
      ...                      enable_model_summary=False)
      >>> task = port_task(Line(1, 1))
      >>> result = trainer.fit(task, data)
      >>> round(task.to_torch(result.state)(torch.ones(1)).item(), 3)
      3.0
    """
    return PortedTask(module, optimizer, verify)


class PortedTask:
    """A torch module that the trainer runs in JAX; made by `from_torch(module, backend="jax")`.

    Attributes:
      module: the module, as it was given; `to_torch` changes its weights.
      testing: the task that `trainer.test` evaluates: with `test_step` as its eval step.
      schedules: what steps the learning-rate schedulers on the host. The trainer calls its hooks.
      tensors: the module's tensors by name.
      values: what the module reads of the trainer that runs it.
    """

    def __init__(
        self, module: torch.nn.Module, optimizer: optax.GradientTransformation | None = None, verify: bool = False
    ) -> None:
        self.module = module
        self._verifying = Verifying(self.verify) if verify else None
        if not callable(getattr(module, "training_step", None)):
            raise ConfigurationError(
                f"{type(module).__name__} has no training_step(batch, batch_idx), which returns the loss; define it, "
                "or use lightjax_torch.jax_function(module, example) in a task of your own."
            )
        prepare(module)
        self.tensors = ModuleState(module)
        everything = self.tensors.parameters
        self._trained = [name for name, p in everything.items() if p.requires_grad]
        self._kept = [name for name in everything if name not in self._trained]
        self._kept += [*self.tensors.buffers, *self.tensors.attributes]
        self.values = TrainerValues()
        of_gradients = any(overridden(module, name) for name in ("on_after_backward", "on_before_optimizer_step"))
        self._training = training(lambda module, batch, batch_idx: call_step(module, "train", batch, batch_idx))
        self._with_gradients = with_gradients() if of_gradients else None
        self._after = after_step() if overridden(module, "on_train_batch_end") else None
        self._manual: ManualOptimization | None = None
        if getattr(module, "automatic_optimization", True) is False:
            self._manual = ManualOptimization(module, self.tensors, self.values)
        self.schedules = Schedules()
        self._optimizer_given = optimizer is not None
        self._transformation: optax.GradientTransformation | None = optimizer
        self._torch_optimizer: torch.optim.Optimizer | None = None
        self._captured_optimizer: CapturedOptimizer | None = None
        self._read: dict[str, Any] | None = None
        self._begun_with: dict[str, Any] | None = None
        with contextlib.suppress(NoTrainerError):  # `init` does it, when a trainer runs the task
            self._configure()
        self._steps: dict[Any, CapturedStep] = {}
        self._hooks = HostHooks(self)
        self.eval_step = self._evaluating("val")
        self.testing = _Testing(self)

    def attach(self, trainer: lj.Trainer) -> None:
        """Lets the module read numbers of this trainer; the trainer calls it."""
        self.values.attach(trainer)

    def _configure(self) -> None:
        """Calls `configure_optimizers`, and again where what it read of the trainer has changed."""
        if self._manual is not None or self._optimizer_given:
            return
        if self._read is None or not self.values.still(self._read):
            with reading(self.module, self.values) as read:
                self._torch_optimizer, schedulers = configured(self.module)
            if self._torch_optimizer is not None:
                load_optimization(self._begun_with, [self._torch_optimizer], [one.scheduler for one in schedulers])
            self._read = read
            self._transformation = self._captured_optimizer = None
            if self._torch_optimizer is not None:
                self.schedules.take(self._torch_optimizer, schedulers)

    def init(self, key: jax.Array, batch: Any) -> lj.TrainState:
        """Returns the state of step 0, with the module's weights."""
        if self._verifying is not None:
            jax.debug.callback(self._verifying.take, batch)
        if self.tensors.on_meta:
            # A plan traces this for shapes and never runs it.
            if not isinstance(key, Tracer):
                self.tensors.check_values()
            jax.debug.callback(self._hooks.miss_values)
        params = self.tensors.arrays(self._trained)
        model_state = self.tensors.arrays(self._kept)
        if self._manual is not None:
            return self._manual.init(params, model_state, batch, key)
        self._configure()
        step = self._captured(self._training, params, model_state, batch)
        used = set(step.used)
        for part in (self._with_gradients, self._after):
            if part is not None:
                used |= self._captured(part, params, model_state, batch, has_gradients=part is not self._after).used
        if names_in_code(self.module, "current_epoch"):
            used.add("current_epoch")
        model_state |= {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in step.carried.items()}
        if step.carried:
            model_state[CARRIES] = jnp.zeros((), bool)
        model_state |= {f"counter:{name}": jnp.zeros((), jnp.int32) for name in sorted(used - {"global_step"})}
        return lj.TrainState.create(params=params, optimizer=self._optax(step), key=key, model_state=model_state)

    def train_step(self, state: lj.TrainState, batch: Any) -> tuple[lj.TrainState, dict[str, Any]]:
        """Takes one step: `training_step`, its gradient, the optimizer, and the module's hooks around them."""
        if self._manual is not None:
            return self._manual.train_step(state, batch)
        grads, (metrics, model_state) = lj.grad(self._loss)(state, batch)
        if self._with_gradients is not None:
            self._check_microbatches(
                state, {"on_after_backward"} if overridden(self.module, "on_after_backward") else set()
            )
            step = self._captured(self._with_gradients, state.params, model_state, batch, has_gradients=True)
            whole = state.replace(model_state=model_state)
            _, more, model_state, _, grads = step(whole, batch, {name: grads[name] for name in state.params})
            metrics |= more
        state = state.apply_gradients(grads, model_state=model_state)
        if self._after is not None:
            step = self._captured(self._after, state.params, state.model_state, batch)
            self._check_microbatches(state, step.used & {"batch_idx"})
            _, more, model_state, params, _ = step(state, batch)
            state, metrics = state.replace(params=params, model_state=model_state), metrics | more
        if "counter:batch_idx" in state.model_state:
            place = state.model_state["counter:batch_idx"]
            state = state.replace(model_state={**state.model_state, "counter:batch_idx": place + 1})
        return state, metrics

    def _evaluating(self, stage: Stage) -> Callable[..., dict[str, Any]] | None:
        """Returns the eval step of a stage, None where the module has none."""
        if not hasattr(self.module, METHODS[stage]):
            return None

        def each_loader(state: lj.TrainState, batch: Any, batch_idx: Any = 0, dataloader_idx: int = 0) -> Any:
            return self.evaluate(stage, state, batch, batch_idx, dataloader_idx)[1]

        def any_loader(state: lj.TrainState, batch: Any, batch_idx: Any = 0) -> Any:
            return self.evaluate(stage, state, batch, batch_idx)[1]

        # Loaders that need not be told apart share a program.
        apart = tells_loaders_apart(self.module, stage) or self.tensors.metrics.present
        return each_loader if apart else any_loader

    def predict_step(self, state: lj.TrainState, batch: Any) -> Any:
        """Runs `predict_step`, or the module itself."""
        return self.evaluate("predict", state, batch)[0]

    def _loss(self, state: lj.TrainState, batch: Any) -> tuple[jax.Array, tuple[dict[str, Any], dict[str, Any]]]:
        step = self._captured(self._training, state.params, state.model_state, batch)
        self._check_microbatches(state, step.used & {"batch_idx"})
        loss, metrics, model_state, _, _ = step(state, batch)
        if "loss" not in metrics:
            metrics = weighted({"loss": loss}, batch) | metrics
        return loss, (metrics, model_state)

    def _check_microbatches(self, state: lj.TrainState, what: set[str]) -> None:
        if what and (state.policy.microbatches > 1 or state.policy.microbatch_size):
            raise ConfigurationError(
                f"{type(self.module).__name__} uses {', '.join(what)}, and a step of several batches has none of its "
                f"own: leave microbatches and accumulate_grad_batches away, or {WAY_OUT}."
            )

    def evaluate(
        self, stage: Stage, state: lj.TrainState, batch: Any, batch_idx: Any = 0, dataloader_idx: int = 0
    ) -> tuple[Any, dict[str, Any]]:
        """Runs the step of an evaluation or prediction; returns outputs and metrics."""
        step = self._captured(evaluation(stage, dataloader_idx), state.params, state.model_state, batch)
        if "current_epoch" in step.used and "counter:current_epoch" not in state.model_state:
            raise CaptureError(
                f"{METHODS[stage]} uses the number of the epoch, which this state does not keep; {WAY_OUT}."
            )
        outputs, metrics, *_ = step(state, batch, batch_idx=batch_idx)
        return outputs, metrics

    def _without_carried(self, model_state: Mapping[str, Any]) -> dict[str, Any]:
        return {name: model_state[name] for name in self._kept}

    def _captured(
        self, part: Part, params: Any, model_state: Any, batch: Any, *, has_gradients: bool = False
    ) -> CapturedStep:
        model_state = self._without_carried(model_state)
        leaves, structure = jax.tree.flatten((params, model_state, batch))
        kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        signature = (part.name, part.loader, structure, kinds)
        found = self._steps.get(signature)
        if found is None or not self.values.still(found.read):
            shapes: Any = jax.tree.map(abstract, (params, model_state, batch))
            given = (self.module, self.tensors, part, self.values)
            found = self._steps[signature] = CapturedStep(*given, *shapes, has_gradients=has_gradients)
        return found

    def captured_again_is_the_same(self) -> bool:
        """Says whether the steps would be captured again as they were; what hooks change in Python may matter."""
        return all(step.again_is_the_same() for step in self._steps.values())

    def _optax(self, step: CapturedStep) -> optax.GradientTransformation:
        if self._transformation is None:
            if self._torch_optimizer is None:
                self._transformation = optax.set_to_zero()
            else:
                names = {id(tensor): name for name, tensor in self.tensors.parameters.items()}
                of_schedules = (self.schedules.rows, self.schedules.cycles)
                self._captured_optimizer = CapturedOptimizer(
                    self._torch_optimizer, names, step.with_gradient, *of_schedules
                )
                self._transformation = self._captured_optimizer.transformation()
        return self._transformation

    @property
    def callbacks(self) -> list[lj.Callback]:
        """What the trainer calls beside its own callbacks."""
        verifying = [] if self._verifying is None else [self._verifying]
        return [self._hooks, *verifying, self.schedules if self._manual is None else self._manual.schedules]

    def lent(self, run: Any) -> dict[str, Any]:
        """Returns what a hook on the host gets of the optimization."""
        return {} if self._manual is None else {"lr_schedulers": self._manual.schedules.lent(run)}

    def filled(self, run: Any) -> None:
        """Takes what a hook did to schedulers into the state."""
        if self._manual is not None:
            self._manual.schedules.fill_if_stepped(run)

    def verify(self, state: lj.TrainState, batch: Any, *, tolerance: float | None = None) -> int:
        """Runs `training_step` on a batch in torch and in JAX, operation by operation, backward pass included.

        Args:
          state: real arrays.
          batch: real arrays, too.
          tolerance: largest difference as a share of a tensor's largest element; 1e-4, with x64 1e-9, when None.

        Returns:
          How many operations were compared.

        Raises:
          VerificationError: the first operation that differs, with the user's line.
        """
        if tolerance is None:
            tolerance = 1e-9 if jax_dtype(torch.float64) == jnp.float64 else 1e-4
        if self._manual is not None:
            return self._manual.verify(state, batch, tolerance)
        numbers = counted(state)
        model_state, key = self._without_carried(state.model_state), state.key_for("torch")
        ways = self._captured(self._training, state.params, state.model_state, batch).first
        capture = ways.chosen(batch, numbers, state.params, model_state, key, None)
        differentiated, others = capture.inputs(state.params, model_state, batch, numbers)
        return verify(capture.program, [*differentiated, *others], key, tolerance)

    def arrays(self, state: lj.TrainState) -> dict[str, Any]:
        """Returns parameters, buffers and tensors on attributes by name."""
        return {**state.params, **self._without_carried(state.model_state)}

    def carried(self, state: lj.TrainState) -> list[str]:
        """Returns the names of the tensors on attributes that a step makes for the next one."""
        return [name for name in state.model_state or {} if name not in self._kept and "/" in name]

    def tensors_of(self, arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Returns them as torch's."""
        return to_torch(dict(arrays))

    def with_arrays(self, state: lj.TrainState, arrays: Mapping[str, Any]) -> lj.TrainState:
        """Returns a state with some of them changed."""
        changed = {
            field: {**held, **{name: value for name, value in arrays.items() if name in held}}
            for field, held in (("params", state.params), ("model_state", state.model_state))
        }
        return state.replace(**changed)

    def state_dict(self, state: lj.TrainState) -> dict[str, torch.Tensor]:
        """Returns the weights of a state as the module's `state_dict`: copies, on the CPU, in the module's dtypes."""
        found = to_torch({**state.params, **self._without_carried(state.model_state)})
        by_identity = {id(tensor): name for name, tensor in (self.tensors.parameters | self.tensors.buffers).items()}
        own = self.module.state_dict(keep_vars=True)
        return {
            name: found[by_identity[id(tensor)]].to(tensor.dtype)
            for name, tensor in own.items()
            if id(tensor) in by_identity
        }

    def to_torch(self, state: lj.TrainState) -> torch.nn.Module:
        """Returns the module with the weights of a state; the same module, changed in place.

        Raises:
          ConfigurationError: the module is on the meta device.
        """
        self.tensors.check_values()
        self.module.load_state_dict(self.state_dict(state), strict=True)
        found = to_torch(self._without_carried(state.model_state))
        with torch.no_grad():
            for name, tensor in (self.tensors.buffers | self.tensors.attributes).items():
                tensor.copy_(found[name])  # those that no state_dict has
        return self.module

    def optimizer_to_torch(self, state: lj.TrainState) -> torch.optim.Optimizer:
        """Returns the module's torch optimizer with the state that the compiled steps left, to go on in torch.

        It steps the parameters of `task.module`: call `to_torch(state)` as well.

        Raises:
          ConfigurationError: the module is not trained with one torch optimizer of its own.
        """
        if self._captured_optimizer is None or not isinstance(state.opt_state, CapturedState):
            raise ConfigurationError(
                "Only the state of one torch optimizer, the one of configure_optimizers, goes back into torch; this "
                "module was trained with another, or has not been trained."
            )
        return self._captured_optimizer.to_torch(state.opt_state, state.params)

    def load_checkpoint(self, path: str | os.PathLike[str], *, optimizers: bool = False) -> None:
        """Puts the weights of a Lightning `.ckpt` into the module, for states that `init` makes from now on.

        Runs no code that is in the file. Steps and epochs are counted from 0.

        Args:
          path: the file.
          optimizers: take the states of the module's own optimizers and learning-rate schedulers, too.

        Raises:
          CheckpointError: it cannot be read without a pickle, or its optimizers are others.
          ConfigurationError: an optax optimizer was given in the place of the module's.
        """
        found = read_checkpoint(path)
        if optimizers and self._optimizer_given:
            raise ConfigurationError("The checkpoint's optimizer is torch's, and this task has optimizer=optax....")
        self.module.load_state_dict(found["state_dict"], strict=True)
        begun_with = found if optimizers else None
        if self._manual is not None:
            self._manual.begin_with(begun_with)
        elif begun_with is not self._begun_with:
            self._begun_with, self._read = begun_with, None
            with contextlib.suppress(NoTrainerError):
                self._configure()

    def load_state_dict(self, state: lj.TrainState, weights: Mapping[str, torch.Tensor]) -> lj.TrainState:
        """Returns a state with other weights, named as in the module's `state_dict`; all have to be there.

        Raises:
          ConfigurationError: names or shapes differ; lists them.
        """
        own = self.state_dict(state)
        wrong = [f"{name} is missing" for name in own if name not in weights]
        wrong += [f"{name} is none of the module's" for name in weights if name not in own]
        wrong += [
            f"{name} has shape {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ]
        if wrong:
            raise ConfigurationError(f"The weights do not fit {type(self.module).__name__}: {'; '.join(wrong)}.")

        def taken(tree: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: jnp.asarray(to_jax(weights[name]), value.dtype) if name in weights else value
                for name, value in tree.items()
            }

        return state.replace(params=taken(state.params), model_state=taken(state.model_state))


class _Testing:
    """The task that a test evaluates: with `test_step` as its eval step."""

    def __init__(self, task: PortedTask) -> None:
        self.init, self.train_step, self.predict_step = task.init, task.train_step, task.predict_step
        self.callbacks, self.attach = task.callbacks, task.attach
        self.eval_step = task._evaluating("test")
