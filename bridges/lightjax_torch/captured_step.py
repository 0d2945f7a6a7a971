"""A part of a module's work on a batch, captured: what it computes, logs and leaves behind, as a JAX function."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.utils import _pytree as pytree

from lightjax_torch.arrays import jax_dtype
from lightjax_torch.capture import capture, capture_with_gradients
from lightjax_torch.constants import deciding
from lightjax_torch.counters import Answers, Counters, Expression, evaluate
from lightjax_torch.errors import WAY_OUT, CaptureError, ProgramError
from lightjax_torch.function import meta
from lightjax_torch.gradients import with_torch_gradients
from lightjax_torch.metric_objects import check_joins
from lightjax_torch.module_state import OF_THE_STEP, ModuleState, made_submodules, python_values, unchanged
from lightjax_torch.parts import Part
from lightjax_torch.paths import Paths
from lightjax_torch.program import Program, origin
from lightjax_torch.step_view import StepView, dtypes_of
from lightjax_torch.trainer_values import TrainerValues

CARRIES = "carries:"
COUNTERS = ("batch_idx", "current_epoch", "global_step")


class CapturedStep:
    """A part, captured for one shape of batch.

    Attributes:
      with_gradient: the trained parameters that the loss depends on.
      carried: shapes of tensors that the part leaves on attributes for the next step, beside those that were there.
      read: what was read of the trainer.
      used: the counters that are used.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        tensors: ModuleState,
        part: Part,
        values: TrainerValues,
        params: Mapping[str, Any],
        model_state: Mapping[str, Any],
        batch: Any,
        *,
        has_gradients: bool = False,
    ) -> None:
        given = self._given = (module, tensors, part, values, params, model_state, batch, has_gradients)
        self.carried: dict[str, jax.ShapeDtypeStruct] = {}
        self.first = self.usual = Paths(lambda answers: Capture(*given, {}, answers), part.name)
        if self.first.created:
            usual = Paths(lambda answers: Capture(*given, self.first.created, answers), part.name)
            if usual.reads_carried:
                if part.stage != "train":
                    raise _state_in_evaluation(part.name, list(self.first.created))
                if not part.differentiated:
                    raise CaptureError(
                        f"{part.name} leaves tensors on attributes: {', '.join(self.first.created)}; make them before, "
                        f"in __init__, or {WAY_OUT}."
                    )
                if _shapes(usual.created) != _shapes(self.first.created):
                    raise CaptureError(
                        f"{type(module).__name__}.{part.name} leaves tensors on attributes that change their "
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
        self.read = self.first.read | self.usual.read
        self.used = self.first.used | self.usual.used

    def again_is_the_same(self) -> bool:
        """Says whether the module, as it is now, would be captured as it was."""
        return self.first.same_as(Paths(lambda answers: Capture(*self._given, {}, answers), self._given[2].name))

    def __call__(
        self, state: Any, batch: Any, gradients: Mapping[str, Any] | None = None, *, batch_idx: Any = None
    ) -> Any:
        """Runs it.

        Args:
          state: the state.
          batch: the batch.
          gradients: of the trained parameters, for a part that sees them.
          batch_idx: number of the batch; None for the one that the state counts.

        Returns:
          `(outputs, metrics, new model state, new parameters, new gradients)`.
        """
        part: Part = self._given[2]
        # The hook after a step runs with the number of the next one: its random numbers are others.
        name = part.name if part.stage == "train" and not part.differentiated else "torch"
        key = None if state.key is None else state.key_for(name)
        numbers = counted(state)
        if batch_idx is not None:
            numbers["batch_idx"] = jnp.asarray(batch_idx, jax_dtype(torch.int64))
        arguments = (batch, numbers, state.params, state.model_state, key, gradients)
        if not self.carried:
            return self.first(*arguments)
        missing = [name for name in self.carried if name not in state.model_state]
        wrong = [n for n, s in self.carried.items() if n not in missing and state.model_state[n].shape != s.shape]
        if missing or wrong:
            raise CaptureError(
                f"A step leaves {', '.join(missing or wrong)} for the next one, in a shape that follows the batch, and "
                "this batch has another size than the first one; drop the last batch, DataLoader(..., drop_last=True), "
                f"or {WAY_OUT}."
            )
        return jax.lax.cond(state.model_state[CARRIES], self.usual, self.first, *arguments)


def abstract(leaf: Any) -> Any:
    """Returns the shape of an array, anything else as it is: a captured step outlives the trace it was made in."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf


def counted(state: Any) -> dict[str, Any]:
    """Returns the counters of a state."""
    held = state.model_state or {}
    whole = jax_dtype(torch.int64)
    found = {name: held.get(f"counter:{name}", 0) for name in COUNTERS} | {"global_step": state.step}
    return {name: jnp.asarray(value, whole) for name, value in found.items()}


class Capture:
    """One graph of a part: one way through its branches.

    Attributes:
      asked: what Python asked about counters, and the answers.
      used: the counters that are used.
      read: what was read of the trainer.
      created: tensors it left on attributes that had none before, without values.
      reads_carried: whether it reads any of the carried ones it was given.
      with_gradient: the trained parameters that have a gradient.
      logged_as: how what it logs is gathered; `logged_dtypes` are the values' dtypes.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        tensors: ModuleState,
        part: Part,
        values: TrainerValues,
        params: Mapping[str, Any],
        model_state: Mapping[str, Any],
        batch: Any,
        has_gradients: bool,
        carried: Mapping[str, torch.Tensor],
        answers: Answers,
    ) -> None:
        self.module, self.tensors, self.part, self.values = module, tensors, part, values
        self.names, self.carried = (list(params), list(model_state)), carried
        known = tensors.parameters | tensors.buffers | tensors.attributes

        def spec(name: str, leaf: Any) -> torch.Tensor:
            same = jnp.dtype(leaf.dtype) == jax_dtype(known[name].dtype)
            return torch.empty(leaf.shape, dtype=known[name].dtype, device="meta") if same else meta(leaf)

        weights = {name: spec(name, leaf) for name, leaf in params.items()}
        others = (
            {name: spec(name, leaf) for name, leaf in model_state.items()},
            dict(carried),
            jax.tree.map(meta, batch),
            {name: torch.empty((), dtype=torch.int64, device="meta") for name in COUNTERS},
            {name: torch.empty_like(weight) for name, weight in weights.items()} if has_gradients else {},
        )
        self._structures = tensors.structures
        seen = self._captured(weights, others, answers, {})
        if seen["python"]:
            # What was set to a value that stays is a cache; what moves on would stand still in a compiled step.
            code = self.graph.module.code
            again = self._captured(weights, others, answers, seen["attributes"])
            if again["python"] or self.graph.module.code != code:
                inside = any(leaf is OF_THE_STEP for leaves in seen["python"].values() for leaf in leaves)
                raise python_changes(module, part.name, [*seen["python"]], inside=inside)
        counters: Counters = seen["counters"]
        self.asked, self.used, self.read = counters.asked, counters.used, seen["view"].read
        self.logged_as: dict[str, Any] = seen["view"].logged_as
        self.levels: dict[str, str] = seen["view"].levels
        outputs = self.graph.nest(self.program.outputs)
        if part.differentiated:
            outputs, gradients, _ = outputs
            self.with_gradient = [name for name, g in zip(params, gradients, strict=True) if g is not None]
        else:
            self.with_gradient = []
        logged, state, trained, created, _, self._truths = outputs[1]
        self.logged_dtypes = dtypes_of(logged)
        check_joins(logged, self.logged_as, self.program.nodes)
        self._check_state(state, trained)
        self.created = self._not_constant(created)
        at = len(params) + len(model_state)
        self.reads_carried = any(node.users for node in self.program.inputs[at : at + len(carried)])

    def _captured(self, weights: Any, others: Any, answers: Answers, attributes: Any) -> dict[str, Any]:
        """Captures the graph; `attributes` are values that a run before left in Python."""
        module, tensors, part, seen = self.module, self.tensors, self.part, {}

        def call(trained: Any, others: Any) -> Any:
            kept, carried, batch, numbers, gradients = others
            if not part.differentiated:
                trained = {name: tensor.detach().requires_grad_() for name, tensor in trained.items()}
            for name, gradient in gradients.items():
                trained[name].grad = gradient
            counters = seen["counters"] = Counters(numbers, answers)
            view = seen["view"] = StepView(counters, self.values, training=part.stage == "train")
            with unchanged(module), tensors.holding(trained | kept | carried, self._structures):
                if part.stage == "train":
                    tensors.restore_modes()
                else:
                    module.eval()
                for (path, name), value in attributes.items():
                    module.get_submodule(path).__dict__[name] = value
                before, held = python_values(module), tensors.read_attributes()
                submodules = dict(module.named_modules())
                mode = torch.enable_grad() if part.stage == "train" else torch.no_grad()
                with tensors.metrics.begun(), view.attached(module), mode, deciding(counters.decide_tensor):
                    outputs = part.run(module, batch, counters.number("batch_idx"))
                gathers = part.differentiated or part.stage != "train"
                stage = f"{part.stage}/{part.loader}"
                view.take_objects(tensors.metrics, part.name, stage, gathers=gathers)
                made = made_submodules(module, part.name, submodules)
                after = python_values(module)
                seen["python"] = {
                    place: leaves
                    for place, leaves in after.items()
                    if before.get(place) != leaves and place[0] not in made
                }
                seen["attributes"] = {
                    (path, name): module.get_submodule(path).__dict__[name] for path, name in seen["python"]
                }
                read = tensors.read([*trained, *(name for name in kept if ":" not in name)])
                left = tensors.read_attributes()
                self._structures = tensors.structures
            if gone := [name for name in held if name not in left]:
                raise CaptureError(f"{part.name} takes tensors off attributes: {', '.join(gone)}; {WAY_OUT}.")
            if replaced := [name for name in trained if read[name] is not trained[name]]:
                raise CaptureError(f"{part.name} replaces parameters: {', '.join(replaced)}; {WAY_OUT}.")
            state = {name: left.get(name, kept[name]) if ":" in name else read[name] for name in kept}
            new = {n for n, tensor in left.items() if n in carried or tensor is not held.get(n)}
            created = {n: tensor for n, tensor in left.items() if n in new and n not in kept}
            grads = {name: trained[name].grad for name in gradients}
            return outputs, _detached([view.logged, state, dict(trained), created, grads, counters.truths])

        capturing = capture_with_gradients if part.differentiated else capture
        try:
            self.graph = capturing(call, weights, others)
        except ProgramError as error:
            error.asked = tuple(seen["counters"].asked)
            raise
        if part.differentiated:
            self.program, self.run = with_torch_gradients(self.graph)
        else:
            program = self.program = Program(self.graph)
            self.run = lambda differentiated, others, key: program([*differentiated, *others], key)
        return seen

    def _check_state(self, state: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
        """Looks at which tensors the part changes."""
        inputs = self.program.inputs
        places = zip(trained.items(), inputs[: len(trained)], strict=True)
        changed = [name for (name, node), place in places if origin(node) is not place]
        if changed and not self.part.writes:
            raise CaptureError(
                f"{type(self.module).__name__}.{self.part.name} writes into trained parameters in place: "
                f"{', '.join(changed)}. Before the backward pass they are the optimizer's to change: write in "
                f"on_train_batch_end, or {WAY_OUT}."
            )
        places = list(zip(state.items(), inputs[len(trained) : len(trained) + len(state)], strict=True))
        for (name, node), place in places:
            was, is_now = (list(one.meta["val"].shape) for one in (place, node))
            if was != is_now:
                raise CaptureError(
                    f"{type(self.module).__name__}.{self.part.name} changes the shape of {name} from {was} to "
                    f"{is_now}, and a compiled step has a state of fixed shape. What only takes its shape from the "
                    f"first batch has it after one call before porting, torch.no_grad() around it; or {WAY_OUT}."
                )
        written = [name for (name, node), place in places if origin(node) is not place]
        if written and self.part.stage != "train":
            raise _state_in_evaluation(self.part.name, written)

    def _not_constant(self, created: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Leaves out what depends on no input: a cache, which every step computes the same."""
        depends: set[Any] = set(self.program.inputs)
        for node in self.program.nodes:
            if any(one in depends for one in node.all_input_nodes):
                depends.add(node)
        return {
            name: torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype, device="meta")
            for name, node in created.items()
            if node in depends
        }

    def same_as(self, other: Capture) -> bool:
        """Says whether another graph computes the same."""
        mine, theirs = self.graph.module, other.graph.module
        constants = dict(mine.named_buffers()), dict(theirs.named_buffers())
        return (
            mine.code == theirs.code
            and constants[0].keys() == constants[1].keys()
            and all(torch.equal(value, constants[1][name]) for name, value in constants[0].items())
        )

    def inputs(
        self, params: Any, model_state: Any, batch: Any, numbers: Any, gradients: Any = None
    ) -> tuple[list[Any], list[Any]]:
        """Returns the arrays of the graph's placeholders: those that are differentiated, and the others."""
        names, kept = self.names
        others = [model_state[name] for name in (*kept, *self.carried)]
        others += [leaf for leaf in pytree.tree_leaves(batch) if hasattr(leaf, "shape")]
        others += [numbers[name] for name in COUNTERS]
        others += [] if gradients is None else [gradients[name] for name in names]
        return [params[name] for name in names], others

    def answer(self, question: Expression, batch: Any, numbers: Any, *arguments: Any) -> Any:
        """Computes what this way asked: the part of the graph that it depends on; takes what `__call__` takes."""
        if question[0] != "truth":
            return evaluate(question, numbers)
        params, model_state, key, gradients = arguments
        inputs = itertools.chain(*self.inputs(params, model_state, batch, numbers, gradients))
        return self.program.part(self._truths[question[1]], inputs, key)

    def __call__(self, batch: Any, numbers: Any, params: Any, model_state: Any, key: Any, gradients: Any) -> Any:
        """Runs the graph.

        Returns:
          As for a `CapturedStep`, with the logged values in the place of metrics.
        """
        computed = self.run(*self.inputs(params, model_state, batch, numbers, gradients), key)
        missing = [None] * (sum(self.graph.is_tensor) - len(computed))
        found = self.graph.nest([*computed, *missing])
        outputs, (logged, state, trained, created, grads, _) = found[0] if self.part.differentiated else found
        new_state = {**model_state, **{n: jnp.asarray(value, model_state[n].dtype) for n, value in state.items()}}
        if CARRIES in model_state and self.part.differentiated:
            new_state |= {name: created[name] for name in self.created} | {CARRIES: jnp.ones((), bool)}
        return outputs, logged, new_state, {**params, **trained} if self.part.writes else params, grads


def python_changes(module: Any, part: str, changed: Sequence[tuple[str, str]], *, inside: bool = False) -> CaptureError:
    """Returns the error of a part that changes Python attributes, by path and name."""
    names = [f"{path}.{name}".removeprefix(".") for path, name in changed]
    what = "with a value that only exists while the step runs" if inside else "and would go on changing"
    return CaptureError(
        f"{type(module).__name__}.{part} changes {', '.join(sorted(names))} in Python, {what}: that would happen "
        "once, while the step is captured, and never again. Keep numbers in a buffer (self.register_buffer), log what "
        f"is to be gathered, or {WAY_OUT}."
    )


def _detached(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, tree)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _state_in_evaluation(name: str, changed: list[str]) -> CaptureError:
    return CaptureError(
        f"{name} changes tensors that later batches see: {', '.join(changed)}. A ported evaluation is a pure "
        f"function of the state and one batch, which leaves no trace; log what is to be gathered, or {WAY_OUT}."
    )
