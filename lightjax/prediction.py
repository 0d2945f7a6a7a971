"""Prediction: the outputs of every batch, joined."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from lightjax.callbacks.callback import Callback, call
from lightjax.data.source import Source
from lightjax.engine.engine import Engine
from lightjax.progress import Progress
from lightjax.run import Run


def predict(
    run: Run,
    engine: Engine,
    data: Source,
    callbacks: Sequence[Callback],
    progress: Progress,
    loader: str = "",
    *,
    keep: bool = True,
) -> Any:
    """Runs the predict step on one pass over the data.

    Outputs are read one batch late, while the next one is computed.

    Args:
      run: whose state predicts; its `loader` and `eval_batch` are moved on.
      engine: runs the step.
      data: read once.
      callbacks: get the outputs of each batch.
      progress: shows people where it is.
      loader: name of the data.
      keep: whether the outputs are returned.

    Returns:
      A pytree of numpy arrays, [examples, ...], in the order of the data; None if they are not kept.

    Raises:
      StepError: an output has no first axis to join batches along.
    """
    outputs: list[Any] = []
    computing: deque[Any] = deque()
    run.loader, run.eval_batch = loader, 0

    def read() -> None:
        found = engine.fetch(computing.popleft())
        if keep:
            outputs.append(found)
        run.eval_batch += 1
        call(callbacks, "on_predict_batch_end", run, found)
        progress.update_evaluation(run.eval_batch)

    cursor = data.epoch(0)
    progress.start_evaluation("predict", data.batches)
    while (stretch := cursor.take(1, 1)) is not None:
        call(callbacks, "on_predict_batch_start", run)
        computing.append(engine.predict(run.state, stretch))
        if len(computing) > 1:
            read()
    while computing:
        read()
    progress.end_evaluation({})
    return engine.join(outputs) if keep else None
