"""A CSV file with one row a step, whose newest rows can still change."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["CSVTable", "replace_file"]

_OPEN_ROWS = 64  # how many of the newest rows stay open for metrics that arrive late


class _Row:
    """The cells of one step by column, and where in the file they begin (None: not there yet)."""

    __slots__ = ("cells", "offset")

    def __init__(self, cells: dict[str, str], offset: int | None = None):
        self.cells = cells
        self.offset = offset


class CSVTable:
    """Rows by step, in memory until `flush` writes them.

    The file is a header, the closed rows, and the open rows. Open rows are the last 64, and after a resume
    those that the run will reach again; only they are held in memory and can change. A flush writes from the
    first changed row to the end of the file, or, when there are new columns, a whole new file.

    Args:
      path: the file; an existing one is continued.
      step: the first step that will be added. Rows of the file from this step on are open.

    Raises:
      ValueError: the file is there and is not of this kind.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        self._columns: dict[str, None] = dict.fromkeys(("step", "epoch"))  # an ordered set
        self._columns_on_disk = 0  # 0: there is no file yet
        self._end = 0  # the length of the file as it should be
        self._open: dict[int, _Row] = {}  # in the order of the file, then those that are not there yet
        self._changed: list[int] = []  # the steps of rows that differ from the file
        if path.exists():
            self._read(step)

    def add(self, step: int, cells: Mapping[str, str]) -> int:
        """Sets cells of the row of `step`; returns how many additions wait for a flush."""
        row = self._open.get(step)
        if row is None:
            row = self._open[step] = _Row({"step": str(step)})
        row.cells.update(cells)
        if not self._columns.keys() >= cells.keys():
            self._columns.update(dict.fromkeys(cells))
        self._changed.append(step)
        return len(self._changed)

    def flush(self) -> None:
        """Writes what changed to the file.

        Raises:
          OSError: it cannot be written; everything is kept for the next attempt.
        """
        if not self._changed:
            return
        if len(self._columns) == self._columns_on_disk:
            offsets = (self._open[step].offset for step in self._changed)
            start = min(self._end if offset is None else offset for offset in offsets)
            rows = [row for row in self._open.values() if row.offset is None or row.offset >= start]
            lines = [self._line_of(row) for row in rows]
            with open(self.path, "r+b") as file:
                file.seek(start)
                file.write(b"".join(lines))
                file.truncate()
        else:
            rows = list(self._open.values())
            lines = [self._line_of(row) for row in rows]
            closed = self._header_and_closed_rows()
            start = len(closed)
            replace_file(self.path, closed + b"".join(lines))
        # Only here, when the file is written: what failed above is tried again as it was.
        self._columns_on_disk = len(self._columns)
        self._end = start
        for row, line in zip(rows, lines, strict=True):
            row.offset = self._end
            self._end += len(line)
        self._close_rows(latest=self._changed[-1])
        self._changed.clear()

    def _read(self, step: int) -> None:
        content = self.path.read_bytes()
        lines = content.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]  # a killed process left half a line: it is cut off below
        if not lines:
            return
        try:
            columns = _cells(lines[0])
            if columns[:2] != ["step", "epoch"]:
                raise ValueError("no columns step and epoch")
            offset = len(lines[0])
            for line in lines[1:]:
                cells = dict(zip(columns, _cells(line), strict=True))
                if self._open or int(cells["step"]) >= step:
                    filled = {name: cell for name, cell in cells.items() if cell}
                    self._open[int(cells["step"])] = _Row(filled, offset)
                offset += len(line)
        except ValueError as error:
            raise ValueError(
                f"The metrics file '{self.path}' is there, but CSVLogger did not write it ({error}). Going "
                "on would damage it. Pass a free name, CSVLogger(filename=...), or move the file away."
            ) from error
        self._columns = dict.fromkeys(columns)
        self._columns_on_disk = len(columns)
        self._end = offset
        if offset < len(content):
            os.truncate(self.path, offset)

    def _line_of(self, row: _Row) -> bytes:
        return _line(row.cells.get(name, "") for name in self._columns)

    def _header_and_closed_rows(self) -> bytes:
        """The beginning of the file, as wide as the columns are now."""
        lines = [_line(self._columns)]
        if self._columns_on_disk:
            end = next((row.offset for row in self._open.values() if row.offset is not None), None)
            with open(self.path, "rb") as file:
                closed = file.read(end).splitlines(keepends=True)[1:]
            missing = [""] * (len(self._columns) - self._columns_on_disk)
            lines += [_line(_cells(line) + missing) for line in closed]
        return b"".join(lines)

    def _close_rows(self, latest: int) -> None:
        for step in list(self._open)[:-_OPEN_ROWS]:
            if step >= latest:  # written before a resume, and about to be reached again
                break
            del self._open[step]


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, meets the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([" ".join(cell.splitlines()) for cell in cells])
    return text.getvalue().encode()


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode()]))
