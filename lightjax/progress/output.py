"""Standard output, or another text file, that may go away while a run goes on."""

import io
import sys
from typing import Any, TextIO

from lightjax.distributed import is_main

__all__ = ["Output", "is_terminal"]


class Output:
    """Writes to a text file; once that fails (closed, broken pipe, full disk), to nowhere.

    Args:
      file: the file. None means what standard output is now, in process 0; nowhere in others.
    """

    def __init__(self, file: TextIO | None = None):
        if file is None and not is_main():
            file = io.StringIO()
        stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # not the bar that may hold it
        self._file: TextIO | None = stdout if file is None else file

    def write(self, text: str) -> int:
        """Writes text; characters that the file's encoding lacks become question marks."""
        if self._file is not None:
            try:
                self._file.write(text)
            except UnicodeEncodeError as error:
                self._file.write(text.encode(error.encoding, "replace").decode(error.encoding))
            except (OSError, ValueError):
                self._file = None
        return len(text)

    def flush(self) -> None:
        """Flushes the file."""
        if self._file is not None:
            try:
                self._file.flush()
            except (OSError, ValueError):
                self._file = None

    def write_line(self, text: str) -> None:
        """Writes a line and flushes it, so that who watches a log file sees it at once."""
        self.write(f"{text}\n")
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)  # isatty, fileno, encoding


def is_terminal(file: TextIO | None) -> bool:
    """Whether a person at a terminal sees what is written to the file."""
    try:
        return file is not None and file.isatty()
    except (AttributeError, ValueError, OSError):  # no such method, or closed
        return False
