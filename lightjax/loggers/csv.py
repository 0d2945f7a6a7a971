"""Metrics as one CSV file, a row a step."""

import contextlib
import json
import math
import numbers
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightjax.errors import MetricError
from lightjax.loggers.csv_table import CSVTable, replace_file
from lightjax.loggers.directory import LogDirectory

__all__ = ["CSVLogger"]

_FLUSH_SECONDS = 1.0
_MAX_WAITING = 4096  # calls that may wait; more are flushed before the second is over


class CSVLogger:
    """Writes metrics to `metrics.csv`, a row a step, and hyperparameters to `hparams.json`.

    The columns are `step`, `epoch`, and then the names in the order in which they first appeared; a name that
    is new later widens the file, which is then replaced as a whole. Metrics of the same step share a row,
    whichever calls brought them. Numbers are written so that `float(text)` gives back every bit; a metric a
    step does not have is an empty cell.

    Rows are on disk within a second. An existing file is continued: a resumed run overwrites the values of
    the steps it repeats.

    Args:
      directory: where the files go. None means the run directory, which the trainer gives with `start`.
      filename: the name of the CSV file.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     logger = CSVLogger(directory)
      ...     logger.log_metrics(10, {"epoch": 0, "train/loss": 0.5})
      ...     logger.log_metrics(10, {"epoch": 0, "val/loss": 0.75})
      ...     logger.finish()
      ...     print(pathlib.Path(directory, "metrics.csv").read_text(), end="")
      step,epoch,train/loss,val/loss
      10,0,0.5,0.75
    """

    in_background = False

    def __init__(self, directory: str | os.PathLike[str] | None = None, filename: str = "metrics.csv"):
        self.filename = filename
        self._directory = LogDirectory(directory, "CSVLogger")
        self._hyperparams: dict[str, Any] = {}
        self._lock = threading.Lock()  # the loop's thread against the timer's
        self._table: CSVTable | None = None
        self._flush_at = -math.inf
        self._timer: threading.Timer | None = None

    def start(self, run_dir: Path) -> None:
        """Takes the directory of a run, if none was given to the constructor; see `Logger`."""
        if self._directory.start(run_dir):
            self.finish()
            self._hyperparams = {}

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics to the row of a step; see `Logger.log_metrics`.

        A step that is neither new nor among the last 64 gets a second row, at the end.

        Raises:
          MetricError: a value is not a number.
          RuntimeError: there is no directory yet.
          ValueError: the file is there and was not written by a `CSVLogger`.
        """
        cells = {name: _number(name, value) for name, value in metrics.items()}
        with self._lock:
            if self._table is None:
                self._table = CSVTable(self._directory.path() / self.filename, int(step))
            waiting = self._table.add(int(step), cells)
            now = time.monotonic()
            if now >= self._flush_at or waiting >= _MAX_WAITING:
                self._flush_at = now + _FLUSH_SECONDS
                self._table.flush()
            elif self._timer is None:  # the next call may be a long time away: a slow step, a hang
                self._timer = threading.Timer(_FLUSH_SECONDS, self._flush_late)
                self._timer.daemon = True
                self._timer.start()

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Writes the hyperparameters to `hparams.json`, what JSON has no word for as its `repr`."""
        self._hyperparams.update(params)
        text = json.dumps(_to_json(self._hyperparams), indent=2, ensure_ascii=False)
        replace_file(self._directory.path() / "hparams.json", f"{text}\n".encode())

    def flush(self) -> None:
        """Writes out every row."""
        with self._lock:
            if self._table is not None:
                self._table.flush()

    def finish(self) -> None:
        """Writes out every row and closes the file."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()
        with self._lock:
            if self._table is not None:
                self._table.flush()
                self._table = None

    def _flush_late(self) -> None:
        with self._lock:
            self._timer = None
            if self._table is not None:
                # A full disk is raised to the user by the next call from the training loop.
                with contextlib.suppress(OSError):
                    self._table.flush()


def _number(name: str, value: Any) -> str:
    try:
        return str(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))
    except (TypeError, ValueError) as error:
        raise MetricError(
            f"CSVLogger got {name}={value!r} ({type(value).__name__}), which is not a number. A metric is "
            "one number a step. Log a float, such as float(value) or value.mean()."
        ) from error


def _to_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): _to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else repr(value)
