"""Prediction: the outputs of every batch, joined."""

from __future__ import annotations

from collections import deque
from typing import Any

import jax
import numpy as np

from lightjax import _tree
from lightjax.data.source import Source
from lightjax.engine.engine import Engine
from lightjax.errors import StepError
from lightjax.progress import Progress


def predict(engine: Engine, state: Any, data: Source, progress: Progress) -> Any:
    """Runs the predict step on one pass over the data.

    Outputs are read one batch late, while the next one is computed.

    Returns:
      A pytree of numpy arrays, [examples, ...], in the order of the data.

    Raises:
      StepError: an output has no first axis to join batches along.
    """
    outputs: list[Any] = []
    computing: deque[Any] = deque()
    cursor = data.epoch(0)
    progress.start_evaluation("predict", data.batches)
    while (stretch := cursor.take(1, 1)) is not None:
        computing.append(engine.predict(state, stretch))
        if len(computing) > 1:
            outputs.append(jax.device_get(computing.popleft()))
        progress.update_evaluation(len(outputs))
    outputs += jax.device_get(list(computing))
    progress.end_evaluation({})
    for path, leaf in _tree.named_leaves(outputs[0]).items():
        if not np.ndim(leaf):
            raise StepError(
                f"predict_step returned a scalar at {path!r}: the outputs of batches are joined along their first "
                "axis; return one row for every example."
            )
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *outputs)
