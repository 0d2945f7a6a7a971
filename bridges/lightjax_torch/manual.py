"""Manual optimization: a step that runs its own backward passes and optimizers, captured as one program."""

from __future__ import annotations

import collections
import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import torch
from torch.utils import _pytree as pytree

import lightjax as lj
from lightjax.errors import ConfigurationError
from lightjax_torch.arrays import jax_dtype, to_jax, torch_dtype
from lightjax_torch.capture import capture
from lightjax_torch.captured_step import COUNTERS, abstract, counted, python_changes
from lightjax_torch.constants import deciding
from lightjax_torch.counters import Answers, Counters, Expression, evaluate
from lightjax_torch.errors import WAY_OUT, CaptureError, ProgramError
from lightjax_torch.function import meta
from lightjax_torch.host_hooks import reading
from lightjax_torch.lightning_checkpoint import load_optimization
from lightjax_torch.manual_schedules import ManualSchedules, ScheduledRates
from lightjax_torch.manual_view import ManualView, counting, optimizing, set_rates
from lightjax_torch.metric_objects import check_joins
from lightjax_torch.module_state import ModuleState, made_submodules, names_in_code, python_values, unchanged
from lightjax_torch.optim import begins_at_zero
from lightjax_torch.parts import by_itself
from lightjax_torch.paths import Paths
from lightjax_torch.program import Program
from lightjax_torch.schedule import optimizers_and_schedulers
from lightjax_torch.step_view import dtypes_of
from lightjax_torch.trainer_values import NoTrainerError, TrainerValues
from lightjax_torch.verification import verify

Tensors = Mapping[str, Any]


class ManualState(NamedTuple):
    """What the optimizers of a step that optimizes manually keep.

    Attributes:
      started: bool scalar, whether a step was taken.
      tensors: by the number of the optimizer, the parameter, and the optimizer's own names.
      schedules: learning rates of the optimizers that have a scheduler, by the optimizer's number.
    """

    started: jax.Array
    tensors: dict[str, dict[str, dict[str, jax.Array]]]
    schedules: dict[str, ScheduledRates]


class ManualOptimization:
    """The train step of a module with `automatic_optimization = False`.

    Args:
      module: the module.
      tensors: its tensors by name.
      values: what it may read of the trainer.

    Raises:
      ConfigurationError: `configure_optimizers` returns no optimizers.
    """

    def __init__(self, module: Any, tensors: ModuleState, values: TrainerValues) -> None:
        self.module, self.tensors, self.values, self.call = module, tensors, values, by_itself()
        self.optimizers: list[torch.optim.Optimizer] = []
        self._read: dict[str, Any] | None = None
        self._begun_with: Mapping[str, Any] | None = None
        with contextlib.suppress(NoTrainerError):  # `init` does it, when a trainer runs the task
            self._configure()

    def begin_with(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Lets optimizers and schedulers begin with the states in a Lightning checkpoint, None for none."""
        if checkpoint is not self._begun_with:
            self._begun_with, self._read = checkpoint, None
            with contextlib.suppress(NoTrainerError):
                self._configure()

    def _configure(self) -> None:
        """Calls `configure_optimizers`, and again where what it read of the trainer has changed."""
        if self._read is not None and self.values.still(self._read):
            return
        module, tensors = self.module, self.tensors
        with reading(module, self.values) as read:
            self.optimizers, schedulers = optimizers_and_schedulers(module.configure_optimizers())
        if not self.optimizers or not all(isinstance(one, torch.optim.Optimizer) for one in self.optimizers):
            raise ConfigurationError(
                f"{type(module).__name__} optimizes manually, and configure_optimizers returned no optimizers; return "
                "one or a list of them."
            )
        load_optimization(self._begun_with, self.optimizers, schedulers)
        names = {id(tensor): name for name, tensor in tensors.parameters.items()}
        strangers = [p for o in self.optimizers for g in o.param_groups for p in g["params"] if id(p) not in names]
        if strangers:
            raise ConfigurationError(
                f"configure_optimizers returned an optimizer over a tensor of shape {tuple(strangers[0].shape)} that "
                "is no parameter of the module; register it, self.name = torch.nn.Parameter(...)."
            )
        self.groups = [
            [[names[id(p)] for p in group["params"] if p.requires_grad] for group in one.param_groups]
            for one in self.optimizers
        ]
        self.schedules = ManualSchedules(self.optimizers, schedulers)
        self._steps: dict[Any, tuple[Any, Any, Any]] = {}
        self._read = read

    def init(self, params: Tensors, model_state: Tensors, batch: Any, key: jax.Array) -> lj.TrainState:
        """Returns the state of step 0."""
        self._configure()
        _, usual, shapes = self._captured(params, model_state, batch)
        counters = usual.used | ({"current_epoch"} if names_in_code(self.module, "current_epoch") else set())
        counted = {f"counter:{name}": jnp.zeros((), jnp.int32) for name in sorted(counters)}
        known = self._kept()
        state = lj.TrainState.create(
            params=params, optimizer=optax.set_to_zero(), key=key, model_state={**model_state, **counted}
        )
        tensors = {
            number: {
                name: {
                    key: to_jax(known[number][name][key])
                    if key in known.get(number, {}).get(name, {})
                    else jnp.zeros(tuple(value.shape), jax_dtype(value.dtype))
                    for key, value in held.items()
                }
                for name, held in of_optimizer.items()
            }
            for number, of_optimizer in shapes.items()
        }
        schedules = self.schedules.begin(rate_dtype(params))
        return state.replace(opt_state=ManualState(jnp.zeros((), bool), tensors, schedules))

    def train_step(self, state: lj.TrainState, batch: Any) -> tuple[lj.TrainState, dict[str, Any]]:
        """Takes one step."""
        policy = state.policy
        if policy.precision.compute or policy.gradient_clip_val or policy.microbatches > 1 or policy.microbatch_size:
            raise ConfigurationError(
                f"{type(self.module).__name__} optimizes manually: precision, clipping and accumulation are its own to "
                "do; leave precision, gradient_clip_val and microbatches away."
            )
        held, optimizing = state.model_state, state.opt_state
        first, usual, arguments = self._prepared(state, batch)
        kept = arguments[3]
        if first is None:
            params, kept, tensors, (steps, scheduled), metrics = self._run(usual, arguments)
        else:
            found = jax.lax.cond(
                state.opt_state.started,
                lambda: self._run(usual, arguments),
                lambda: self._run(first, arguments),
            )
            params, kept, tensors, (steps, scheduled), metrics = found
        moved = {"counter:batch_idx": 1, "counter:global_step": steps}
        counters = {name: value + moved.get(name, 0) for name, value in held.items() if name not in kept}
        counters = {name: value.astype(held[name].dtype) for name, value in counters.items()}
        schedules = {n: one._replace(steps=one.steps + scheduled[n]) for n, one in optimizing.schedules.items()}
        opt_state = ManualState(jnp.ones((), bool), tensors, schedules)
        new = state.replace(step=state.step + 1, params=params, model_state={**kept, **counters}, opt_state=opt_state)
        return new, metrics

    def verify(self, state: lj.TrainState, batch: Any, tolerance: float) -> int:
        """Runs the step in torch and in JAX; as `PortedTask.verify`."""
        first, usual, arguments = self._prepared(state, batch)
        paths = usual if first is None or bool(state.opt_state.started) else first
        *given, key = arguments
        capture = paths.chosen(*arguments)
        return verify(capture.program, capture.inputs(*given), key, tolerance)

    def _prepared(self, state: lj.TrainState, batch: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        """Returns the first and the usual step, and their arguments."""
        held, optimizing = state.model_state, state.opt_state
        kept = {name: value for name, value in held.items() if not name.startswith("counter:")}
        first, usual, _ = self._captured(state.params, kept, batch)
        numbers = counted(state) | {"global_step": jnp.asarray(held.get("counter:global_step", 0), whole_dtype())}
        rates = {
            number: (one.rates, (one.steps - one.first).astype(whole_dtype()))
            for number, one in optimizing.schedules.items()
        }
        return first, usual, (batch, numbers, state.params, kept, optimizing.tensors, rates, state.key_for("torch"))

    def _run(self, paths: Paths, arguments: Any) -> Any:
        (params, kept, tensors, steps), metrics = paths(*arguments)
        return params, kept, tensors, steps, metrics

    def _kept(self) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
        """Returns what the optimizers hold already (Adagrad does from the start)."""
        names = {id(tensor): name for name, tensor in self.tensors.parameters.items()}
        kept = {
            str(number): {
                names[id(p)]: {key: value for key, value in held.items() if isinstance(value, torch.Tensor)}
                for p, held in optimizer.state.items()
            }
            for number, optimizer in enumerate(self.optimizers)
        }
        return {number: held for number, held in kept.items() if held}

    def _captured(self, params: Tensors, model_state: Tensors, batch: Any) -> tuple[Any, Any, Any]:
        leaves, structure = jax.tree.flatten((params, model_state, batch))
        signature = (structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))
        found = self._steps.get(signature)
        if found is None or not self.values.still(found[1].read):
            found = self._steps[signature] = self._captured_anew(params, model_state, batch)
        return found

    def _captured_anew(self, params: Tensors, model_state: Tensors, batch: Any) -> tuple[Any, Any, Any]:
        shapes = jax.tree.map(abstract, (params, model_state, batch))
        made: Callable[..., ManualCapture] = partial(ManualCapture, self, *shapes)
        name = "training_step"
        first = Paths(lambda answers: made(self._kept(), {}, answers), name)
        states = merged_states(first.captures)
        usual = Paths(lambda answers, states=states: made(states, {}, answers), name)
        # A way that steps one optimizer leaves the state of another away.
        while _shapes(again := merged_states(usual.captures)) != _shapes(states):
            if not states.keys() <= again.keys() or len(str(_shapes(again))) <= len(str(_shapes(states))):
                raise CaptureError(f"The optimizers' states change their shapes from step to step; {WAY_OUT}.")
            states = again
            usual = Paths(lambda answers, states=states: made(states, {}, answers), name)
        for one in usual.captures:
            if one.gradients:
                # Gradients are left behind: fine if the next step clears them before it uses them.
                Paths(lambda answers, left=one.gradients: made(states, left, answers), name)
        if all(begins_at_zero(one) for one in self.optimizers):
            return None, usual, states
        if len(usual.captures) > 1:
            kinds = ", ".join(type(one).__name__ for one in self.optimizers if not begins_at_zero(one))
            raise CaptureError(
                f"training_step branches on a number of the trainer's, and {kinds} begins with a step of another kind, "
                f"which may come late then; use Adam, AdamW, RMSprop or plain SGD, or {WAY_OUT}."
            )
        return first, usual, states

    def over(self, number: int, trained: Tensors, states: Tensors) -> torch.optim.Optimizer:
        """Returns an optimizer over other tensors."""
        original = self.optimizers[number]
        optimizer = copy.copy(original)
        optimizer.__dict__.pop("step", None)
        optimizer.param_groups = []
        for group, names in zip(original.param_groups, self.groups[number], strict=True):
            changed = {**group, "params": [trained[name] for name in names], "foreach": False}
            changed |= {"capturable": True} if "capturable" in group else {}
            changed |= {"fused": None} if "fused" in group else {}
            optimizer.param_groups.append(changed)
        optimizer.state = collections.defaultdict(dict)
        for name, held in states.items():
            optimizer.state[trained[name]] = dict(held)
        return optimizer


class ManualCapture:
    """One way through a step that optimizes manually, as one graph.

    Args:
      owner: the optimization.
      params: shapes.
      model_state: shapes.
      batch: shapes.
      states: what the optimizers hold, without values.
      gradients: those left by the step before, without values.
      answers: what is decided about counters.
    """

    created: Mapping[str, torch.Tensor] = {}
    with_gradient = ()
    reads_carried = False

    def __init__(
        self,
        owner: ManualOptimization,
        params: Tensors,
        model_state: Tensors,
        batch: Any,
        states: Any,
        gradients: Tensors,
        answers: Answers,
    ) -> None:
        module, tensors = owner.module, owner.tensors
        known = tensors.parameters | tensors.buffers | tensors.attributes
        seen: dict[str, Any] = {}

        def step(given: Any, kept: Any, batch: Any, numbers: Any, rates: Any, states: Any, gradients: Any) -> Any:
            trained = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
            for name, gradient in gradients.items():
                trained[name].grad = gradient
            optimizers = [
                owner.over(number, trained, states.get(str(number), {})) for number in range(len(owner.groups))
            ]
            counters = seen["counters"] = Counters(numbers, answers)
            view = seen["view"] = ManualView(counters, owner.values)
            for number, one in enumerate(optimizers):
                counting(one, view)
                if str(number) in rates:
                    set_rates(one, rates[str(number)], 0)
            before_groups = list(map(_hyperparameters, optimizers))
            with unchanged(module), tensors.holding(trained | kept):
                tensors.restore_modes()
                before, submodules = python_values(module), dict(module.named_modules())
                with (
                    tensors.metrics.begun(),
                    view.attached(module),
                    optimizing(module, optimizers, view, rates),
                    deciding(counters.decide_tensor),
                ):
                    owner.call(module, batch, counters.number("batch_idx"))
                view.take_objects(tensors.metrics, "training_step", "train")
                made = made_submodules(module, "training_step", submodules)
                values = python_values(module)
                changed = [at for at, leaves in values.items() if before.get(at) != leaves and at[0] not in made]
                after = tensors.read([*given, *(name for name in kept if ":" not in name)])
                attributes = tensors.read_attributes()
            if changed:
                raise python_changes(module, "training_step", changed)
            if list(map(_hyperparameters, optimizers)) != before_groups:
                raise CaptureError(
                    "training_step sets numbers of an optimizer's param_groups, which the next step would not see; use "
                    f"a learning rate that stays, or {WAY_OUT}."
                )
            if created := [name for name in attributes if name not in kept]:
                raise CaptureError(f"training_step leaves tensors on attributes: {', '.join(created)}; {WAY_OUT}.")
            if replaced := [name for name in given if after[name] is not trained[name]]:
                raise CaptureError(f"training_step replaces parameters: {', '.join(replaced)}; {WAY_OUT}.")
            # What a step on another way leaves alone, this one hands on.
            left = {number: {name: dict(held) for name, held in of.items()} for number, of in states.items()}
            for number, optimizer in enumerate(optimizers):
                for name in (name for group in owner.groups[number] for name in group):
                    if held := optimizer.state.get(trained[name]):
                        left.setdefault(str(number), {})[name] = dict(held)
            seen["left"] = pytree.tree_map_only(
                torch.Tensor, lambda value: torch.empty(value.shape, dtype=value.dtype, device="meta"), left
            )
            seen["gradients"] = {
                name: torch.empty(p.shape, dtype=p.dtype, device="meta")
                for name, p in trained.items()
                if p.grad is not None
            }
            state = {name: attributes[name] if ":" in name else after[name] for name in kept}
            return _detached([trained, state, left, view.logged, counters.truths])

        def spec(name: str, leaf: Any) -> torch.Tensor:
            same = jnp.dtype(leaf.dtype) == jax_dtype(known[name].dtype)
            return torch.empty(leaf.shape, dtype=known[name].dtype, device="meta") if same else meta(leaf)

        self.weights = {name: spec(name, leaf) for name, leaf in params.items()}
        self.kept = {name: spec(name, leaf) for name, leaf in model_state.items()}
        numbers = {name: torch.empty((), dtype=torch.int64, device="meta") for name in COUNTERS}
        dtype = torch_dtype(rate_dtype(params))
        rates = {
            str(number): (
                torch.empty((owner.schedules.rows, len(owner.groups[number])), dtype=dtype, device="meta"),
                torch.empty((), dtype=torch.int64, device="meta"),
            )
            for number in owner.schedules.numbers
        }
        specs = (self.weights, self.kept, jax.tree.map(meta, batch), numbers, rates, states, dict(gradients))
        try:
            self.graph = capture(step, *specs)
        except ProgramError as error:
            error.asked = tuple(seen["counters"].asked)
            raise
        self.program = Program(self.graph)
        if gradients and any(node.users for node in self.program.inputs[len(self.program.inputs) - len(gradients) :]):
            raise CaptureError(
                f"{type(module).__name__}.training_step adds to gradients that the step before left: call "
                f"optimizer.zero_grad() in every step, before its backward pass or after its step, or {WAY_OUT}."
            )
        self.order = [
            (number, name, key)
            for number, of in states.items()
            for name, held in of.items()
            for key, value in held.items()
            if isinstance(value, torch.Tensor)
        ]
        self.states, self.gradients, view = seen["left"], seen["gradients"], seen["view"]
        self.asked, self.used = seen["counters"].asked, seen["counters"].used
        self.read, self.logged_as, self.levels = view.read, view.logged_as, view.levels
        self.steps, self.scheduled = view.steps, view.scheduled
        owner.schedules.allow(max(self.scheduled.values(), default=0))
        *_, logged, self._truths = self.graph.nest(self.program.outputs)
        self.logged_dtypes = dtypes_of(logged)
        check_joins(logged, self.logged_as, self.program.nodes)

    def inputs(
        self, batch: Any, numbers: Any, params: Any, model_state: Any, opt_tensors: Any, rates: Any
    ) -> list[Any]:
        """Returns the arrays of the graph's placeholders."""
        leaves = [params[name] for name in self.weights] + [model_state[name] for name in self.kept]
        leaves += [leaf for leaf in pytree.tree_leaves(batch) if hasattr(leaf, "shape")]
        leaves += [numbers[name] for name in COUNTERS]
        leaves += [leaf for number in self.scheduled for leaf in rates[number]]
        leaves += [opt_tensors[number][name][key_] for number, name, key_ in self.order]
        given = self.program.inputs[len(leaves) :]
        zeros = [jnp.zeros(tuple(one.meta["val"].shape), jax_dtype(one.meta["val"].dtype)) for one in given]
        return leaves + zeros

    def answer(self, question: Expression, *arguments: Any) -> Any:
        """Computes what this way asked; takes what `__call__` takes."""
        *given, key = arguments
        if question[0] != "truth":
            return evaluate(question, given[1])
        return self.program.part(self._truths[question[1]], self.inputs(*given), key)

    def __call__(
        self, batch: Any, numbers: Any, params: Any, model_state: Any, opt_tensors: Any, rates: Any, key: Any
    ) -> Any:
        """Runs it: returns `((parameters, model state, optimizers' tensors, steps), logged)`.

        Steps are those of all optimizers together, and of each scheduler.
        """
        leaves = self.inputs(batch, numbers, params, model_state, opt_tensors, rates)
        new, state, left, logged, _ = self.graph.nest(self.program(leaves, key))
        state = {**model_state, **{n: jnp.asarray(value, model_state[n].dtype) for n, value in state.items()}}
        only = {
            number: {name: {k: v for k, v in held.items() if hasattr(v, "shape")} for name, held in of.items()}
            for number, of in left.items()
        }
        steps = jax.tree.map(lambda count: jnp.asarray(count, jnp.int32), (self.steps, self.scheduled))
        return (new, state, only, steps), logged


def _hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name != "params" and not isinstance(value, torch.Tensor)}
        for group in optimizer.param_groups
    ]


def merged_states(captures: Sequence[ManualCapture]) -> dict[str, Any]:
    """Returns the states that optimizers have after any of these ways."""
    merged: dict[str, Any] = {}
    for one in captures:
        for number, of in one.states.items():
            for name, held in of.items():
                merged.setdefault(number, {}).setdefault(name, held)
    return merged


def rate_dtype(params: Tensors) -> Any:
    """The dtype of learning rates."""
    return jnp.result_type(
        jnp.float32, *(one.dtype for one in params.values() if jnp.issubdtype(one.dtype, jnp.floating))
    )


def whole_dtype() -> Any:
    """The dtype of torch's whole numbers."""
    return jax_dtype(torch.int64)


def _detached(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, tree)


def _shapes(states: Any) -> Any:
    return pytree.tree_map(lambda value: tuple(value.shape) if isinstance(value, torch.Tensor) else value, states)
