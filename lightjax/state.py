"""TrainState: the convenient state of a step function."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from lightjax import _tree
from lightjax.errors import StepError
from lightjax.loss_scale import LossScale
from lightjax.policy import Policy
from lightjax.trainable import merged, only, trained_leaves

_UNCHANGED: Any = object()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state, step and key, as one pytree.

    Any pytree may be the state of a step function; this one carries what almost every step needs. It is immutable:
    `apply_gradients` and `replace` return a new state.

    Attributes:
      step: int32 scalar, the number of optimizer steps taken, those skipped for numbers that are not finite included.
      params: pytree of arrays that `lj.grad` differentiates.
      opt_state: the optimizer's state, as `optimizer.init(params)` made it.
      model_state: what the model carries besides parameters (BatchNorm statistics, caches); None without any.
      key: a PRNG key, never advanced: `key_for` folds the step into it; None without randomness.
      optimizer: the optax transformation (static: part of the tree's structure, not a leaf).
      policy: how gradients are made and applied (static); `with_policy` changes it.
      loss_scale: what the loss is multiplied by, and how long it held; None without loss scaling.
      skipped_steps: int32 scalar, steps that were not finite and left parameters as they were; None unless they do.
      grad_norm: float32 scalar, the norm of the last gradients before clipping; None unless it is kept.
      nonfinite: bool [trained parameters], which of the last gradients were not finite; None unless that raises.

    Example:
      >>> import jax, optax
      >>> state = TrainState.create(params={"w": 1.0}, optimizer=optax.sgd(0.5), key=jax.random.key(0))
      >>> state = state.apply_gradients({"w": 1.0})
      >>> float(state.params["w"]), int(state.step)
      (0.5, 1)
    """

    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any
    key: jax.Array | None
    optimizer: optax.GradientTransformation = dataclasses.field(metadata={"static": True})
    _: dataclasses.KW_ONLY
    policy: Policy = dataclasses.field(default=Policy(), metadata={"static": True})
    loss_scale: LossScale | None = None
    skipped_steps: jax.Array | None = None
    grad_norm: jax.Array | None = None
    nonfinite: jax.Array | None = None

    @classmethod
    def create(
        cls,
        *,
        params: Any,
        optimizer: optax.GradientTransformation,
        key: jax.Array | None = None,
        model_state: Any = None,
    ) -> Self:
        """Makes the state of step 0.

        Args:
          params: pytree of floating arrays.
          optimizer: an optax transformation; its state is made from `params`.
          key: the key that `key_for` derives from.
          model_state: pytree of arrays the model updates itself.

        Raises:
          StepError: the optimizer is no optax transformation.
        """
        if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise StepError(
                f"TrainState.create got optimizer={optimizer!r}, which has no init and update functions; "
                "pass an optax transformation such as optimizer=optax.adamw(1e-3)."
            )
        # Python numbers become arrays: a weakly typed leaf would change its type at the first update.
        params = jax.tree.map(jnp.asarray, params)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            model_state=model_state,
            key=key,
            optimizer=optimizer,
        )

    def replace(self, **changes: Any) -> Self:
        """Returns the state with the given attributes changed."""
        return dataclasses.replace(self, **changes)

    def with_policy(self, policy: Policy | None = None, **changes: Any) -> Self:
        """Returns the state under a policy.

        Parameters are cast to the precision's `param`, and the optimizer state with them. The optimizer state is made
        anew where `trainable` changes.

        Args:
          policy: the policy; the state's own when None.
          **changes: attributes of it to change: `precision="bf16-mixed"`, `microbatches=4`.

        Raises:
          ConfigurationError: there is no such policy, or `trainable` does not belong to the parameters.

        Example:
          >>> import jax, jax.numpy as jnp, optax
          >>> state = TrainState.create(params={"w": jnp.ones(2)}, optimizer=optax.sgd(0.5))
          >>> state = state.with_policy(precision="16-mixed", gradient_clip_val=1.0)
          >>> float(state.loss_scale.scale), state.compute_params["w"].dtype.name
          (65536.0, 'float16')
        """
        before, policy = self.policy, dataclasses.replace(policy or self.policy, **changes)
        precision, scaling = policy.precision, policy.precision.scaling
        params, opt_state = precision.to_param(self.params), self.opt_state
        trained = trained_leaves(policy.trainable, params)
        if (precision.param, precision.keep) != (before.precision.param, before.precision.keep) or (
            policy.trainable != before.trainable
        ):
            opt_state = _fitting(opt_state, self.optimizer, only(trained, params))
        loss_scale, same = self.loss_scale, scaling == before.precision.scaling
        if not same or loss_scale is None:
            loss_scale = LossScale.first(scaling) if scaling else None
        keeps_norm = policy.clips_norm or policy.track_grad_norm
        return self.replace(
            policy=policy,
            params=params,
            opt_state=opt_state,
            loss_scale=loss_scale,
            skipped_steps=_kept(self.skipped_steps, policy.counts_skips, (), jnp.int32),
            grad_norm=_kept(self.grad_norm, keeps_norm, (), jnp.float32),
            nonfinite=_kept(self.nonfinite, policy.on_nonfinite == "raise", (sum(trained),), jnp.bool),
        )

    @property
    def compute_params(self) -> Any:
        """The parameters in the dtype that steps compute with: what `lj.grad` shows the loss as `state.params`."""
        return self.policy.precision.to_compute(self.params)

    def apply_gradients(self, grads: Any, *, model_state: Any = _UNCHANGED, **extra: Any) -> Self:
        """Takes one optimizer step.

        The policy says what happens to the gradients before: they are looked at, clipped, and, where they are not
        finite, may leave everything but the step (and the loss scale) as it was.

        Args:
          grads: gradients, a pytree like `params`.
          model_state: the new model state; left as it is when not given.
          **extra: passed on to optimizers that take more (`value=loss` for `optax.contrib.reduce_on_plateau`).

        Returns:
          The state with new `params` and `opt_state` and `step + 1`.

        Raises:
          StepError: `grads` is not shaped like `params`; names the first leaf that differs.
        """
        if jax.tree.structure(grads) != jax.tree.structure(self.params):
            raise StepError(
                f"apply_gradients got gradients whose tree is not that of the parameters: "
                f"{_tree.difference(self.params, grads)}; pass what lj.grad returned first, "
                "`grads, metrics = lj.grad(loss_fn)(state, batch)`."
            )
        policy = self.policy
        trained = trained_leaves(policy.trainable, self.params)
        grads, params = only(trained, grads), only(trained, self.params)
        vitals, finite, norm = self._vitals(grads)
        update = optax.with_extra_args_support(self.optimizer).update
        updates, opt_state = update(policy.clipped(grads, norm), self.opt_state, params, **extra)
        changed = {
            "params": merged(trained, self.params, optax.apply_updates(params, updates)),
            "opt_state": opt_state,
        }
        if model_state is not _UNCHANGED:
            mixed = policy.precision.compute is not None
            model_state = _like(model_state, self.model_state) if mixed else model_state
            changed["model_state"] = policy.averaged_over_replicas(model_state)
        if policy.skips:
            before = {name: getattr(self, name) for name in changed}
            changed = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, before)
        return self.replace(step=self.step + 1, **vitals, **changed)

    def _vitals(self, grads: Any) -> tuple[dict[str, Any], Any, jax.Array | None]:
        """Looks at gradients: what the next state keeps of them, whether all are finite, and their norm."""
        policy, vitals = self.policy, {}
        finite = True
        norm = _norm(grads) if policy.clips_norm or self.grad_norm is not None else None
        if self.grad_norm is not None and norm is not None:
            vitals["grad_norm"] = norm.astype(jnp.float32)
        if policy.skips:
            flags = jnp.stack([~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)])
            finite = ~flags.any()
            if self.nonfinite is not None:
                # Loss scaling makes gradients overflow now and then; at a scale of 1 it is not the scale.
                scaled = self.loss_scale is not None and self.loss_scale.scale > 1
                vitals["nonfinite"] = flags & ~jnp.asarray(scaled)
            if self.skipped_steps is not None:
                vitals["skipped_steps"] = self.skipped_steps + ~finite
            if self.loss_scale is not None and policy.precision.scaling is not None:
                vitals["loss_scale"] = self.loss_scale.after(finite, policy.precision.scaling)
        return vitals, finite, norm

    def key_for(self, name: str) -> jax.Array:
        """Derives the key of this step for one purpose: `fold_in` of the key with the step and the name.

        The key depends on nothing else, so that a resumed run draws the same numbers; but replicas that see different
        rows (`policy.replica_axis`) have different keys.

        Args:
          name: what the randomness is for; each name has its own stream.

        Raises:
          StepError: the state was created without a key.

        Example:
          >>> import jax, optax
          >>> state = TrainState.create(params={}, optimizer=optax.sgd(1.0), key=jax.random.key(0))
          >>> bool(jax.random.uniform(state.key_for("dropout")) == jax.random.uniform(state.key_for("noise")))
          False
        """
        if self.key is None:
            raise StepError(
                f"key_for({name!r}) was called on a state without a key; "
                "pass the key that init receives: TrainState.create(..., key=key)."
            )
        key = jax.random.fold_in(jax.random.fold_in(self.key, self.step), zlib.crc32(name.encode()))
        axis = self.policy.replica_axis
        return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


def _fitting(opt_state: Any, optimizer: optax.GradientTransformation, params: Any) -> Any:
    """Returns an optimizer state for parameters of other dtypes; a new one where other parameters are trained."""
    wanted = jax.eval_shape(optimizer.init, params)
    if jax.tree.structure(wanted) != jax.tree.structure(opt_state):
        return optimizer.init(params)
    return _like(opt_state, wanted)


def _like(tree: Any, wanted: Any) -> Any:
    """Casts the floating leaves of a tree to the dtypes they have in another, where both have one structure."""
    if jax.tree.structure(tree) != jax.tree.structure(wanted):
        return tree

    def cast(leaf: Any, like: Any) -> Any:
        both_float = all(jnp.issubdtype(jnp.result_type(one), jnp.floating) for one in (leaf, like))
        return jnp.asarray(leaf, like.dtype) if both_float else leaf

    return jax.tree.map(cast, tree, wanted)


def _kept(value: Any, wanted: bool, shape: tuple[int, ...], dtype: Any) -> Any:
    """Returns a counter of the state: the one there is, zeros where it begins, None where it is not wanted."""
    if not wanted:
        return None
    return value if value is not None and value.shape == shape else jnp.zeros(shape, dtype)


def _norm(grads: Any) -> jax.Array:
    """Returns the Euclidean norm of all gradients together, added up in float32 at least."""
    leaves = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(grads)]
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves))
