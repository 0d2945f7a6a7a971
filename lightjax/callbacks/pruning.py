"""Pruning: the smallest parameters become zero and stay it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import optax

from lightjax import _tree
from lightjax.callbacks.around_optimizer import Masked, masking, nodes_of, put_around, replace_nodes
from lightjax.callbacks.callback import Callback, Stage
from lightjax.errors import ConfigurationError
from lightjax.train_states import map_train_states

if TYPE_CHECKING:
    from lightjax.run import Run


class Pruning(Callback):
    """Prunes parameters by their magnitude at the ends of epochs (Han et al., 2015).

    The masks are part of the state and are applied to every update inside of the compiled step: a pruned entry is
    exactly zero from then on. What is pruned once stays pruned.

    Args:
      amount: share of the entries that is zero: a number, or `epoch -> number`.
      parameters: regular expressions, of which one is found in the paths of what is pruned; kernels only by default, by
        their having two axes with more than one entry.
      scope: "global" ranks the entries of all parameters together, "layer" those of each parameter.
      every_n_epochs: epochs between two prunings.

    Raises:
      ConfigurationError: a number is out of range or the scope unknown.
    """

    every_n_steps = None

    def __init__(
        self,
        amount: float | Callable[[int], float] = 0.5,
        *,
        parameters: list[str] | str | None = None,
        scope: Literal["global", "layer"] = "global",
        every_n_epochs: int = 1,
    ) -> None:
        if not callable(amount) and not 0.0 <= amount < 1.0:
            raise ConfigurationError(f"Pruning got amount={amount}; give a share from 0.0 on and below 1.0.")
        if every_n_epochs < 1:
            raise ConfigurationError(f"Pruning got every_n_epochs={every_n_epochs}; give a number of epochs from 1 on.")
        if scope not in ("global", "layer"):
            raise ConfigurationError(f"Pruning got scope={scope!r}; write 'global' or 'layer'.")
        self.amount = amount
        self.parameters = [parameters] if isinstance(parameters, str) else parameters
        self.scope = scope
        self.every_n_epochs = every_n_epochs
        self._prune = jax.jit(self._pruned)

    def extend_state(self, state: Any) -> Any:
        """Puts the masks into the state."""
        return put_around(state, Masked, masking, "Pruning")

    def setup(self, run: Run, stage: Stage) -> None:
        """Checks that there is something to prune."""
        if stage == "fit" and not any(
            self.is_pruned(path, leaf.shape)
            for path, leaf in _tree.named_leaves(nodes_of(run.state, Masked)[0].masks).items()
        ):
            raise ConfigurationError(f"Pruning finds nothing to prune with parameters={self.parameters}.")

    def on_train_epoch_end(self, run: Run) -> None:
        """Prunes, and reports the share of zeros as `sparsity`."""
        if self.is_due(run.epoch, run.epoch_ended):
            run.state, sparsity = self._prune(run.state, jnp.float32(self.amount_at(run.epoch)))
            run.log({"sparsity": sparsity})

    def is_due(self, epoch: int, ended: bool) -> bool:
        """Says whether an epoch is pruned at its end.

        Args:
          epoch: its number, from 0.
          ended: whether it is complete.
        """
        return ended and (epoch + 1) % self.every_n_epochs == 0

    def amount_at(self, epoch: int) -> float:
        """Returns the share of zeros at the end of an epoch.

        Raises:
          ConfigurationError: it is out of range.
        """
        amount = self.amount(epoch) if callable(self.amount) else self.amount
        if not 0.0 <= amount < 1.0:
            raise ConfigurationError(f"Pruning's amount({epoch}) is {amount}; return a share from 0.0 on, below 1.0.")
        return amount

    def is_pruned(self, path: str, shape: Sequence[int]) -> bool:
        """Says whether a parameter is pruned."""
        if self.parameters is None:
            return sum(size > 1 for size in shape) >= 2
        return any(re.search(pattern, path) for pattern in self.parameters)

    def _pruned(self, state: Any, amount: jax.Array) -> tuple[Any, jax.Array]:
        found: list[jax.Array] = []

        def one(train_state: Any) -> Any:
            (before,) = nodes_of(train_state.opt_state, Masked)
            masks = jax.tree.map(
                lambda old, new: old if isinstance(old, optax.MaskedNode) else old & new,
                before.masks,
                self._masks(train_state.params, amount),
                is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
            )
            found.extend(mask for path, mask in _tree.named_leaves(masks).items() if self.is_pruned(path, mask.shape))
            params = jax.tree.map(
                lambda param, mask: param if isinstance(mask, optax.MaskedNode) else jnp.where(mask, param, 0),
                train_state.params,
                masks,
            )
            opt_state = replace_nodes(train_state.opt_state, Masked, lambda node: node._replace(masks=masks))
            return train_state.replace(params=params, opt_state=opt_state)

        state = map_train_states(one, state)
        zeros = jnp.stack([jnp.sum(~mask) for mask in found]).sum()
        return state, zeros / sum(mask.size for mask in found)

    def _masks(self, params: Any, amount: jax.Array) -> Any:
        leaves = {path: leaf for path, leaf in _tree.named_leaves(params).items() if self.is_pruned(path, leaf.shape)}
        together = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in leaves.values()])

        def mask(path: Any, leaf: jax.Array) -> jax.Array:
            if _tree.leaf_path(path) not in leaves:
                return jnp.ones(leaf.shape, bool)
            ranked = together if self.scope == "global" else jnp.abs(leaf).ravel()
            smallest = jnp.round(amount * ranked.size).astype(jnp.int32)
            threshold = jnp.sort(ranked)[jnp.maximum(smallest - 1, 0)]
            return (jnp.abs(leaf) > threshold) | (smallest == 0)

        return jax.tree_util.tree_map_with_path(mask, params)
