"""Nonfinite: which step was the first that was not finite, and where; it travels with the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from lightjax.errors import NonfiniteError

_NEVER = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nonfinite:
    """A metric that raises on the host where a step was not finite.

    Attributes:
      step: int32 scalar, the first such step.
      flags: bool [names], what was not finite at that step.
      names: of what is looked at: gradients of parameters, then metrics.
    """

    step: jax.Array
    flags: jax.Array
    names: tuple[str, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, step: jax.Array, gradients: jax.Array, paths: list[str], metrics: Mapping[str, Any]) -> Self:
        """Looks at one step.

        Args:
          step: its number.
          gradients: bool [paths], those that are not finite and should be: they decide.
          paths: of the gradients.
          metrics: told of as well, where the gradients decide that something is wrong.
        """
        numbers = [jnp.stack([~jnp.isfinite(leaf).all() for leaf in _floats(one)]).any() for one in metrics.values()]
        return cls(
            jnp.where(gradients.any(), step, _NEVER),
            jnp.concatenate([gradients, jnp.stack(numbers)]) if numbers else gradients,
            (*(f"gradient of {path!r}" for path in paths), *(f"metric {name!r}" for name in metrics)),
        )

    def merge(self, other: Self) -> Self:
        """Keeps the earlier step."""
        earlier = self.step <= other.step
        return type(self)(
            jnp.where(earlier, self.step, other.step), jnp.where(earlier, self.flags, other.flags), self.names
        )

    def compute(self) -> dict[str, Any]:
        """Reports nothing.

        Raises:
          NonfiniteError: a step was not finite.
        """
        if self.step == _NEVER:
            return {}
        found = [name for name, flag in zip(self.names, np.asarray(self.flags), strict=True) if flag]
        found.sort(key=lambda name: name.startswith("gradient"))
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        raise NonfiniteError(
            f"Step {int(self.step)} was not finite: {', '.join(found[:6])}{more}. The parameters are still those "
            "before it. Lower the learning rate, clip gradients (gradient_clip_val=1.0), look for a division by zero "
            "or a logarithm of zero in the loss; on_nonfinite='skip' leaves such steps out."
        )


def _floats(metric: Any) -> list[jax.Array]:
    leaves = [leaf for leaf in jax.tree.leaves(metric) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return leaves or [jnp.zeros(())]
