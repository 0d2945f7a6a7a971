"""Manual optimization: a step that runs its own backward passes and optimizers, captured as one program."""

from __future__ import annotations

import collections
import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import torch
from torch.utils import _pytree as pytree

import lightjax as lj
from lightjax.errors import ConfigurationError
from lightjax_torch.arrays import jax_dtype, to_jax
from lightjax_torch.capture import capture
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.function import meta
from lightjax_torch.module_state import ModuleState, unchanged
from lightjax_torch.program import Program
from lightjax_torch.schedule import optimizers_and_schedulers
from lightjax_torch.source_lines import current_line
from lightjax_torch.step_view import StepView, Unknown

Tensors = Mapping[str, Any]


class ManualState(NamedTuple):
    """What the optimizers of a step that optimizes manually keep.

    Attributes:
      started: bool scalar, whether a step was taken.
      tensors: by the number of the optimizer, the parameter, and the optimizer's own names.
    """

    started: jax.Array
    tensors: dict[str, dict[str, dict[str, jax.Array]]]


class ManualOptimization:
    """The train step of a module with `automatic_optimization = False`.

    Args:
      module: the module.
      tensors: its tensors by name.
      call: runs `training_step` with a batch.

    Raises:
      ConfigurationError: `configure_optimizers` returns no optimizers.
    """

    def __init__(self, module: Any, tensors: ModuleState, call: Callable[[Any], Any]) -> None:
        self.module, self.tensors, self.call = module, tensors, call
        # Schedulers of such a module step when it says so itself, through self.lr_schedulers(), which is refused.
        self.optimizers, _ = optimizers_and_schedulers(module.configure_optimizers())
        if not self.optimizers or not all(isinstance(one, torch.optim.Optimizer) for one in self.optimizers):
            raise ConfigurationError(
                f"{type(module).__name__} optimizes manually, and configure_optimizers returned no optimizers; return "
                "one or a list of them."
            )
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
        self._steps: dict[Any, tuple[Any, Any, Any]] = {}

    def init(self, params: Tensors, model_state: Tensors, batch: Any, key: jax.Array) -> lj.TrainState:
        """Returns the state of step 0."""
        _, _, shapes = self._captured(params, model_state, batch)
        known = self._kept()
        state = lj.TrainState.create(
            params=params, optimizer=optax.set_to_zero(), key=key, model_state=dict(model_state)
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
        return state.replace(opt_state=ManualState(jnp.zeros((), bool), tensors))

    def train_step(self, state: lj.TrainState, batch: Any) -> tuple[lj.TrainState, dict[str, Any]]:
        """Takes one step."""
        policy = state.policy
        if policy.precision.compute or policy.gradient_clip_val or policy.microbatches > 1 or policy.microbatch_size:
            raise ConfigurationError(
                f"{type(self.module).__name__} optimizes manually: precision, clipping and accumulation are its own to "
                "do; leave precision, gradient_clip_val and microbatches away."
            )
        first, usual, _ = self._captured(state.params, state.model_state, batch)
        arguments = (state.params, state.model_state, batch, state.opt_state.tensors, state.key_for("torch"))
        if first is None:
            params, model_state, tensors, metrics = usual(*arguments)
        else:
            found = jax.lax.cond(state.opt_state.started, usual, first, *arguments)
            params, model_state, tensors, metrics = found
        opt_state = ManualState(jnp.ones((), bool), tensors)
        new = state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state)
        return new, metrics

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
        if signature not in self._steps:
            first, left = self._capture(params, model_state, batch, self._kept(), {})
            usual, again = self._capture(params, model_state, batch, left[0], {})
            if _shapes(again[0]) != _shapes(left[0]):
                raise CaptureError(f"The optimizers' states change their shapes from step to step; {WAY_OUT}.")
            if left[1]:
                # Gradients are left behind: fine if the next step clears them before it uses them.
                self._capture(params, model_state, batch, left[0], left[1])
            same = all(isinstance(one, torch.optim.SGD) and not _momentum(one) for one in self.optimizers)
            self._steps[signature] = None if same else first, usual, left[0]
        return self._steps[signature]

    def _capture(
        self, params: Tensors, model_state: Tensors, batch: Any, states: Any, gradients: Tensors
    ) -> tuple[Callable[..., Any], Any]:
        """Captures the step with optimizers that hold `states`; `gradients` are those left by the step before."""
        tensors, seen = self.tensors, {}
        known = tensors.parameters | tensors.buffers | tensors.attributes

        def step(given: Any, kept: Any, batch: Any, states: Any, gradients: Any) -> Any:
            trained = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
            for name, gradient in gradients.items():
                trained[name].grad = gradient
            optimizers = [
                self._over(number, trained, states.get(str(number), {})) for number in range(len(self.optimizers))
            ]
            view = StepView(torch.zeros((), dtype=torch.int64), training=True)
            view.__dict__["global_step"] = Unknown("global_step")
            with unchanged(self.module), tensors.holding(trained | kept):
                tensors.restore_modes()
                with view.attached(self.module), _manual(self.module, optimizers, view):
                    self.call(batch)
                after = tensors.read([name for name in kept if ":" not in name])
                attributes = tensors.read_attributes()
            if created := [name for name in attributes if name not in kept]:
                raise CaptureError(f"training_step leaves tensors on attributes: {', '.join(created)}; {WAY_OUT}.")
            left = {
                str(number): {
                    name: {key: value for key, value in optimizer.state[trained[name]].items()}
                    for group in self.groups[number]
                    for name in group
                    if optimizer.state.get(trained[name])
                }
                for number, optimizer in enumerate(optimizers)
            }
            seen["left"] = pytree.tree_map_only(
                torch.Tensor, lambda value: torch.empty(value.shape, dtype=value.dtype, device="meta"), left
            )
            seen["gradients"] = {
                name: torch.empty(p.shape, dtype=p.dtype, device="meta")
                for name, p in trained.items()
                if p.grad is not None
            }
            seen["logged_as"] = view.logged_as
            state = {name: attributes[name] if ":" in name else after[name] for name in kept}
            return _detached([trained, state, left, view.logged])

        def spec(name: str, leaf: Any) -> torch.Tensor:
            same = jnp.dtype(leaf.dtype) == jax_dtype(known[name].dtype)
            return torch.empty(leaf.shape, dtype=known[name].dtype, device="meta") if same else meta(leaf)

        weights = {name: spec(name, leaf) for name, leaf in params.items()}
        kept = {name: spec(name, leaf) for name, leaf in model_state.items()}
        states = {
            number: {name: {key: v for key, v in held.items()} for name, held in of.items()}
            for number, of in states.items()
        }
        graph = capture(step, weights, kept, jax.tree.map(meta, batch), states, dict(gradients))
        program = Program(graph)
        if gradients and any(node.users for node in program.inputs[len(program.inputs) - len(gradients) :]):
            raise CaptureError(
                f"{type(self.module).__name__}.training_step adds to gradients that the step before left: call "
                f"optimizer.zero_grad() in every step, before its backward pass or after its step, or {WAY_OUT}."
            )
        order = [
            (number, name, key)
            for number, of in states.items()
            for name, held in of.items()
            for key, value in held.items()
            if isinstance(value, torch.Tensor)
        ]

        def run(params: Any, model_state: Any, batch: Any, opt_tensors: Any, key: Any) -> Any:
            leaves = [params[name] for name in weights] + [model_state[name] for name in kept]
            leaves += [leaf for leaf in pytree.tree_leaves(batch) if hasattr(leaf, "shape")]
            leaves += [opt_tensors[number][name][key_] for number, name, key_ in order]
            leaves += [jnp.zeros(tuple(g.shape), jax_dtype(g.dtype)) for g in gradients.values()]
            new, state, left, logged = graph.nest(program(leaves, key))
            metrics = {name: seen["logged_as"][name].metric(value) for name, value in logged.items()}
            only = {
                number: {name: {k: v for k, v in held.items() if hasattr(v, "shape")} for name, held in of.items()}
                for number, of in left.items()
            }
            return new, {**model_state, **state}, only, metrics

        return run, (seen["left"], seen["gradients"])

    def _over(self, number: int, trained: Tensors, states: Tensors) -> torch.optim.Optimizer:
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


@contextlib.contextmanager
def _manual(module: Any, optimizers: Sequence[torch.optim.Optimizer], view: StepView) -> Iterator[None]:
    """Gives a module what it optimizes with; takes it away again."""
    everything = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]

    def toggle(optimizer: torch.optim.Optimizer) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for p in everything:
            p.requires_grad_(id(p) in own)

    def untoggle(_: torch.optim.Optimizer) -> None:
        for p in everything:
            p.requires_grad_(True)

    def clip(optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def no_schedulers() -> None:
        raise CaptureError(
            f"{current_line()}: self.lr_schedulers() was called in a step that optimizes manually; schedulers step in "
            f"Python, not in the compiled step. Write a task of your own with an optax schedule, or {WAY_OUT}."
        )

    view.__dict__["optimizers"] = list(optimizers)
    own = {
        "optimizers": lambda use_pl_optimizer=True: optimizers[0] if len(optimizers) == 1 else list(optimizers),
        "lr_schedulers": no_schedulers,
        "manual_backward": lambda loss, *args, **kwargs: loss.backward(*args, **kwargs),
        "toggle_optimizer": toggle,
        "untoggle_optimizer": untoggle,
        "clip_gradients": clip,
    }
    module.__dict__.update(own)
    yield
    for name in own:
        module.__dict__.pop(name, None)


def _momentum(optimizer: torch.optim.Optimizer) -> bool:
    return any(group["momentum"] for group in optimizer.param_groups)


def _detached(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, tree)


def _shapes(states: Any) -> Any:
    return pytree.tree_map(lambda value: tuple(value.shape) if isinstance(value, torch.Tensor) else value, states)
