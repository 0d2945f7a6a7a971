"""Paths: every way through a step's branches, joined into one function that takes the right one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lightjax_torch.counters import Answers, Expression
from lightjax_torch.errors import WAY_OUT, CaptureError, ProgramError
from lightjax_torch.logged import batch_size
from lightjax_torch.metric_objects import Gathered
from lightjax_torch.step_view import at_level, weighted

# Every one is traced and compiled; so many questions that do not depend on each other are a program in disguise.
_MOST = 16


@dataclass(frozen=True)
class _Branch:
    capture: Any  # that asked
    question: Expression
    if_yes: Any
    if_no: Any


class Paths:
    """A part of a step with all its ways.

    Args:
      make: captures the way of these answers, and of "yes" to every further question.
      name: of the part.

    Attributes:
      captures: of all ways.
      created: tensors left on attributes, the same on every way.
      reads_carried: whether one of the ways reads what the step before left.
      with_gradient: the parameters that have a gradient, the same on every way.
      read: what was read of the trainer.
      used: the counters that are used.

    Raises:
      CaptureError: there are too many ways, or they differ in what a compiled step has to fix.
    """

    def __init__(self, make: Callable[[Answers], Any], name: str) -> None:
        self._make, self._name = make, name
        self.captures: list[Any] = []
        self._tree = self._grown([])
        if isinstance(self._tree, ProgramError):
            raise self._tree
        first, others = self.captures[0], self.captures[1:]
        self.created, self.with_gradient = first.created, first.with_gradient
        self.reads_carried = any(one.reads_carried for one in self.captures)
        self.read = {name: value for one in self.captures for name, value in one.read.items()}
        self.used = {name for one in self.captures for name in one.used}
        for one in others:
            if set(one.with_gradient) != set(first.with_gradient):
                differ = sorted(set(one.with_gradient) ^ set(first.with_gradient))
                raise CaptureError(
                    f"{name}: {', '.join(differ)} get a gradient in some steps and none in others, which torch's "
                    "optimizers skip then, momentum and weight decay included. A compiled step has one set of trained "
                    f"parameters; multiply the term of the loss by 0 in the place of leaving it out, or {WAY_OUT}."
                )
            if {n: t.shape for n, t in one.created.items()} != {n: t.shape for n, t in first.created.items()}:
                raise CaptureError(
                    f"{name} leaves tensors on attributes in some steps and not in others: "
                    f"{sorted(set(one.created) ^ set(first.created))}; make them before, in __init__, or {WAY_OUT}."
                )
        self._always = set.intersection(*(set(one.logged_as) for one in self.captures))
        self._logged_as = {n: how for one in self.captures for n, how in one.logged_as.items()}
        self._levels = {n: level for one in self.captures for n, level in one.levels.items()}
        self._dtypes = {
            n: jnp.result_type(*(one.logged_dtypes[n] for one in self.captures if n in one.logged_dtypes))
            for n in {n for one in self.captures for n in one.logged_dtypes}
        }
        self._check_objects()

    def _check_objects(self) -> None:
        names: dict[str, set[str]] = {}
        for one in self.captures:
            here: dict[str, set[str]] = {}
            for name, how in one.logged_as.items():
                if isinstance(how, Gathered):
                    here.setdefault(how.path, set()).add(name)
            for path, found in here.items():
                if names.setdefault(path, found) != found:
                    raise CaptureError(
                        f"{self._name} updates the metric object {path} in some steps that log it and in some that do "
                        f"not; log it in every step that updates it, or {WAY_OUT}."
                    )

    def _grown(self, answers: Sequence[tuple[Expression, bool]]) -> Any:
        node: Any
        try:
            node = self._make(answers)
            self.captures.append(node)
        except ProgramError as error:
            node = error
        asked = node.asked
        if len(self.captures) > _MOST:
            raise CaptureError(
                f"{self._name} branches on batch_idx, current_epoch, global_step or values of tensors in more than "
                f"{_MOST} ways, each of which is compiled; compute with them (torch.where, min, max), or {WAY_OUT}."
            )
        for place in reversed(range(len(answers), len(asked))):
            question, answer = asked[place]
            other = self._grown([*asked[:place], (question, not answer)])
            if isinstance(node, ProgramError) and not isinstance(other, ProgramError):
                node, other = other, node
            if isinstance(other, ProgramError):
                self._leave_out(other, node)
            else:
                node = _Branch(_a_capture(node), question, *((node, other) if answer else (other, node)))
        return node

    def _leave_out(self, error: ProgramError, other: Any) -> None:
        """Goes the other way where one raises an error: a check of values, which a compiled step cannot stop at."""
        if not isinstance(other, ProgramError):
            raised = error.__cause__
            text = next(iter(str(raised).splitlines()), "")[:200]
            line = str(error).partition(": ")[0]
            warnings.warn(
                f"{line}: {self._name} raises {type(raised).__name__} ({text}) for some values of tensors, which a "
                "compiled step cannot: this check is left out. Check the data before the step.",
                stacklevel=2,
            )

    def same_as(self, other: Paths) -> bool:
        """Says whether other ways compute the same."""
        pairs = zip(self.captures, other.captures, strict=False)
        return len(self.captures) == len(other.captures) and all(one.same_as(two) for one, two in pairs)

    def chosen(self, *arguments: Any) -> Any:
        """Returns the way that these arguments of a call, which have values, take."""
        node = self._tree
        while isinstance(node, _Branch):
            node = node.if_yes if bool(node.capture.answer(node.question, *arguments)) else node.if_no
        return node

    def __call__(self, batch: Any, numbers: Any, *arguments: Any) -> Any:
        """Runs the way that the numbers take; as the captures do, with metrics in the place of logged values."""
        examples = batch_size(batch)

        def run(node: Any) -> Any:
            if isinstance(node, _Branch):
                question = jnp.asarray(node.capture.answer(node.question, batch, numbers, *arguments), bool)
                return jax.lax.cond(question, lambda: run(node.if_yes), lambda: run(node.if_no))
            outputs, logged, *rest = node(batch, numbers, *arguments)
            metrics = {
                name: how.metric(logged[name])
                if name in self._always
                else how.metric_or_none(logged.get(name), self._dtypes.get(name), examples)
                for name, how in self._logged_as.items()
            }
            metrics = {name: at_level(one, self._levels.get(name), examples) for name, one in metrics.items()}
            return outputs, weighted(metrics, batch), *rest

        return run(self._tree)


def _a_capture(node: Any) -> Any:
    """Returns a way that asked what all ways from here on asked."""
    while isinstance(node, _Branch):
        node = node.if_yes
    return node
