"""Finetuning: parameters that are frozen first and trained later."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from lightjax import _tree
from lightjax.callbacks.around_optimizer import Frozen, freezing, put_around, replace_nodes
from lightjax.callbacks.callback import Callback
from lightjax.errors import ConfigurationError
from lightjax.train_states import train_states

if TYPE_CHECKING:
    from lightjax.run import Run


class Finetuning(Callback):
    """Freezes parameters and trains them from an epoch on.

    A frozen parameter keeps its bits, and its momentum stays zero, whatever its gradient and weight decay are. Which
    groups are trained is part of the state: nothing is compiled again when that changes, and a resumed run knows it.

    Args:
      unfreeze_at: epochs (counted from 0) by regular expressions that are searched in the parameters' paths; None never
        trains them. The first expression that is found counts; parameters none is found in are always trained.

    Raises:
      ConfigurationError: an epoch or an expression is none; or (when the run begins) one is found in no path.

    Example:
      >>> import lightjax as lj
      >>> callback = lj.Finetuning({"^backbone/": 5, "^embedding/": None})
    """

    every_n_steps = None

    def __init__(self, unfreeze_at: Mapping[str, int | None]) -> None:
        for pattern, epoch in unfreeze_at.items():
            if epoch is not None and (not isinstance(epoch, int) or epoch < 0):
                raise ConfigurationError(
                    f"Finetuning got {pattern!r}: {epoch!r}; give an epoch, counted from 0, or None for never."
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigurationError(
                    f"Finetuning got {pattern!r}, which is no regular expression: {error}."
                ) from error
        self.unfreeze_at = dict(unfreeze_at)

    def extend_state(self, state: Any) -> Any:
        """Puts into the state which groups are trained."""
        paths = [path for one in train_states(state).values() for path in _tree.named_leaves(one.params)]
        for pattern in self.unfreeze_at:
            if paths and not any(re.search(pattern, path) for path in paths):
                raise ConfigurationError(
                    f"Finetuning freezes {pattern!r}, which is found in no parameter's path; there are "
                    f"{', '.join(paths)}."
                )
        groups = list(self.unfreeze_at)
        return put_around(state, Frozen, lambda inner: freezing(inner, groups, self._trained(0)), "Finetuning")

    def on_train_epoch_start(self, run: Run) -> None:
        """Thaws what is to be trained from this epoch on."""
        if run.epoch in self.unfreeze_at.values() and not run.batch:
            trained = jnp.asarray(self._trained(run.epoch))
            run.state = replace_nodes(run.state, Frozen, lambda node: node._replace(trained=jax.numpy.array(trained)))

    def _trained(self, epoch: int) -> list[bool]:
        return [at is not None and epoch >= at for at in self.unfreeze_at.values()]
