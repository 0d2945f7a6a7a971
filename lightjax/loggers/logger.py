"""What a logger is, and several of them as one."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightjax.loggers.media import as_image, as_values

__all__ = ["RICH_METHODS", "Logger", "LoggerCollection"]

# What a logger may have beside metrics: `(step, name, ...)`, and `log_artifact(name, path)`.
RICH_METHODS = (
    "log_image",
    "log_text",
    "log_histogram",
    "log_figure",
    "log_table",
    "log_artifact",
    "log_graph",
)


@runtime_checkable
class Logger(Protocol):
    """Where the metrics of a run go. Any object with these three methods is a logger.

    A logger may also have `start(run_dir: pathlib.Path)`. The trainer then calls it before the first log
    of a run with the run's own directory; a logger that was given a place of its own ignores it. It may have
    `resume(step: int)`, called after `start` where a run goes on after `step`: what it logged beyond is logged anew.

    It may have any of `log_image`, `log_text`, `log_histogram`, `log_figure`, `log_table`, `log_artifact` and
    `log_graph`, as they are in `LoggerCollection`; `run.logger` passes such a call on to the loggers that have the
    method.

    All methods are called on one process (the first) and one thread, with values already on the host. That thread is
    the logger's own (see `Background`), unless the logger says `in_background = False`: then it is called from the
    training loop, must cost tens of microseconds, and what it raises ends the run.
    """

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics.

        Args:
          step: the number of optimizer steps done. Several calls may name the same step, each with
            metrics of its own. Steps ascend, except after a resume and where evaluation is late.
          metrics: the values by name, such as `{"epoch": 3, "train/loss": 0.25}`. `epoch` is the epoch's
            number; NaN and infinities may appear.
        """
        ...

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Records what the run was started with.

        Args:
          params: values of any kind by name, possibly nested. A later call adds to an earlier one.
        """
        ...

    def finish(self) -> None:
        """Writes out everything recorded and lets go of files and connections.

        It may be called twice. A later `log_metrics` opens the logger again and continues.
        """
        ...


class LoggerCollection:
    """Several loggers, used as one; with none of them, every method does nothing.

    Args:
      loggers: the loggers, called in this order.

    Example:
      >>> class Memory:
      ...     def __init__(self): self.rows = []
      ...     def log_metrics(self, step, metrics): self.rows.append((step, dict(metrics)))
      ...     def log_hyperparams(self, params): pass
      ...     def finish(self): pass
      >>> first, second = Memory(), Memory()
      >>> loggers = LoggerCollection([first, second])
      >>> loggers.log_metrics(10, {"train/loss": 0.5})
      >>> first.rows == second.rows == [(10, {"train/loss": 0.5})]
      True
    """

    def __init__(self, loggers: Iterable[Logger] = ()):
        self.loggers: tuple[Logger, ...] = tuple(loggers)
        self._run_dir: Path | None = None
        self._finished = False

    def start(self, run_dir: Path, resumed_at: int | None = None) -> None:
        """Tells every logger that wants to know it the directory of the run.

        Args:
          run_dir: the directory; it exists.
          resumed_at: the step after which a resumed run goes on; None for a new run.
        """
        self._run_dir = run_dir
        self._finished = False
        for logger in self.loggers:
            start = getattr(logger, "start", None)
            if start is not None:
                start(run_dir)
            resume = getattr(logger, "resume", None)
            if resume is not None and resumed_at is not None:
                resume(resumed_at)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics with every logger; see `Logger.log_metrics`."""
        self._reopen()
        for logger in self.loggers:
            logger.log_metrics(step, metrics)

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Records hyperparameters with every logger; see `Logger.log_hyperparams`."""
        self._reopen()
        for logger in self.loggers:
            logger.log_hyperparams(params)

    def log_image(self, step: int, name: str, image: Any) -> None:
        """Records an image with the loggers that can.

        Args:
          step: optimizer steps done.
          name: of the image.
          image: uint8, or floats from 0 to 1; [height, width] or [height, width, channels].

        Raises:
          MetricError: it has another rank, dtype or range.
        """
        self._rich("log_image", step, name, as_image(name, image))

    def log_text(self, step: int, name: str, text: str) -> None:
        """Records a text (Markdown, where the logger shows it) with the loggers that can."""
        self._rich("log_text", step, name, str(text))

    def log_histogram(self, step: int, name: str, values: Any) -> None:
        """Records the distribution of numbers with the loggers that can; NaN and infinities are left out.

        Raises:
          MetricError: no value is finite.
        """
        self._rich("log_histogram", step, name, as_values(name, values))

    def log_figure(self, step: int, name: str, figure: Any) -> None:
        """Records a matplotlib figure with the loggers that can; do not change it afterwards."""
        self._rich("log_figure", step, name, figure)

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Records a table with the loggers that can."""
        self._rich("log_table", step, name, list(columns), [list(row) for row in rows])

    def log_artifact(self, name: str, path: str | os.PathLike[str]) -> None:
        """Records a file or a directory with the loggers that can; it has to stay until the run ends."""
        self._rich("log_artifact", name, path)

    def log_graph(self, step: int, name: str, text: Callable[[], str]) -> None:
        """Records a compiled program with the loggers that can.

        Args:
          step: optimizer steps done.
          name: of the program.
          text: makes the text, which takes a while for a large program; not called where nobody wants it.
        """
        self._rich("log_graph", step, name, text)

    def flush(self) -> None:
        """Brings what was logged to disk, with every logger that has a `flush`."""
        for logger in self.loggers:
            flush = getattr(logger, "flush", None)
            if flush is not None:
                flush()

    def finish(self) -> None:
        """Finishes every logger, also when one of them fails.

        Raises:
          Exception: what a logger raised; an `ExceptionGroup` when several did.
        """
        self._finished = True
        errors: list[Exception] = []
        for logger in self.loggers:
            try:
                logger.finish()
            except Exception as error:  # the others still hold what they have not yet written
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup("several loggers failed to finish", errors)

    def _rich(self, method: str, *arguments: Any) -> None:
        self._reopen()
        for logger in self.loggers:
            log = getattr(logger, method, None)
            if log is not None:
                log(*arguments)

    def _reopen(self) -> None:
        if self._finished:
            self._finished = False
            if self._run_dir is not None:
                self.start(self._run_dir)
