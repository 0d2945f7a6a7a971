"""What goes wrong when a torch program is ported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightjax.errors import LightjaxError

WAY_OUT = 'run the module in torch itself, from_torch(module, backend="eager")'


class CaptureError(LightjaxError, RuntimeError):
    """A torch program cannot become one compiled program; the message names the user's line and the way out."""


class ProgramError(CaptureError):
    """The torch program itself raised an error, with a `raise` or an `assert` of its own.

    Attributes:
      asked: what it had asked by then, and the answers, as `Counters` keeps them.
    """

    asked: Sequence[Any] = ()


class UnsupportedOperatorError(CaptureError, NotImplementedError):
    """Operations without a rule for JAX; the message lists them all, with the user's lines and the way out.

    Attributes:
      operations: the user's lines by operation; empty where one has a rule, but not for its arguments.
    """

    def __init__(self, message: str, operations: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(message)
        self.operations = dict(operations or {})
