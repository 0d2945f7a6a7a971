"""PureEngine: what engines of pure functions have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from lightjax import _tree
from lightjax.data.grouped import Accumulation
from lightjax.data.share import Share
from lightjax.data.stage import FitData, Limit, Loaders, fit_data, stage_data
from lightjax.errors import StepError
from lightjax.policy_request import PolicyRequest
from lightjax.profiler.tracer import JaxTracer, Tracer
from lightjax.summary import Summary, summarize

if TYPE_CHECKING:
    from lightjax.callbacks import Callback
    from lightjax.checkpoint import Checkpoint


class PureEngine:
    """The part of the `Engine` protocol that follows from a task being pure functions: the state is all there is."""

    task: Any
    request: PolicyRequest
    callbacks: Sequence[Callback] = ()
    hyperparameters: Mapping[str, Any] = {}
    reads_ahead = True
    own_names = False
    tracer: Tracer = JaxTracer()

    @property
    def share(self) -> Share:
        """The part of the data that this process reads."""
        raise NotImplementedError

    def fit_data(
        self,
        train_data: Any,
        val_data: Any,
        datamodule: Any,
        limits: Mapping[str, Limit],
        *,
        overfit_batches: int | float,
        reload_every_n_epochs: int,
        accumulation: Accumulation,
        kept: Any,
        given: Any,
    ) -> FitData:
        """Returns the data of a training: batches are pytrees of arrays."""
        return fit_data(
            train_data,
            val_data,
            datamodule,
            limits,
            overfit_batches=overfit_batches,
            reload_every_n_epochs=reload_every_n_epochs,
            accumulation=accumulation,
            kept=kept,
            share=self.share,
        )

    def stage_data(self, stage: Literal["val", "test", "predict"], data: Any, datamodule: Any, limit: Limit) -> Loaders:
        """Returns the data of an evaluation or prediction."""
        return stage_data(stage, data, datamodule, limit, self.share)

    def stand_in(self, callback: Callback) -> Callback:
        """Returns the callback: they are written for states like these."""
        return callback

    def facts(self) -> Mapping[str, str]:
        """Returns nothing: what is to be said follows from the programs and the state."""
        return {}

    def gauges(self) -> Mapping[str, Any]:
        """Returns nothing: learning rates and memory follow from the state."""
        return {}

    def flops_per_step(self, state: Any, batch: Any) -> float | None:
        """Traces the train step and asks XLA."""
        lowered = jax.jit(self.task.train_step).lower(_tree.abstract(state), batch)
        return (lowered.cost_analysis() or {}).get("flops")

    def present_state(self) -> None:
        """Returns None: `init` makes states, and nothing else does."""

    def restore_state(self, checkpoint: Checkpoint, key: jax.Array, batch: Any) -> Any:
        """Reads a state of the shapes that `init` makes, without making it."""
        return checkpoint.restore(self.abstract_state(key, batch))

    def abstract_state(self, key: jax.Array, batch: Any) -> Any:
        """Returns the shapes of the state that `init` makes, and where it is to lie, without making it."""
        raise NotImplementedError

    def state_to_save(self, state: Any) -> Any:
        """Returns the state itself."""
        return state

    def notes(self) -> dict[str, Any]:
        """Returns {}: the state says it all."""
        return {}

    def restore_notes(self, notes: dict[str, Any]) -> None:
        """Has nothing to take back."""

    def summarize(self, state: Any) -> Summary:
        """Lists what a state is made of, without reading any value."""
        return summarize(state)

    def fetch(self, outputs: Any) -> Any:
        """Returns the outputs of a predict step as numpy arrays; waits for them.

        Raises:
          StepError: an output has no first axis to join batches along.
        """
        found = jax.device_get(outputs)
        for path, leaf in _tree.named_leaves(found).items():
            if not np.ndim(leaf):
                raise StepError(
                    f"predict_step returned a scalar at {path!r}: the outputs of batches are joined along their first "
                    "axis; return one row for every example."
                )
        return found

    def join(self, outputs: Sequence[Any]) -> Any:
        """Joins the outputs of batches along their first axis."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *outputs)

    def row(self, rows: Any, step: int) -> Any:
        """Picks a step of the window's metrics, on the host."""
        return {dtype: vectors[step] for dtype, vectors in jax.device_get(rows).items()}

    def finished(self, rows: Any) -> bool:
        """Says whether a call is finished."""
        return all(vectors.is_ready() for vectors in rows.values())

    def wait(self, rows: Any) -> None:
        """Waits until a call is finished."""
        jax.block_until_ready(rows)
