"""What loggers that write through a client of somebody else's share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lightjax.loggers.directory import LogDirectory


class ClientLogger:
    """Opens a client when it is first needed, and keeps what the subclasses need to know.

    Subclasses say how to open, write and close; the trainer runs them in the background. `log_image(step, name, image)`
    and the like take what `lightjax.loggers.media` describes.

    Args:
      directory: where files go. None means the run directory.
      options: further arguments of the client's.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self, directory: Any, options: Mapping[str, Any]) -> None:
        self._directory = LogDirectory(directory, type(self).__name__)
        self._options = dict(options)
        self._client: Any = None

    def check(self) -> None:
        """Looks for the client.

        Raises:
          ModuleNotFoundError: it is not installed; says what to install.
        """
        if find_spec(self.package) is None:
            raise ModuleNotFoundError(
                f"{type(self).__name__} writes through the package {self.package!r}, which is not installed here. Run "
                f"`pip install lightjax[{self.extra}]`, or leave the logger out.",
                name=self.package,
            )

    def start(self, run_dir: Path) -> None:
        """Takes the directory of a run, if none was given to the constructor; see `Logger`."""
        if self._directory.start(run_dir):
            self.finish()
            self._forget()

    @property
    def module(self) -> Any:
        """The client's package, imported on use."""
        return import_module(self.package)

    @property
    def client(self) -> Any:
        """The client's own run, for whatever it does beyond this class; opened when it is not."""
        if self._client is None:
            self.check()
            self._client = self._open(self._directory.path())
        return self._client

    def finish(self) -> None:
        """Writes out everything and closes the client's run; a later call opens it again."""
        client, self._client = self._client, None
        if client is not None:
            self._close(client)

    def _open(self, directory: Path) -> Any:
        raise NotImplementedError

    def _close(self, client: Any) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        """Forgets the run before, so that another one is begun."""


def flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flattens nested hyperparameters: `{"optimizer": {"lr": 0.1}}` is `optimizer/lr`."""
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def plain(value: Any) -> Any:
    """Returns what every client can keep: numbers, strings, truth values and None; others by their repr."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
