"""The directory a file-writing logger writes to."""

import os
from pathlib import Path

__all__ = ["LogDirectory"]


class LogDirectory:
    """A directory that is given by the user, or else by the run the logger is started in.

    Args:
      given: the user's directory, or None to wait for `start`.
      owner: the logger's class name, for the error.
    """

    def __init__(self, given: str | os.PathLike[str] | None, owner: str):
        self._given = given is not None
        self._path = Path(given) if given is not None else None
        self._owner = owner

    def start(self, run_dir: Path) -> bool:
        """Takes the run's directory unless the user gave one; returns whether the place changed."""
        if self._given or self._path == Path(run_dir):
            return False
        self._path = Path(run_dir)
        return True

    def path(self) -> Path:
        """The directory, made when missing.

        Raises:
          RuntimeError: there is none yet.
          OSError: it cannot be made.
        """
        if self._path is None:
            raise RuntimeError(
                f"{self._owner} was asked to log, but it has no directory: none was given, and no run has "
                f"started it. Write {self._owner}('my_logs'), or hand the logger to Trainer(logger=...), "
                "which starts it in the run's directory."
            )
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(
                error.errno,
                f"{self._owner} could not make its directory '{self._path}' ({error.strerror}). Give it one you may "
                f"write to, or none, {self._owner}(), for the directory of the run",
            ) from error
        return self._path
