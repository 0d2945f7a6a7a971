"""The programs by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Builder = Callable[[], tuple[Any, tuple[Any, ...]]]

PROGRAMS: dict[str, Builder] = {}


def program(name: str) -> Callable[[Builder], Builder]:
    """Adds a function that returns `(module or function, arguments)`."""

    def add(builder: Builder) -> Builder:
        PROGRAMS[name] = builder
        return builder

    return add


def function(name: str, call: Callable[..., Any], *arguments: Callable[[], Any]) -> None:
    """Adds a plain function; arguments are made when it runs, after the seed is set."""
    program(name)(lambda: (call, tuple(make() for make in arguments)))


def normal(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(*shape)


def positive(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.rand(*shape) + 0.5


def whole(high: int, *shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(0, high, shape)


def given(value: Any) -> Callable[[], Any]:
    return lambda: value.clone() if isinstance(value, torch.Tensor) else value
