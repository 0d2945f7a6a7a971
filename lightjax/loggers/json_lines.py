"""Metrics as JSON lines."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lightjax.loggers.csv_table import replace_file
from lightjax.loggers.directory import LogDirectory

_FLUSH_S = 1.0


class JSONLinesLogger:
    """Writes one JSON object a call: `{"step", "time", name: value...}`, and hyperparameters as `{"hyperparameters"}`.

    Lines are only added, so that other programs can follow the file; a run that is resumed takes out those of the steps
    that it repeats. NaN and infinities, for which JSON has no number, are the strings "NaN", "Infinity" and
    "-Infinity". Lines are on disk within about a second.

    Args:
      directory: where the file goes. None means the run directory.
      filename: its name.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     logger = JSONLinesLogger(directory)
      ...     logger.log_metrics(3, {"loss": 0.5, "worst": math.nan})
      ...     logger.finish()
      ...     row = json.loads(Path(directory, "metrics.jsonl").read_text())
      >>> row["step"], row["loss"], row["worst"]
      (3, 0.5, 'NaN')
    """

    in_background = False

    def __init__(self, directory: str | os.PathLike[str] | None = None, filename: str = "metrics.jsonl") -> None:
        self.filename = filename
        self._directory = LogDirectory(directory, "JSONLinesLogger")
        self._file: TextIO | None = None
        self._flushed_s = 0.0
        self._lock = threading.Lock()

    def start(self, run_dir: Path) -> None:
        """Takes the directory of a run, if none was given to the constructor; see `Logger`."""
        if self._directory.start(run_dir):
            self.finish()

    def resume(self, step: int) -> None:
        """Takes out what an earlier life of the run logged after `step`, and half a line it ended in; see `Logger`."""
        self.finish()
        path = self._directory.path() / self.filename
        if path.is_file():
            whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            replace_file(path, b"".join(line for line in whole if json.loads(line).get("step", step) <= step))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a line; see `Logger.log_metrics`."""
        self._write(
            {"step": int(step), "time": time.time()} | {name: _number(value) for name, value in metrics.items()}
        )

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Writes the hyperparameters as a line of their own."""
        self._write({"hyperparameters": dict(params)})

    def log_text(self, step: int, name: str, text: str) -> None:
        """Writes a text as a line of its own."""
        self._write({"step": int(step), "text": {name: text}})

    def log_table(self, step: int, name: str, columns: Any, rows: Any) -> None:
        """Writes a table as a line of its own."""
        self._write(
            {"step": int(step), "table": {name: {"columns": list(columns), "rows": [list(row) for row in rows]}}}
        )

    def flush(self) -> None:
        """Writes out every line."""
        with self._lock:
            if self._file is not None:
                self._file.flush()

    def finish(self) -> None:
        """Writes out every line and closes the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False, default=repr)
        with self._lock:
            if self._file is None:
                self._file = open(self._directory.path() / self.filename, "a", encoding="utf-8")  # noqa: SIM115
            self._file.write(line + "\n")
            if time.monotonic() - self._flushed_s > _FLUSH_S:
                self._flushed_s = time.monotonic()
                self._file.flush()


def _number(value: float) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return int(value) if isinstance(value, int) else number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
