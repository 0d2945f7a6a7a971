"""Metrics in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightjax.loggers.client import ClientLogger
from lightjax.loggers.media import as_image, as_values, figure_image


class WandbLogger(ClientLogger):
    """Writes through `wandb` (`pip install lightjax[wandb]`).

    Every row carries its `step`, which is the horizontal axis of all charts: late rows are kept, too.

    Args:
      project: of W&B.
      name: of the run; chosen by W&B when None.
      directory: where wandb keeps its files. None means the run directory.
      mode: "online", "offline" (sent later with `wandb sync`), or as the environment says when None.
      options: further arguments of `wandb.init`.
    """

    package = "wandb"
    extra = "wandb"

    def __init__(
        self,
        project: str | None = None,
        *,
        name: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        mode: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(directory, {"project": project, "name": name, "mode": mode} | options)
        self._id: str | None = None

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row; see `Logger.log_metrics`."""
        self.client.log({**metrics, "step": step})

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Adds to the run's configuration."""
        self.client.config.update(dict(params), allow_val_change=True)

    def log_image(self, step: int, name: str, image: Any) -> None:
        """Adds an image; see `lightjax.loggers.media.as_image`."""
        array = as_image(name, image)
        picture = self.module.Image(array[..., 0] if array.shape[-1] == 1 else array)
        self.client.log({name: picture, "step": step})

    def log_text(self, step: int, name: str, text: str) -> None:
        """Adds a text, as a table of one cell."""
        self.log_table(step, name, ["text"], [[text]])

    def log_histogram(self, step: int, name: str, values: Any) -> None:
        """Adds a histogram of all values."""
        self.client.log({name: self.module.Histogram(as_values(name, values)), "step": step})

    def log_figure(self, step: int, name: str, figure: Any) -> None:
        """Adds a matplotlib figure as an image."""
        self.log_image(step, name, figure_image(figure))  # wandb itself wants a figure of pyplot's

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table."""
        self.client.log(
            {name: self.module.Table(columns=list(columns), data=[list(row) for row in rows]), "step": step}
        )

    def log_artifact(self, name: str, path: str | os.PathLike[str]) -> None:
        """Adds a file or a directory as an artifact."""
        artifact = self.module.Artifact(name.replace("/", "-"), type="file")
        (artifact.add_dir if Path(path).is_dir() else artifact.add_file)(str(path))
        self.client.log_artifact(artifact)

    def _open(self, directory: Path) -> Any:
        resume = {} if self._id is None else {"id": self._id, "resume": "allow"}
        run = self.module.init(dir=str(directory), reinit="create_new", **{**self._options, **resume})
        self._id = run.id
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run

    def _close(self, client: Any) -> None:
        client.finish()

    def _forget(self) -> None:
        self._id = None
