"""What a traced function does."""

from __future__ import annotations

import math
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


def count_flops(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> int:
    """Counts what matrix products and convolutions compute over all devices, two for each multiply-add.

    Elementwise work is left out, as is usual. What is computed again for the gradient (remat) counts again; the body of
    a loop counts for each round of a `scan`, once in a loop whose rounds are not known; of branches, the dearest.
    """
    return sum(_flops(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _flops(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // max(1, outputs)
    parts = jax.tree.leaves(list(parameters.values()), is_leaf=_is_jaxpr)
    inner = [count_flops(part) for part in parts if _is_jaxpr(part)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (parameters["length"] if name == "scan" else 1)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
