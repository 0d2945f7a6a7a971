"""Metrics in Polyaxon."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lightjax.loggers.client import ClientLogger, flat, plain
from lightjax.loggers.media import as_image, as_values, figure_image, markdown


class PolyaxonLogger(ClientLogger):
    """Writes through `traceml`, the tracking of Polyaxon (`pip install lightjax[polyaxon]`).

    Args:
      project: of Polyaxon.
      offline: write files in the directory alone; False needs a Polyaxon host.
      directory: for the files. None means `polyaxon` in the run directory.
      options: further arguments of `traceml.tracking.run.Run`.
    """

    package = "traceml"
    extra = "polyaxon"

    def __init__(
        self,
        project: str | None = None,
        *,
        offline: bool = False,
        directory: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(directory, options)
        self.project = project
        self.offline = offline

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a value to each metric; see `Logger.log_metrics`."""
        self.client.log_metrics(step=step, **{_name(name): float(value) for name, value in metrics.items()})

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Adds inputs."""
        self.client.log_inputs(**{name: plain(value) for name, value in flat(params)})

    def log_image(self, step: int, name: str, image: Any) -> None:
        """Adds an image; see `lightjax.loggers.media.as_image`."""
        self.client.log_image(as_image(name, image), name=_name(name), step=step, dataformats="HWC")

    def log_text(self, step: int, name: str, text: str) -> None:
        """Adds a text."""
        self.client.log_text(name=_name(name), text=text, step=step)

    def log_figure(self, step: int, name: str, figure: Any) -> None:
        """Adds a matplotlib figure as an image."""
        self.log_image(step, name, figure_image(figure))

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table as Markdown text."""
        self.log_text(step, name, markdown(columns, rows))

    def log_histogram(self, step: int, name: str, values: Any) -> None:
        """Adds a histogram of all values."""
        self.client.log_histogram(name=_name(name), values=as_values(name, values), bins="auto", step=step)

    def log_artifact(self, name: str, path: str | os.PathLike[str]) -> None:
        """Adds a file."""
        self.client.log_artifact(path=str(path), name=_name(name))

    def _open(self, directory: Path) -> Any:
        place = directory / "polyaxon"
        place.mkdir(exist_ok=True)
        quiet = {"track_code": False, "track_env": False, "track_logs": False, "collect_resources": False}
        offline = {"is_offline": True, "artifacts_path": str(place), "is_new": True} if self.offline else {}
        return import_module("traceml.tracking.run").Run(project=self.project, **{**quiet, **offline, **self._options})

    def _close(self, client: Any) -> None:
        client.log_succeeded()
        client.end()


def _name(name: str) -> str:
    # A metric is a file of its name.
    return name.replace("/", "-")
