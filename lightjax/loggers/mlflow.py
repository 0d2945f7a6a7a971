"""Metrics in MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lightjax.loggers.client import ClientLogger, flat
from lightjax.loggers.media import as_image, figure_image, markdown

# MLflow takes letters, digits and these in names; anything else it refuses.
_FORBIDDEN = re.compile(r"[^\w\-. :/]")
_MOST_PARAMS = 100  # in one call


class MLflowLogger(ClientLogger):
    """Writes through `mlflow` (`pip install lightjax[mlflow]`: mlflow-skinny, which has all that is needed here).

    Args:
      experiment_name: runs of one experiment are compared by MLflow.
      run_name: of the run; chosen by MLflow when None.
      tracking_uri: a server or database. None means the environment's MLFLOW_TRACKING_URI, or else the file `mlflow.db`
        beside the run directory: `mlflow ui --backend-store-uri sqlite:///lightjax_logs/mlflow.db`.
      directory: for the file. None means the run directory.
      tags: of the run.
    """

    package = "mlflow"
    extra = "mlflow"

    def __init__(
        self,
        experiment_name: str = "lightjax",
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, {})
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.tracking_uri = tracking_uri
        self.tags = dict(tags or {})
        self.run_id: str | None = None

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a value to each metric, in one request; see `Logger.log_metrics`."""
        client = self.client
        metric = import_module("mlflow.entities").Metric
        now_ms = int(time.time() * 1000)
        client.log_batch(
            self.run_id,
            metrics=[metric(_name(name), float(value), now_ms, int(step)) for name, value in metrics.items()],
        )

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Adds parameters; one that has another value already is left as it is, since MLflow never changes them."""
        client = self.client
        param = import_module("mlflow.entities").Param
        known = client.get_run(self.run_id).data.params
        new = [param(_name(name), str(value)[:6000]) for name, value in flat(params) if _name(name) not in known]
        for first in range(0, len(new), _MOST_PARAMS):
            client.log_batch(self.run_id, params=new[first : first + _MOST_PARAMS])

    def log_image(self, step: int, name: str, image: Any) -> None:
        """Adds an image; see `lightjax.loggers.media.as_image`."""
        from PIL import Image

        array = as_image(name, image)
        picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        self.client.log_image(self.run_id, picture, f"{_name(name)}/step_{step}.png")

    def log_figure(self, step: int, name: str, figure: Any) -> None:
        """Adds a matplotlib figure as an image."""
        self.log_image(step, name, figure_image(figure))

    def log_text(self, step: int, name: str, text: str) -> None:
        """Adds a text file."""
        self.client.log_text(self.run_id, text, f"{_name(name)}/step_{step}.txt")

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table as a Markdown file."""
        self.client.log_text(self.run_id, markdown(columns, rows), f"{_name(name)}/step_{step}.md")

    def log_artifact(self, name: str, path: str | os.PathLike[str]) -> None:
        """Adds a file or a directory."""
        log = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
        log(self.run_id, str(path), _name(name))

    def _open(self, directory: Path) -> Any:
        root = directory.parent.absolute()
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        client = self.module.MlflowClient(uri or f"sqlite:///{root / 'mlflow.db'}")
        if self.run_id is None:
            experiment = client.get_experiment_by_name(self.experiment_name)
            place = {} if uri else {"artifact_location": (root / "mlflow_artifacts").as_uri()}
            found = experiment.experiment_id if experiment else client.create_experiment(self.experiment_name, **place)
            self.run_id = client.create_run(found, run_name=self.run_name, tags=self.tags).info.run_id
        else:
            client.update_run(self.run_id, status="RUNNING")
        return client

    def _close(self, client: Any) -> None:
        client.set_terminated(self.run_id)

    def _forget(self) -> None:
        self.run_id = None


def _name(name: str) -> str:
    return _FORBIDDEN.sub("_", name)
