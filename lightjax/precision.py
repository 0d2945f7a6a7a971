"""Precision: the dtypes that parameters are kept in, steps are computed in, and outputs are given in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lightjax import _tree
from lightjax.errors import ConfigurationError
from lightjax.loss_scale import LossScaling

# Parameters, compute, outputs; what Lightning calls them.
_NAMED = {
    "32-true": ("float32", "float32", "float32"),
    "bf16-mixed": ("float32", "bfloat16", "float32"),
    "bf16-true": ("bfloat16", "bfloat16", "float32"),
    "16-mixed": ("float32", "float16", "float32"),
    "16-true": ("float16", "float16", "float32"),
    "64-true": ("float64", "float64", "float64"),
}
_SHORT = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true"}


@dataclass(frozen=True)
class Precision:
    """Which dtypes a step works with. Whole numbers, truth values and keys are never touched.

    Attributes:
      param: what parameters are kept in, and with them the optimizer's moments; None leaves them as they are.
      compute: what parameters and the batch are cast to for the loss, evaluation and prediction; None casts nothing.
      output: what predictions are cast to; None leaves them as they are.
      keep: regular expressions; parameters whose path one of them is found in (`re.search`) are kept, and computed
        with, in float32.
      loss_scaling: how the loss scale moves; None scales float16 compute with the defaults, False nothing.

    Raises:
      ConfigurationError: a dtype is no floating one or needs x64, or a regular expression is none; all are listed.

    Example:
      >>> precision = Precision(param="float32", compute="bfloat16", keep=["norm"])
      >>> cast = precision.to_compute({"dense": jnp.ones(2), "norm": jnp.ones(2), "count": jnp.ones(2, int)})
      >>> {name: str(leaf.dtype) for name, leaf in cast.items()}
      {'count': 'int32', 'dense': 'bfloat16', 'norm': 'float32'}
    """

    param: Any = None
    compute: Any = None
    output: Any = None
    keep: Sequence[str] = ()
    loss_scaling: LossScaling | bool | None = None

    def __post_init__(self) -> None:
        conflicts: list[str] = []
        for name in ("param", "compute", "output"):
            object.__setattr__(self, name, _floating(name, getattr(self, name), conflicts))
        object.__setattr__(self, "keep", (self.keep,) if isinstance(self.keep, str) else tuple(self.keep))
        for pattern in self.keep:
            try:
                re.compile(pattern)
            except re.error as error:
                conflicts.append(f"keep={pattern!r} is no regular expression ({error})")
        if conflicts:
            raise ConfigurationError(f"This precision cannot be: {'; '.join(conflicts)}.")

    @classmethod
    def named(cls, name: Any) -> Precision:
        """Returns the precision of a name, as Lightning reads it: "bf16-mixed", "16-true", 32...

        Raises:
          ConfigurationError: there is none of this name (lists those there are), or it needs x64.
        """
        if isinstance(name, cls):
            return name
        found = _SHORT.get(str(name), name)
        if not isinstance(found, str) or found not in _NAMED:
            raise ConfigurationError(
                f"precision={name!r} is unknown; there are {', '.join(repr(one) for one in _NAMED)} (and 32, 16, "
                "'bf16', 64), or an lj.Precision(param=, compute=, output=, keep=[regex])."
            )
        param, compute, output = _NAMED[found]
        return cls(param, compute, output)

    @property
    def scaling(self) -> LossScaling | None:
        """How the loss scale moves; None without one."""
        if isinstance(self.loss_scaling, LossScaling):
            return self.loss_scaling
        wanted = self.compute == "float16" if self.loss_scaling is None else self.loss_scaling
        return LossScaling() if wanted else None

    def to_param(self, params: Any) -> Any:
        """Casts parameters to what they are kept in."""
        return self._cast_params(params, self.param)

    def to_compute(self, params: Any) -> Any:
        """Casts parameters to what a step computes with."""
        return self._cast_params(params, self.compute)

    def batch_to_compute(self, batch: Any) -> Any:
        """Casts the floating leaves of a batch, or of anything else that is no parameter, for the compute."""
        return cast_floating(batch, self.compute)

    def to_output(self, outputs: Any) -> Any:
        """Casts predictions."""
        return cast_floating(outputs, self.output)

    def _cast_params(self, params: Any, dtype: str | None) -> Any:
        if dtype is None:
            return params

        def cast(path: tuple[Any, ...], leaf: Any) -> Any:
            kept = any(re.search(pattern, _tree.leaf_path(path)) for pattern in self.keep)
            return cast_floating(leaf, "float32" if kept else dtype)

        return jax.tree_util.tree_map_with_path(cast, params)


def cast_floating(tree: Any, dtype: Any) -> Any:
    """Casts the floating leaves of a tree; None casts nothing."""
    if dtype is None:
        return tree

    def cast(leaf: Any) -> Any:
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def _floating(name: str, dtype: Any, conflicts: list[str]) -> str | None:
    """Returns the name of a floating dtype; says so where it is none."""
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        conflicts.append(f"{name}={dtype!r} is no floating dtype: give 'float32', 'bfloat16', 'float16' or 'float64'")
        return None
    if found == jnp.float64 and jax.dtypes.canonicalize_dtype(found) != found:
        conflicts.append(
            f"{name}='float64' needs 64-bit numbers, which are off: set JAX_ENABLE_X64=1, or call "
            "jax.config.update('jax_enable_x64', True) before the first array is made"
        )
    return str(found)
