"""LoggerView: a logger as a module sees it, `self.logger`, with Lightning's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lightjax.loggers import Background
from lightjax.loggers.logger import RICH_METHODS

if TYPE_CHECKING:
    from lightjax.run import Run

_CLIENTS = ("writer", "client", "run", "experiment")


class LoggerView:
    """A logger as a module sees it: what it is told goes where the trainer's own reports go.

    Before the run has a directory (in `setup`, `configure_optimizers` and `on_fit_start`), numbers and hyperparameters
    wait for it. Processes other than the first, and evaluations without a training before, log nothing and may call
    everything.

    Args:
      logger: one of the trainer's.
      number: its place among them.
      view: the trainer, as the module sees it.
      run: returns the run under way, None before there is one.
      waiting: takes what is to be done once there is a run.
    """

    def __init__(
        self, logger: Any, number: int, view: Any, run: Callable[[], Run | None], waiting: list[Callable[[], None]]
    ) -> None:
        self._logger = logger
        self._number = number
        self._view = view
        self._run = run
        self._waiting = waiting

    @property
    def experiment(self) -> Any:
        """The client the logger writes with: the tensorboardX writer of a `TensorBoardLogger`, the run of `wandb`.

        Raises:
          RuntimeError: the run has no directory yet.
        """
        sink = self._sink()
        if sink is None and self._is_silent():
            return _Silent()
        if sink is None:
            raise RuntimeError(
                f"self.logger.experiment of {type(self._logger).__name__} was asked for before the run has a directory "
                "to write to; ask in on_train_start or later. self.logger.log_hyperparams and log_metrics wait for it."
            )
        if isinstance(sink, Background):
            sink.drained(sink.finish_s)  # its thread opens the client
        for name in _CLIENTS:
            if (found := getattr(self._logger, name, None)) is not None:
                return found
        return self._logger

    @property
    def log_dir(self) -> str | None:
        """The directory of the run."""
        return self._view.log_dir

    save_dir = log_dir

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs numbers at once; reading them waits for the device."""
        step = self._view.global_step if step is None else step
        self._tell("log_metrics", step, {name: float(value) for name, value in metrics.items()})

    def log_hyperparams(self, params: Any, metrics: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Logs hyperparameters, and numbers to begin with."""
        self._tell("log_hyperparams", dict(params) if isinstance(params, Mapping) else vars(params))
        if metrics:
            self.log_metrics(metrics, 0)

    def _tell(self, method: str, *arguments: Any) -> None:
        if (sink := self._sink()) is not None:
            getattr(sink, method)(*arguments)
        elif not self._is_silent():
            self._waiting.append(partial(self._tell, method, *arguments))

    def _is_silent(self) -> bool:
        return self._run() is not None or not self._view.is_global_zero

    def _sink(self) -> Any:
        """Returns the logger as the run calls it; None before there is a run."""
        run = self._run()
        found = () if run is None else run.logger.loggers
        return found[self._number] if self._number < len(found) else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        sink = self._sink() if name in RICH_METHODS else None
        return getattr(self._logger if sink is None else sink, name)


class _Silent:
    """The client of a run that logs nothing here: whatever is asked of it does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __getitem__(self, _: Any) -> Any:
        return self

    def __setitem__(self, *_: Any) -> None:
        pass
