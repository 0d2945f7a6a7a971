"""PredictionWriter: writes predictions while they are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from lightjax import _tree
from lightjax.callbacks.callback import Callback, Stage
from lightjax.errors import ConfigurationError

if TYPE_CHECKING:
    from lightjax.run import Run


class PredictionWriter(Callback):
    """Writes the outputs of `predict` as npz files; override `write` for another format.

    With `trainer.predict(..., return_predictions=False)` and interval "batch" no more than a few batches are in memory.

    Args:
      directory: where the files go; made when it is not there.
      interval: "batch" writes `NAME_000000.npz`, `NAME_000001.npz`... as the batches come, "epoch" one `NAME.npz` with
        all rows. NAME is the loader's, or "predictions".

    Raises:
      ConfigurationError: the interval is unknown.
    """

    every_n_steps = None

    def __init__(self, directory: str | os.PathLike[str], *, interval: Literal["batch", "epoch"] = "batch") -> None:
        if interval not in ("batch", "epoch"):
            raise ConfigurationError(f"PredictionWriter got interval={interval!r}; write 'batch' or 'epoch'.")
        self.directory = Path(directory)
        self.interval = interval
        self._kept: dict[str, list[Any]] = {}

    def setup(self, run: Run, stage: Stage) -> None:
        """Forgets what an earlier prediction left."""
        self._kept.clear()

    def on_predict_batch_end(self, run: Run, outputs: Any) -> None:
        """Writes a batch, or keeps it."""
        name = run.loader or "predictions"
        if run.trainer.fast_dev_run:
            return
        if self.interval == "batch":
            self.write(self.directory / f"{name}_{run.eval_batch - 1:06d}", outputs)
        else:
            self._kept.setdefault(name, []).append(outputs)

    def on_predict_epoch_end(self, run: Run) -> None:
        """Writes all rows."""
        for name, batches in self._kept.items():
            self.write(self.directory / name, jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches))
        self._kept.clear()

    def write(self, path: Path, outputs: Any) -> None:
        """Writes outputs.

        Args:
          path: where, without a suffix.
          outputs: pytree of numpy arrays, [examples, ...]; each leaf is stored under its path, a bare array as
            "outputs".
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        leaves = {name or "outputs": leaf for name, leaf in _tree.named_leaves(outputs).items()}
        np.savez(path.with_name(f"{path.name}.npz"), **leaves)  # pyright: ignore[reportArgumentType]
