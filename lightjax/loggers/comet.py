"""Metrics in Comet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightjax.loggers.client import ClientLogger, flat, plain
from lightjax.loggers.media import as_image, as_values, markdown

# What comet would otherwise gather by itself: patched libraries, the program's output, its code.
_QUIET = {
    "log_code": False,
    "log_env_details": False,
    "log_graph": False,
    "auto_param_logging": False,
    "auto_metric_logging": False,
    "auto_output_logging": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "display_summary_level": 0,
}


class CometLogger(ClientLogger):
    """Writes through `comet_ml` (`pip install lightjax[comet]`).

    Args:
      project: of Comet.
      name: of the experiment; chosen by Comet when None.
      offline: write a zip file in the directory, sent later with `comet upload`; False needs an API key.
      directory: for the file. None means the run directory.
      options: further arguments of `comet_ml.Experiment`. What Comet would gather by itself is off: code, output, git,
        the machine.
    """

    package = "comet_ml"
    extra = "comet"

    def __init__(
        self,
        project: str | None = None,
        *,
        name: str | None = None,
        offline: bool = False,
        directory: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(directory, {**_QUIET, "project_name": project, **options})
        self.name = name
        self.offline = offline

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a value to each metric; see `Logger.log_metrics`."""
        self.client.log_metrics(dict(metrics), step=step)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Adds parameters."""
        self.client.log_parameters({name: plain(value) for name, value in flat(params)})

    def log_image(self, step: int, name: str, image: Any) -> None:
        """Adds an image; see `lightjax.loggers.media.as_image`."""
        array = as_image(name, image)
        self.client.log_image(array[..., 0] if array.shape[-1] == 1 else array, name=name, step=step)

    def log_figure(self, step: int, name: str, figure: Any) -> None:
        """Adds a matplotlib figure."""
        self.client.log_figure(figure_name=name, figure=figure, step=step)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Adds a text."""
        self.client.log_text(text, step=step, metadata={"name": name})

    def log_histogram(self, step: int, name: str, values: Any) -> None:
        """Adds a histogram of all values."""
        self.client.log_histogram_3d(as_values(name, values), name=name, step=step)

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table as Markdown text."""
        self.log_text(step, name, markdown(columns, rows))

    def log_artifact(self, name: str, path: str | os.PathLike[str]) -> None:
        """Adds a file or a directory."""
        if Path(path).is_dir():
            self.client.log_asset_folder(str(path), log_file_name=True)
        else:
            self.client.log_asset(str(path), file_name=name)

    def _open(self, directory: Path) -> Any:
        if self.offline:
            experiment = self.module.OfflineExperiment(offline_directory=str(directory), **self._options)
        else:
            experiment = self.module.Experiment(**self._options)
        if self.name is not None:
            experiment.set_name(self.name)
        return experiment

    def _close(self, client: Any) -> None:
        client.end()
