"""Loss scaling: what keeps float16 gradients from vanishing, as pure state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp

from lightjax.errors import ConfigurationError


@dataclass(frozen=True)
class LossScaling:
    """How the loss scale moves (Micikevicius et al., Mixed Precision Training, 2018; the defaults are torch's).

    Attributes:
      initial: the first scale.
      growth_factor: the scale is multiplied by it after `growth_interval` finite steps in a row.
      backoff_factor: the scale is multiplied by it after a step whose gradients are not finite.
      growth_interval: finite steps in a row before the scale grows.

    Raises:
      ConfigurationError: a number is out of range; every one is listed.
    """

    initial: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        conflicts = [
            f"{name}={getattr(self, name)}: give {wanted}"
            for name, wanted, fine in (
                ("initial", "a number above 0", self.initial > 0),
                ("growth_factor", "a number above 1", self.growth_factor > 1),
                ("backoff_factor", "a number between 0 and 1", 0 < self.backoff_factor < 1),
                ("growth_interval", "a whole number from 1 on", self.growth_interval >= 1),
            )
            if not fine
        ]
        if conflicts:
            raise ConfigurationError(f"LossScaling cannot work: {'; '.join(conflicts)}.")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossScale:
    """The loss scale of a state.

    Attributes:
      scale: float32 scalar, what the loss is multiplied by.
      good_steps: int32 scalar, finite steps since the scale moved last.

    Example:
      >>> scaling = LossScaling(initial=8.0, growth_interval=1)
      >>> scale = LossScale.first(scaling)
      >>> float(scale.after(True, scaling).scale), float(scale.after(False, scaling).scale)
      (16.0, 4.0)
    """

    scale: jax.Array
    good_steps: jax.Array

    @classmethod
    def first(cls, scaling: LossScaling) -> Self:
        """Returns the scale of step 0."""
        return cls(jnp.asarray(scaling.initial, jnp.float32), jnp.zeros((), jnp.int32))

    def after(self, finite: jax.Array | bool, scaling: LossScaling) -> Self:
        """Returns the scale after a step whose gradients were finite, or were not."""
        good_steps = self.good_steps + 1
        larger = self.scale * scaling.growth_factor
        # A scale of 0 would make every gradient NaN for ever.
        smaller = jnp.maximum(self.scale * scaling.backoff_factor, jnp.finfo(jnp.float32).tiny)
        full = good_steps == scaling.growth_interval
        grown = jnp.where(full & jnp.isfinite(larger), larger, self.scale)
        return type(self)(
            jnp.where(finite, grown, smaller),
            jnp.where(jnp.asarray(finite) & ~full, good_steps, 0),
        )
