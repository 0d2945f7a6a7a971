"""A step of a LightningModule, captured: what it computes, logs and leaves behind, as a JAX function."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import torch
from torch.utils import _pytree as pytree

import lightjax as lj
from lightjax_torch.arrays import jax_dtype
from lightjax_torch.capture import capture, capture_with_gradients
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.function import meta
from lightjax_torch.gradients import with_torch_gradients
from lightjax_torch.module_state import ModuleState, python_values, unchanged
from lightjax_torch.program import Program, origin
from lightjax_torch.step_view import LoggedAs, StepView, Unknown

Stage = Literal["train", "val", "test", "predict"]

_METHODS = {"train": "training_step", "val": "validation_step", "test": "test_step", "predict": "predict_step"}

CARRIES = "carries:"


class CapturedStep:
    """A step of a module, captured for one shape of batch.

    Attributes:
      with_gradient: the trained parameters that the loss depends on.
      carried: shapes of tensors that the step leaves on attributes for the next one, beside those that were there.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        tensors: ModuleState,
        stage: Stage,
        params: Mapping[str, Any],
        model_state: Mapping[str, Any],
        batch: Any,
    ) -> None:
        self.module, self.tensors = module, tensors
        self.stage: Stage = stage
        self.params, self.model_state, self.batch = params, model_state, batch
        self.carried: dict[str, jax.ShapeDtypeStruct] = {}
        self.first = self._capture({})
        self.usual = self.first
        if self.first.created:
            usual = self._capture(self.first.created)
            if usual.reads_carried:
                if stage != "train":
                    raise _state_in_evaluation(stage, list(self.first.created))
                if _shapes(usual.created) != _shapes(self.first.created):
                    raise CaptureError(
                        f"{type(module).__name__}.{_METHODS[stage]} leaves tensors on attributes that change their "
                        f"shape or number from step to step: {_shapes(self.first.created)} became "
                        f"{_shapes(usual.created)}. A compiled step has a state of fixed shape; log values instead of "
                        f"collecting them, or {WAY_OUT}."
                    )
                self.usual = usual
                self.carried = {
                    name: jax.ShapeDtypeStruct(tuple(tensor.shape), jax_dtype(tensor.dtype))
                    for name, tensor in self.first.created.items()
                }
        self.with_gradient = self.usual.with_gradient

    def _capture(self, carried: Mapping[str, torch.Tensor]) -> Capture:
        return Capture(self.module, self.tensors, self.stage, self.params, self.model_state, self.batch, carried)

    def __call__(self, state: lj.TrainState, batch: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Runs it: returns the loss or the outputs, the metrics, and the new model state."""
        key = None if state.key is None else state.key_for("torch")
        if not self.carried:
            return self.first(state.params, state.model_state, batch, state.step, key)
        arguments = (state.params, state.model_state, batch, state.step, key)
        return jax.lax.cond(
            state.model_state[CARRIES], lambda *given: self.usual(*given), lambda *given: self.first(*given), *arguments
        )


class Capture:
    """One graph of a step.

    Attributes:
      created: tensors the step left on attributes that had none before, without values.
      reads_carried: whether it reads any of the carried ones it was given.
      with_gradient: the trained parameters that have a gradient.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        tensors: ModuleState,
        stage: Stage,
        params: Mapping[str, Any],
        model_state: Mapping[str, Any],
        batch: Any,
        carried: Mapping[str, torch.Tensor],
    ) -> None:
        self.stage: Stage = stage
        self.carried = carried
        self.names = list(params), list(model_state)
        known = tensors.parameters | tensors.buffers | tensors.attributes
        seen: dict[str, Any] = {}

        def call(trained: Any, others: Any) -> Any:
            kept, carried_now, given, step = others
            view = StepView(step, training=stage == "train")
            with unchanged(module), tensors.holding(trained | kept | carried_now, seen.get("structures", {})):
                if stage == "train":
                    tensors.restore_modes()
                else:
                    module.eval()
                before = python_values(module)
                with view.attached(module), torch.set_grad_enabled(stage == "train"):
                    output = call_step(module, stage, given)
                changed = {name for name, value in python_values(module).items() if before.get(name, value) != value}
                if changed:
                    raise CaptureError(
                        f"{type(module).__name__}.{_METHODS[stage]} changes {', '.join(sorted(changed))}, a Python "
                        "value: that would happen once, while the step is captured, and never again. Keep it in a "
                        f"buffer (self.register_buffer), or {WAY_OUT}."
                    )
                after = tensors.read([*trained, *(name for name in kept if ":" not in name)])
                attributes = tensors.read_attributes()
                seen["structures"] = tensors.structures
            replaced = [name for name in trained if after[name] is not trained[name]]
            if replaced:
                raise CaptureError(f"{_METHODS[stage]} replaces parameters: {', '.join(replaced)}; {WAY_OUT}.")
            outputs = _loss_of(output, module) if stage == "train" else output
            state = {name: attributes.get(name, kept[name]) if ":" in name else after[name] for name in kept}
            created = {name: tensor for name, tensor in attributes.items() if name not in kept}
            seen["logged_as"] = view.logged_as
            return outputs, _detached([view.logged, state, dict(trained), created])

        def spec(name: str, leaf: Any) -> torch.Tensor:
            same = jnp.dtype(leaf.dtype) == jax_dtype(known[name].dtype)
            return torch.empty(leaf.shape, dtype=known[name].dtype, device="meta") if same else meta(leaf)

        tensors_in = {name: spec(name, leaf) for name, leaf in params.items()}
        others = (
            {name: spec(name, leaf) for name, leaf in model_state.items()},
            dict(carried),
            jax.tree.map(meta, batch),
            torch.empty((), dtype=torch.int64, device="meta"),
        )
        seen["structures"] = tensors.structures
        if stage == "train":
            self.graph = capture_with_gradients(call, tensors_in, others)
            self.program, self.run = with_torch_gradients(self.graph)
            (outputs, rest), gradients, _ = self.graph.nest(self.program.outputs)
            self.with_gradient = [name for name, g in zip(params, gradients, strict=True) if g is not None]
        else:
            self.graph = capture(call, tensors_in, others)
            self.program, self.with_gradient = Program(self.graph), []
            outputs, rest = self.graph.nest(self.program.outputs)
            self.run = lambda differentiated, others, key: self.program([*differentiated, *others], key)
        self.logged_as: dict[str, LoggedAs] = seen["logged_as"]
        self._check_state(outputs, rest, module)
        inputs = self.program.inputs
        at = len(params) + len(model_state)
        self.reads_carried = any(node.users for node in inputs[at : at + len(carried)])

    def _check_state(self, outputs: Any, rest: Any, module: torch.nn.Module) -> None:
        """Looks at which tensors the step changes."""
        _, state, trained, created = rest
        trained_inputs = self.program.inputs[: len(trained)]
        changed = [
            name
            for (name, node), place in zip(trained.items(), trained_inputs, strict=True)
            if origin(node) is not place
        ]
        if changed:
            raise CaptureError(
                f"{type(module).__name__}.{_METHODS[self.stage]} writes into trained parameters in place: "
                f"{', '.join(changed)}. Parameters are the optimizer's to change; {WAY_OUT}."
            )
        kept_inputs = self.program.inputs[len(trained) : len(trained) + len(state)]
        written = [
            name for (name, node), place in zip(state.items(), kept_inputs, strict=True) if origin(node) is not place
        ]
        if written and self.stage != "train":
            raise _state_in_evaluation(self.stage, written)
        depends: set[Any] = set(self.program.inputs)
        for node in self.program.nodes:
            if any(one in depends for one in node.all_input_nodes):
                depends.add(node)
        # What depends on no input is a cache: every step computes the same.
        self.created = {
            name: torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype, device="meta")
            for name, node in created.items()
            if node in depends
        }

    def inputs(self, params: Any, model_state: Any, batch: Any, step: Any) -> tuple[list[Any], list[Any]]:
        """Returns the arrays of the graph's placeholders: those that are differentiated, and the others."""
        names, kept = self.names
        others = [model_state[name] for name in kept]
        others += [model_state[name] for name in self.carried]
        others += [leaf for leaf in pytree.tree_leaves(batch) if hasattr(leaf, "shape")]
        return [params[name] for name in names], [*others, step]

    def __call__(self, params: Any, model_state: Any, batch: Any, step: Any, key: Any) -> Any:
        """Runs the graph."""
        computed = self.run(*self.inputs(params, model_state, batch, step), key)
        missing = [None] * (sum(self.graph.is_tensor) - len(computed))
        found = self.graph.nest([*computed, *missing])
        outputs, (logged, state, _, created) = found[0] if self.stage == "train" else found
        metrics = {name: self.logged_as[name].metric(value) for name, value in logged.items()}
        new_state = {**model_state, **state}
        if CARRIES in model_state:
            new_state |= {name: created[name] for name in self.created} | {CARRIES: jnp.ones((), bool)}
        return outputs, metrics, new_state


def call_step(module: Any, stage: Stage, batch: Any) -> Any:
    """Calls the method of a stage as Lightning does."""
    method = getattr(module, _METHODS[stage], None)
    if method is None:
        return module(batch)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = [one for one in inspect.signature(method).parameters.values() if one.kind in kinds]
    needed = [one for one in wanted if one.default is inspect.Parameter.empty]
    more = [Unknown("batch_idx"), 0][: max(len(needed), min(len(wanted), 2)) - 1]
    return method(batch, *more)


def _loss_of(output: Any, module: torch.nn.Module) -> torch.Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"{loss!r}"
        raise CaptureError(
            f"{type(module).__name__}.training_step returned {kind} as its loss; it returns a scalar tensor, or a dict "
            "with one at 'loss'. A step that returns None now and then, to skip a batch, cannot be compiled: multiply "
            f"the loss by 0, or {WAY_OUT}."
        )
    return loss.reshape(())


def _detached(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, tree)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _state_in_evaluation(stage: Stage, names: list[str]) -> CaptureError:
    return CaptureError(
        f"{_METHODS[stage]} changes tensors that later batches see: {', '.join(names)}. A ported evaluation is a pure "
        f"function of the state and one batch, which leaves no trace; log what is to be gathered, or {WAY_OUT}."
    )
