"""Policy: how gradients are made and applied, as part of the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lightjax.errors import ConfigurationError
from lightjax.precision import Precision
from lightjax.remat import remat_conflict
from lightjax.trainable import hashable


@dataclass(frozen=True)
class Policy:
    """How gradients are made and applied. `TrainState.with_policy` sets it; a trainer sets it from its arguments.

    `lj.grad` reads the first half, `TrainState.apply_gradients` the second. What happens to a gradient, in this order:
    microbatches and replicas are averaged, the loss scale is divided out, whether it is finite is looked at, its norm
    is taken, it is clipped, and the optimizer gets it.

    Attributes:
      precision: an `lj.Precision`, or its name ("bf16-mixed"), which becomes one; None casts nothing.
      microbatches: every batch is cut into so many equal parts, one after the other, to save memory.
      microbatch_size: instead, parts of so many examples; a shorter last one is weighted rightly.
      remat: what the loss keeps for its gradient, as for `lj.remat`; None keeps everything.
      trainable: regular expressions (`re.search`) for the paths of the parameters to train, or a pytree of bools like
        the parameters; None trains all. The others get no gradient computed and have no optimizer state.
      replica_axis: the name of a mapped axis (`jax.pmap`, `jax.shard_map`) that gradients are averaged over, by weight,
        and batch statistics evenly; keys differ along it.
      gradient_clip_val: the largest norm, or the largest absolute value, of a gradient; None or 0 clips nothing.
      gradient_clip_algorithm: "norm" (the norm of all gradients together) or "value" (every number).
      track_grad_norm: keep the norm before clipping in `state.grad_norm` and report it; clipping by norm does, too.
      on_nonfinite: what happens at a loss or gradients that are not finite: "ignore" applies them, "skip" leaves
        parameters, optimizer state and model state as they were, "raise" does so and raises `lj.NonfiniteError` in the
        trainer, one report late. Under loss scaling such steps are skipped in any case, and "raise" raises when
        lowering the scale to 1 has not helped.

    Raises:
      ConfigurationError: something is unknown or out of range; everything wrong is listed.

    Example:
      >>> import lightjax as lj
      >>> Policy(precision="bf16-mixed", gradient_clip_val=1.0).precision.compute
      'bfloat16'
    """

    precision: Any = None
    microbatches: int = 1
    microbatch_size: int | None = None
    remat: str | Callable[..., Any] | None = None
    trainable: Any = None
    replica_axis: str | None = None
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    track_grad_norm: bool = False
    on_nonfinite: Literal["ignore", "skip", "raise"] = "ignore"

    def __post_init__(self) -> None:
        conflicts = []
        try:
            precision = Precision() if self.precision is None else Precision.named(self.precision)
            object.__setattr__(self, "precision", precision)
        except ConfigurationError as error:
            conflicts.append(str(error))
        for name in ("microbatches", "microbatch_size"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
                conflicts.append(f"{name}={size!r}: give a whole number from 1 on")
        if self.gradient_clip_val is not None and not self.gradient_clip_val >= 0:
            conflicts.append(f"gradient_clip_val={self.gradient_clip_val!r}: give a number from 0 on")
        if self.gradient_clip_algorithm not in ("norm", "value"):
            conflicts.append(
                f"gradient_clip_algorithm={self.gradient_clip_algorithm!r} is unknown: give 'norm' or 'value'"
            )
        if self.on_nonfinite not in ("ignore", "skip", "raise"):
            conflicts.append(f"on_nonfinite={self.on_nonfinite!r} is unknown: give 'ignore', 'skip' or 'raise'")
        if self.remat is not None and (conflict := remat_conflict(self.remat)):
            conflicts.append(conflict)
        # The policy is part of the state's structure, which has to be hashable.
        object.__setattr__(self, "trainable", hashable(self.trainable, conflicts))
        if conflicts:
            raise ConfigurationError("\n".join(conflicts))

    @property
    def skips(self) -> bool:
        """Whether a step that is not finite leaves the state as it was."""
        return self.on_nonfinite != "ignore" or self.precision.scaling is not None

    @property
    def counts_skips(self) -> bool:
        """Whether skipped steps are something to report, not the end of the run."""
        return self.on_nonfinite == "skip" or self.precision.scaling is not None

    @property
    def clips_norm(self) -> bool:
        """Whether gradients are clipped by their norm."""
        return bool(self.gradient_clip_val) and self.gradient_clip_algorithm == "norm"

    def averaged_over_replicas(self, model_state: Any) -> Any:
        """Averages the floating leaves of a model state over the replicas, which have to agree on it."""
        axis = self.replica_axis
        if axis is None:
            return model_state
        return jax.tree.map(
            lambda leaf: jax.lax.pmean(leaf, axis) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, model_state
        )

    def clipped(self, grads: Any, norm: jax.Array | None) -> Any:
        """Clips gradients; `norm` is theirs."""
        limit = self.gradient_clip_val
        if not limit:
            return grads
        if self.gradient_clip_algorithm == "value":
            return jax.tree.map(lambda leaf: jnp.clip(leaf, -limit, limit), grads)
        assert norm is not None
        factor = jnp.where(norm > limit, limit / norm, 1.0)
        return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), grads)
