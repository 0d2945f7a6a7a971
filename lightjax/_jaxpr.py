"""What a traced function does."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend import core


def has_convolution(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> bool:
    """Says whether a traced function convolves, at any depth."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter) and has_convolution(parameter):
                return True
    return False


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
