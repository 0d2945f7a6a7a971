"""PolicyRequest: what a trainer asks of the policy of every state it meets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightjax import _tree
from lightjax.errors import ConfigurationError
from lightjax.metrics import batch_size
from lightjax.train_states import map_train_states, precision_of, train_states


@dataclass(frozen=True)
class PolicyRequest:
    """The part of a policy that a trainer's arguments say; the rest stays as the state has it.

    Attributes:
      changes: attributes of `Policy`, by name.
      microbatches: parts that a batch of the loader is cut into.
      accumulates: whether a step may take several batches of the loader.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    microbatches: int = 1
    accumulates: bool = False

    def apply(self, state: Any) -> Any:
        """Sets what is asked for on every `TrainState` in a state.

        Raises:
          ConfigurationError: the state has none, or something does not belong to its parameters: a pattern of
            `Precision.keep` has to be found in those of one `TrainState` at least.
        """
        asked = [f"{name}={value!r}" for name, value in self.changes.items()]
        asked += [f"microbatches={self.microbatches}"] if self.microbatches > 1 else []
        asked += ["accumulate_grad_batches"] if self.accumulates else []
        if not asked:
            return state
        if not train_states(state):
            raise ConfigurationError(
                f"The trainer was asked for {', '.join(asked)}, which lj.grad and apply_gradients do with the state's "
                f"policy, but the state ({type(state).__name__}) holds no lj.TrainState; return "
                "lj.TrainState.create(...) from init, alone or within a pytree, or do it in train_step and leave the "
                "arguments out."
            )
        changed = map_train_states(lambda one: one.with_policy(**self.changes), state)
        if "precision" in self.changes:
            _check_kept(changed)
        return changed

    def for_batches(self, state: Any, batch: Any) -> Any:
        """Says how many examples a microbatch has, given a batch of the loader.

        A size, and no number of parts, so that shorter batches and groups of any length are cut likewise.

        Raises:
          ConfigurationError: the batch cannot be cut into equal parts.
        """
        if not self.accumulates and self.microbatches == 1:
            return state
        examples = batch_size(batch)
        if examples is None or examples % self.microbatches:
            raise ConfigurationError(
                f"microbatches={self.microbatches} was asked for, but batches have {examples} examples, which is not "
                f"divisible by {self.microbatches}; give a batch size that is."
            )
        size = examples // self.microbatches
        return map_train_states(lambda one: one.with_policy(microbatch_size=size), state)


def _check_kept(state: Any) -> None:
    """Checks that every pattern of `Precision.keep` keeps something: a misspelt one would silently keep nothing."""
    names = [name for one in train_states(state).values() for name in _tree.named_leaves(one.params)]
    for pattern in precision_of(state).keep:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigurationError(
                f"Precision(keep={pattern!r}) is found in no parameter's path; there are {', '.join(names)}."
            )
