"""Metrics in ClearML."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightjax.loggers.client import ClientLogger, flat, plain
from lightjax.loggers.media import as_image, as_values, figure_image


class ClearMLLogger(ClientLogger):
    """Writes through `clearml` (`pip install lightjax[clearml]`).

    "train/loss" is the curve "train" of the chart "loss". NaN and infinities, which ClearML would turn into zeros, are
    left out. What ClearML would gather by itself is off.

    Args:
      project: of ClearML.
      name: of the task.
      offline: write files alone (`Task.set_offline`), imported later with `Task.import_offline_session`.
      options: further arguments of `clearml.Task.init`.
    """

    package = "clearml"
    extra = "clearml"

    def __init__(
        self, project: str = "lightjax", *, name: str | None = None, offline: bool = False, **options: Any
    ) -> None:
        quiet = {
            "auto_connect_arg_parser": False,
            "auto_connect_frameworks": False,
            "auto_connect_streams": False,
            "auto_resource_monitoring": False,
            "reuse_last_task_id": False,
        }
        super().__init__(None, {**quiet, "project_name": project, "task_name": name, **options})
        self.offline = offline

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each curve; see `Logger.log_metrics`."""
        logger = self.client.get_logger()
        for name, value in metrics.items():
            if not math.isfinite(value):
                continue
            stage, _, rest = name.partition("/")
            logger.report_scalar(rest or name, stage if rest else name, float(value), step)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Adds parameters."""
        self.client.set_parameters({name: plain(value) for name, value in flat(params)})

    def log_image(self, step: int, name: str, image: Any) -> None:
        """Adds an image; see `lightjax.loggers.media.as_image`."""
        array = as_image(name, image)
        if array.shape[-1] == 4:  # ClearML writes JPEG files, which know no transparency: on white
            alpha = array[..., 3:] / 255
            array = np.rint(alpha * array[..., :3] + 255 * (1 - alpha)).astype(np.uint8)
        self.client.get_logger().report_image(name, name, step, image=array[..., 0] if array.shape[-1] == 1 else array)

    def log_figure(self, step: int, name: str, figure: Any) -> None:
        """Adds a matplotlib figure as an image."""
        self.log_image(step, name, figure_image(figure))

    def log_text(self, step: int, name: str, text: str) -> None:
        """Adds a text to the task's log."""
        self.client.get_logger().report_text(f"{name} (step {step}): {text}", print_console=False)

    def log_histogram(self, step: int, name: str, values: Any) -> None:
        """Adds a histogram of all values."""
        counts, edges = np.histogram(as_values(name, values), bins=50)
        self.client.get_logger().report_histogram(
            name, name, counts, step, xlabels=[f"{edge:.3g}" for edge in edges[:-1]]
        )

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table."""
        self.client.get_logger().report_table(name, name, step, table_plot=[list(columns), *map(list, rows)])

    def log_artifact(self, name: str, path: str | os.PathLike[str]) -> None:
        """Adds a file or a directory."""
        self.client.upload_artifact(name, str(path))

    def _open(self, directory: Path) -> Any:
        task = self.module.Task
        # It would fork a process that reports, which locks up beside JAX's threads and is not waited for: threads do it
        # (report_use_subprocess in clearml.conf).
        task._report_subprocess_enabled = False
        if self.offline:
            task.set_offline(True)
        return task.init(**{**self._options, "task_name": self._options["task_name"] or directory.name})

    def _close(self, client: Any) -> None:
        client.close()
