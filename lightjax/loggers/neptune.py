"""Metrics in Neptune (legacy)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lightjax.loggers.client import ClientLogger, flat, plain
from lightjax.loggers.media import as_image, figure_image, markdown, png


class NeptuneLogger(ClientLogger):
    """Writes through `neptune` (`pip install lightjax[neptune]`). Legacy: for runs kept by the offline client.

    NaN and infinities, which Neptune refuses in series, are left out.

    Args:
      project: "workspace/name"; not needed offline.
      mode: "offline" writes `.neptune/offline` in the directory; "async" sends.
      directory: for the files. None means the run directory.
      options: further arguments of `neptune.init_run`.
    """

    package = "neptune"
    extra = "neptune"

    def __init__(
        self,
        project: str | None = None,
        *,
        mode: str = "offline",
        directory: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        quiet = {
            "source_files": [],
            "capture_hardware_metrics": False,
            "capture_stdout": False,
            "capture_stderr": False,
        }
        super().__init__(directory, {**quiet, "project": project, "mode": mode, **options})

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a value to each series; see `Logger.log_metrics`."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self.client[f"metrics/{name}"].append(float(value), step=step)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Sets parameters."""
        for name, value in flat(params):
            self.client[f"parameters/{name}"] = str(value) if value is None else plain(value)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Adds a text to a series."""
        self.client[f"texts/{name}"].append(text, step=step)

    def log_image(self, step: int, name: str, image: Any) -> None:
        """Adds an image to a series; see `lightjax.loggers.media.as_image`."""
        array = as_image(name, image)
        picture = import_module("neptune.types").File.from_content(png(array), extension="png")
        self.client[f"images/{name}"].append(picture, step=step)

    def log_figure(self, step: int, name: str, figure: Any) -> None:
        """Adds a matplotlib figure to a series of images."""
        self.log_image(step, name, figure_image(figure))

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table as Markdown to a series of texts."""
        self.log_text(step, name, markdown(columns, rows))

    def log_artifact(self, name: str, path: str | os.PathLike[str]) -> None:
        """Adds a file."""
        self.client[f"artifacts/{name}"].upload(str(path))

    def _open(self, directory: Path) -> Any:
        # The client reads where its files go when it begins a run.
        os.environ["NEPTUNE_DATA_DIRECTORY"] = str(directory.absolute() / ".neptune")
        return self.module.init_run(**self._options)

    def _close(self, client: Any) -> None:
        client.stop()
