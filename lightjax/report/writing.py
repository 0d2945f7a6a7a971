"""Writing: what a report is written as follows from the ending of its file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightjax.errors import ConfigurationError
from lightjax.report.figure import FORMATS, figure, write_figure
from lightjax.report.page import write_page
from lightjax.report.record import Record


def write(
    records: Sequence[Record], path: str | os.PathLike[str] | None = None, names: Sequence[str] | None = None
) -> Any:
    """Writes a page or a figure of runs, by the ending of the file.

    Args:
      records: the runs.
      path: `.html`, `.png`, `.svg` or `.pdf`; None for no file.
      names: quantities or metrics to show; all when None.

    Returns:
      The path; a matplotlib `Figure` where there is none.

    Raises:
      ConfigurationError: there is nothing to draw, or the file has another ending.
      ModuleNotFoundError: a figure was asked for, and matplotlib is not installed.
    """
    if path is None:
        return figure(records, names)
    ending = Path(path).suffix.lower()
    if ending in (".html", ".htm"):
        return write_page(records, path, names)
    if ending in FORMATS:
        return write_figure(records, path, names)
    raise ConfigurationError(f"A report cannot be written as {str(path)!r}; write .html, {', '.join(FORMATS)}.")
