"""Record: what is known of a run, read from its directory or from its result."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightjax.checkpoint import Checkpoint
from lightjax.checkpoint.catalog import checkpoints_of, steps_in
from lightjax.checkpoint.location import files_below, size_of
from lightjax.errors import CheckpointError, ConfigurationError
from lightjax.history import HISTORY_FILE
from lightjax.profiler.times import Times

SUMMARY = "run.json"
METRICS = "metrics.csv"


@dataclass(frozen=True)
class Life:
    """A run from its start, or from where it was resumed, to its end.

    Attributes:
      stopped_by: why it ended.
      step: optimizer steps at its end.
      times: where its time went.
    """

    stopped_by: str
    step: int
    times: Times


@dataclass(frozen=True)
class Record:
    """What is known of a run.

    Attributes:
      name: of the run, for legends.
      series: steps and values of each metric, NaN and infinities included.
      hyperparameters: what it was started with, flat, as text.
      checkpoints: step, metrics and bytes of each that is kept.
      lives: the run, or its parts where it was resumed.
    """

    name: str
    series: dict[str, list[tuple[int, float]]]
    hyperparameters: dict[str, str] = field(default_factory=dict)
    checkpoints: list[tuple[int, dict[str, float], int]] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)


def read_record(directory: Path, name: str | None = None) -> Record:
    """Reads what a run left in its directory.

    Args:
      directory: of the run.
      name: for legends; the directory's last part when None.

    Raises:
      ConfigurationError: there are no metrics in it.
    """
    if (directory / METRICS).is_file():
        with open(directory / METRICS, newline="") as file:
            rows = [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]
    elif (directory / HISTORY_FILE).is_file():
        rows = rows_of_history(directory / HISTORY_FILE)
    else:
        raise ConfigurationError(
            f"'{directory}' holds no metrics ({METRICS} or {HISTORY_FILE}); give the directory of a run, such as "
            "lightjax_logs/version_0, that was trained with logger=True or with checkpoints."
        )
    return Record(
        name or directory.absolute().name,
        series_of(rows),
        _hyperparameters(directory / "hparams.json"),
        _checkpoints(directory),
        read_lives(directory),
    )


def rows_of_history(file: Path) -> list[dict[str, Any]]:
    """Reads the reports that are kept beside checkpoints; half a line at the end is left out."""
    rows = []
    for line in file.read_text().splitlines():
        try:
            step, _, values = json.loads(line)
        except ValueError:
            break
        rows.append({"step": step, **values})
    return rows


def series_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Turns rows `{"step", "epoch", name: value...}` into one series a name; what is no scalar is left out."""
    series: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "epoch") and isinstance(value, int | float):
                series.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in series.items()}


def add_life(directory: Path, life: Life) -> None:
    """Notes in a run's directory how a life of it ended."""
    lives = [*read_lives(directory), life]
    described = [{"stopped_by": one.stopped_by, "step": one.step, "times": one.times.described()} for one in lives]
    (directory / SUMMARY).write_text(json.dumps({"lives": described}, indent=1) + "\n")


def read_lives(directory: Path) -> list[Life]:
    """Reads how the lives of a run ended; [] where none has, or the file is not whole."""
    try:
        lives = json.loads((directory / SUMMARY).read_text())["lives"]
        return [Life(one["stopped_by"], one["step"], Times.read(one["times"])) for one in lives]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def finite(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Leaves out NaN and infinities."""
    return [(step, value) for step, value in points if math.isfinite(value)]


def _hyperparameters(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, part in value.items():
                add(f"{prefix}{name}/", part)
        else:
            flat[prefix.rstrip("/")] = value if isinstance(value, str) else json.dumps(value)

    add("", found)
    return flat


def _checkpoints(directory: Path) -> list[tuple[int, dict[str, float], int]]:
    found = []
    for path in reversed(steps_in(checkpoints_of(directory))):
        try:
            checkpoint = Checkpoint.open(path)
        except CheckpointError:
            continue
        size = sum(map(size_of, files_below(path)))
        found.append((checkpoint.step, dict(checkpoint.metrics), size))
    return found
