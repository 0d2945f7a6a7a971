"""How the lines of the bar are laid out in the width of the terminal."""

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["bar_line", "count", "fits", "join", "wrap"]

_MIN_BAR_WIDTH, _MAX_BAR_WIDTH = 10, 40
_MAX_LINES = 4  # of metrics below a bar


def bar_line(head: str, done: int, total: int | None, tail: str, width: int, time_s: float) -> Any:
    """A line of text, bar and text; the bar takes the room there is, and moves to and fro without a total."""
    from rich.progress_bar import ProgressBar

    room = width - _width(head) - _width(tail)
    bar_width = max(_MIN_BAR_WIDTH, min(_MAX_BAR_WIDTH, room))
    bar = ProgressBar(total=total, completed=done, width=bar_width, animation_time=time_s)
    return _Line(_text(head), bar, _text(tail, end="\n"))


def fits(head: str, tail: str, width: int) -> bool:
    """Whether there is room for a bar between the texts."""
    return _width(head) + _MIN_BAR_WIDTH + _width(tail) <= width


def wrap(pieces: list[str], width: int) -> Iterator[Any]:
    """At most four lines of whole pieces; a piece that is too wide alone is cut."""
    lines: list[str] = []
    for piece in pieces:
        if lines and _width(lines[-1]) + 2 + _width(piece) <= width:
            lines[-1] += f"  {piece}"
        else:
            lines.append(f"  {piece}")
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES - 1 :] = ["  ..."]
    return (_text(line, end="\n") for line in lines)


def join(pieces: Iterable[str]) -> str:
    """The pieces that are not empty, two spaces apart."""
    return "  ".join(piece for piece in pieces if piece)


def count(done: int, total: int | None) -> str:
    """How many are done, of how many where that is known."""
    return f"{done}" if total is None else f"{done}/{total}"


class _Line:
    """Renderables side by side on one line."""

    def __init__(self, *pieces: Any):
        self._pieces = pieces

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        return iter(self._pieces)


def _text(text: str, end: str = "") -> Any:
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="crop", end=end)


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
