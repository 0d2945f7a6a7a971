"""Metrics as TensorBoard event files, through tensorboardX."""

import itertools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightjax.loggers.client import flat, plain
from lightjax.loggers.directory import LogDirectory
from lightjax.loggers.media import as_image, as_values, figure_image, markdown, png

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

__all__ = ["TensorBoardLogger"]

# tensorboardX names its files by whole seconds and opens them with truncation: without a suffix of ours, a
# file opened again within a second would erase the first one.
_FILE_NUMBERS = itertools.count()
_QUEUE_SIZE = 1000  # events that may wait for tensorboardX's writing thread before log_metrics blocks
_FLUSH_SECONDS = 5
# TensorBoard shows a text whole: beyond this it makes the browser slow.
_LONGEST_GRAPH = 200_000


class TensorBoardLogger:
    """Writes metrics to TensorBoard event files in the directory itself (no sub-run).

    All metrics of one call are one event, handed to a writing thread. Files are flushed every 5 s and by
    `finish`; logging after `finish` makes a new event file, which TensorBoard reads as the same run.

    Hyperparameters are in the HParams tab, beside the metrics, and as a table in the Text tab; the compiled train step,
    as XLA wrote it, is there, too.

    Args:
      directory: where the event files go. None means the run directory, which the trainer gives with `start`.
      log_graph: write the compiled train step.

    Example:
      >>> import os, tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     logger = TensorBoardLogger(directory)
      ...     logger.log_metrics(1, {"epoch": 0, "train/loss": 0.5})
      ...     logger.finish()
      ...     [name.startswith("events.out.tfevents.") for name in os.listdir(directory)]
      [True]
    """

    in_background = False  # tensorboardX has a thread of its own

    def __init__(self, directory: str | os.PathLike[str] | None = None, *, log_graph: bool = True):
        self._directory = LogDirectory(directory, "TensorBoardLogger")
        self._wants_graph = log_graph
        self._names: dict[str, None] = {}  # of metrics, in the order in which they came
        self._writer: SummaryWriter | None = None
        self._event_types: Any = None
        self._hyperparams: dict[str, Any] = {}
        self._hparams_wait = False  # for all hyperparameters: TensorBoard believes the first that it reads
        self._purge_step: int | None = None

    def start(self, run_dir: Path) -> None:
        """Takes the directory of a run, if none was given to the constructor; see `Logger`."""
        if self._directory.start(run_dir):
            self.finish()
            self._hyperparams, self._names = {}, {}

    def resume(self, step: int) -> None:
        """Makes TensorBoard leave out what an earlier life of the run logged after `step`; see `Logger`."""
        self.finish()
        self._purge_step = step + 1

    @property
    def writer(self) -> "SummaryWriter":
        """The tensorboardX writer, for images, histograms, text and the like; opened when it is not.

        Raises:
          ModuleNotFoundError: tensorboardX is not installed.
          RuntimeError: there is no directory yet.
        """
        writer = self._writer
        if writer is None:
            directory = self._directory.path()
            tensorboardx, self._event_types = _import_tensorboardx()
            writer = self._writer = tensorboardx.SummaryWriter(
                str(directory),
                max_queue=_QUEUE_SIZE,
                flush_secs=_FLUSH_SECONDS,
                purge_step=self._purge_step,
                filename_suffix=f".{os.getpid()}.{next(_FILE_NUMBERS)}",
            )
            self._purge_step = None
        return writer

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands the metrics to the writing thread as one event; see `Logger.log_metrics`."""
        writer = self._writer or self.writer
        self._names.update(dict.fromkeys(metrics))
        if self._hparams_wait:
            self._write_hparams("start")
        # One event for all names: 60 us against 45 us for each name with add_scalar.
        value = self._event_types.Summary.Value
        summary = self._event_types.Summary(
            value=[value(tag=name, simple_value=float(number)) for name, number in metrics.items()]
        )
        assert writer.file_writer is not None  # held open until finish
        writer.file_writer.add_summary(summary, step)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Writes the hyperparameters for the HParams tab and as a table of text; see `Logger.log_hyperparams`."""
        self._hyperparams.update(params)
        self.writer.add_text("hyperparameters", markdown(["name", "value"], list(flat(self._hyperparams))), 0)
        self._hparams_wait = True

    def log_graph(self, step: int, name: str, text: Callable[[], str]) -> None:
        """Writes a compiled program as text; of a very long one the first 200,000 characters, which is said there."""
        if not self._wants_graph:
            return
        whole = text()
        shown = whole[:_LONGEST_GRAPH]
        more = f"\n... and {len(whole) - len(shown):,} characters more" if len(whole) > len(shown) else ""
        self.writer.add_text(name, f"```\n{shown}{more}\n```", step)

    def log_image(self, step: int, name: str, image: Any) -> None:
        """Writes an image; see `lightjax.loggers.media.as_image`.

        Raises:
          ModuleNotFoundError: pillow is not installed.
        """
        array = as_image(name, image)
        content = png(array)
        writer, height, width, channels = self.writer, *array.shape
        kinds = self._event_types.Summary
        picture = kinds.Image(height=height, width=width, colorspace=channels, encoded_image_string=content)
        assert writer.file_writer is not None  # held open until finish
        writer.file_writer.add_summary(kinds(value=[kinds.Value(tag=name, image=picture)]), step)

    def log_text(self, step: int, name: str, text: str) -> None:
        """Writes a text, shown as Markdown."""
        self.writer.add_text(name, text, step)

    def log_histogram(self, step: int, name: str, values: Any) -> None:
        """Writes the distribution of numbers."""
        self.writer.add_histogram(name, as_values(name, values), step)

    def log_figure(self, step: int, name: str, figure: Any) -> None:
        """Writes a matplotlib figure as an image."""
        self.log_image(step, name, figure_image(figure))

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Writes a table as Markdown."""
        self.writer.add_text(name, markdown(columns, rows), step)

    def flush(self) -> None:
        """Writes out what is waiting."""
        if self._writer is not None:
            self._writer.flush()

    def finish(self) -> None:
        """Writes out what is waiting and closes the event file."""
        if self._writer is not None:
            if self._hparams_wait:
                self._write_hparams("start")
            if self._hyperparams:
                self._write_hparams("end")
            self._writer.close()
            self._writer = None

    def _write_hparams(self, when: str) -> None:
        """Writes what the HParams tab reads: values at the start, which names there are once all are known."""
        from tensorboardX.summary import hparams

        self._hparams_wait = False
        writer = self.writer
        values = {name: plain(value) for name, value in flat(self._hyperparams)}
        experiment, start, end = hparams(values, {name: None for name in self._names if name != "epoch"})
        assert writer.file_writer is not None  # held open until finish
        for summary in [start] if when == "start" else [experiment, end]:
            writer.file_writer.add_summary(summary, 0)


class _WithoutTorch(MetaPathFinder):
    """Makes torch look not installed to the thread that created this; other threads import it as ever."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("torch is not needed here", name="torch")


def _import_tensorboardx() -> tuple[Any, Any]:
    """Imports tensorboardX, and the module of its event types, without torch.

    tensorboardX imports torch where it is installed, only for a type annotation: 2.3 s instead of 0.2 s, 180 MB of
    memory, and a framework that may take hold of the accelerator.
    """
    without_torch = _WithoutTorch()
    sys.meta_path.insert(0, without_torch)
    try:
        import tensorboardX
        from tensorboardX.proto import summary_pb2
    except ModuleNotFoundError as error:
        if error.name != "tensorboardX":
            raise
        raise ModuleNotFoundError(
            "TensorBoardLogger could not import tensorboardX: it is not installed here. Event files are "
            "written through it. Run `pip install tensorboardX`, or log to CSV files alone: "
            "Trainer(logger=lightjax.loggers.CSVLogger()).",
            name="tensorboardX",
        ) from error
    finally:
        sys.meta_path.remove(without_torch)
    return tensorboardX, summary_pb2
