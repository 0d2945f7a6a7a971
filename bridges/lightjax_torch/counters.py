"""Counters: the numbers of batch, epoch and step, which a compiled step gets as inputs and Python may branch on.

A step is captured once for every way through its branches. A `Number` is an expression over counters; torch operations
get it as a tensor, and a comparison that Python asks about (`if batch_idx % 5 == 0`) is decided, both ways one after
the other. The compiled step evaluates the same expression and takes the way that belongs to it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax.numpy as jnp
import torch
from torch.utils import _pytree as pytree

from lightjax_torch.arrays import jax_dtype
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.source_lines import current_line

Expression = Any
Answers = Sequence[tuple[Expression, bool]]

_UNARY = {
    "neg": operator.neg, "abs": operator.abs, "not": None, "floor": None, "ceil": None,
    "cos": None, "sin": None, "exp": None, "log": None, "sqrt": None, "tanh": None,
}  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    "floordiv": operator.floordiv, "mod": operator.mod, "pow": operator.pow,
    "eq": operator.eq, "lt": operator.lt, "le": operator.le, "and": operator.and_, "or": operator.or_,
}  # fmt: skip
# More are a loop.
_MOST_TRUTHS = 64
_TRUTHS = ("eq", "lt", "le", "and", "or", "not")


def evaluate(expression: Expression, values: Mapping[str, Any]) -> Any:
    """Computes an expression, in torch or in JAX; Python's double precision as far as there is one.

    Args:
      expression: over counters.
      values: 0-dimensional whole tensors or arrays by the counter's name.
    """
    if not isinstance(expression, tuple):
        return expression
    name, *operands = expression
    if name == "counter":
        return values[operands[0]]
    found = [evaluate(one, values) for one in operands]
    if name == "not":
        return ~found[0]
    in_torch = any(isinstance(one, torch.Tensor) for one in found)
    if name in _TRUTHS[-3:-1] or (name not in ("truediv", *_UNARY) and not any(isinstance(x, float) for x in found)):
        return _BINARY[name](*found)
    # Torch would take its default dtype where Python has a double.
    if name not in ("neg", "abs"):
        found = [_double(one) for one in found]
    if name in _BINARY:
        return _BINARY[name](*found)
    if name in ("floor", "ceil"):
        rounded = getattr(torch if in_torch else jnp, name)(found[0])
        return rounded.to(torch.int64) if in_torch else rounded.astype(jax_dtype(torch.int64))
    return (_UNARY[name] or getattr(torch if in_torch else jnp, name))(found[0])


def _double(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(torch.float64)
    return value.astype(jax_dtype(torch.float64)) if hasattr(value, "astype") else value


class Counters:
    """The counters while one way through a step is captured.

    Args:
      tensors: 0-dimensional whole tensors by name.
      answers: what is decided already; further questions are answered with yes.

    Attributes:
      asked: every question in its order, with the answer that it got.
      truths: the tensors that Python asked about, as they were then; `("truth", place)` is the question of one.
      used: names of the counters that the step looked at.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], answers: Answers = ()) -> None:
        self.tensors = tensors
        self.asked: list[tuple[Expression, bool]] = []
        self.truths: list[torch.Tensor] = []
        self.used: set[str] = set()
        self._answers = dict(answers)

    def number(self, name: str) -> Number:
        """Returns a counter."""
        return Number(("counter", name), self)

    def decide(self, expression: Expression) -> bool:
        """Answers a question of Python's."""
        self.use(expression)
        # `a != b` and `not a == b` are one question.
        if expression[0] == "not":
            return not self.decide(expression[1])
        known = dict(self.asked)
        if expression not in known:
            self.asked.append((expression, self._answers.get(expression, True)))
        return dict(self.asked)[expression]

    def decide_tensor(self, tensor: torch.Tensor) -> bool:
        """Answers a question about a tensor that is true or false."""
        if len(self.truths) >= _MOST_TRUTHS:
            raise CaptureError(
                f"{current_line()}: Python asks for values of tensors more than {_MOST_TRUTHS} times: a loop until "
                "something is true. The step is captured once, for every batch, so there are no values yet. Loop a "
                f"fixed number of times with torch.where, or {WAY_OUT}."
            )
        question = ("truth", len(self.truths))
        self.truths.append(tensor.detach().clone())
        self.asked.append((question, self._answers.get(question, True)))
        return self.asked[-1][1]

    def use(self, expression: Expression) -> None:
        """Notes which counters are looked at."""
        if isinstance(expression, tuple):
            if expression[0] == "counter":
                self.used.add(expression[1])
            for one in expression[1:]:
                self.use(one)


class Number:
    """A number that the compiled step computes from counters."""

    def __init__(self, expression: Expression, counters: Counters) -> None:
        self._expression = expression
        self._counters = counters

    def tensor(self, like: torch.dtype | None = None) -> torch.Tensor:
        """Returns it as a 0-dimensional tensor, with the dtype that a Python number would take beside `like`."""
        self._counters.use(self._expression)
        value = evaluate(self._expression, self._counters.tensors)
        if value.is_floating_point():
            return value.to(like if like is not None and like.is_floating_point else torch.get_default_dtype())
        return value if like is None or like is torch.bool or value.dtype is torch.bool else value.to(like)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Becomes a tensor where torch gets it."""
        given = (args, kwargs or {})
        tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        like = tensors[0].dtype if tensors else None
        args, kwargs = pytree.tree_map_only(Number, lambda one: one.tensor(like), given)
        return func(*args, **kwargs)

    def _with(self, name: str, other: Any, *, swapped: bool = False) -> Any:
        if isinstance(other, torch.Tensor):
            pair = (self.tensor(other.dtype), other)
            return _BINARY[name](*(reversed(pair) if swapped else pair))
        if isinstance(other, Number):
            other = other._expression
        elif not isinstance(other, int | float):
            return NotImplemented
        pair = (self._expression, other)
        return Number((name, *(reversed(pair) if swapped else pair)), self._counters)

    def __add__(self, other: Any) -> Any:
        return self._with("add", other)

    def _changed(self, name: str) -> Number:
        return Number((name, self._expression), self._counters)

    def __bool__(self) -> bool:
        if self._expression[0] in _TRUTHS:
            return self._counters.decide(self._expression)
        return self._counters.decide(("not", ("eq", self._expression, 0)))

    def __ne__(self, other: object) -> Any:
        return self._with("eq", other)._changed("not") if isinstance(other, int | float | Number) else True

    def __eq__(self, other: object) -> Any:
        return self._with("eq", other)

    def __gt__(self, other: Any) -> Any:
        return self._with("lt", other, swapped=True)

    def __ge__(self, other: Any) -> Any:
        return self._with("le", other, swapped=True)

    def __floor__(self) -> Number:
        return self._changed("floor")

    def __ceil__(self) -> Number:
        return self._changed("ceil")

    def item(self) -> Number:
        """Returns itself: it has the value already."""
        return self

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        name = " and ".join(sorted(_names(self._expression)))
        raise CaptureError(
            f"{current_line()}: Python asks for the value of {name}: a range, an index, int(), text, or a function of "
            "`math`. The step is compiled once and gets the number as an input. Arithmetic, comparisons and torch's "
            f"functions take it: torch.cos(torch.as_tensor(x)) in the place of math.cos(x); or {WAY_OUT}."
        )

    __int__ = __float__ = __index__ = __str__ = __format__ = __iter__ = __len__ = __getitem__ = __round__ = _refuse
    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _names(expression: Expression) -> set[str]:
    if not isinstance(expression, tuple):
        return set()
    return {expression[1]} if expression[0] == "counter" else set().union(*map(_names, expression[1:]))


def _add_operators() -> None:
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "le", "and", "or"):
        if name != "add":
            setattr(Number, f"__{name}__", lambda self, other, name=name: self._with(name, other))
        if name not in ("lt", "le"):
            setattr(Number, f"__r{name}__", lambda self, other, name=name: self._with(name, other, swapped=True))
    for name in ("neg", "abs", "cos", "sin", "exp", "log", "sqrt", "tanh"):
        setattr(Number, f"__{name}__" if name in ("neg", "abs") else name, lambda self, name=name: self._changed(name))


_add_operators()
