"""The user's own file and line: where a torch operation was asked for."""

from __future__ import annotations

import os
import sys
from traceback import walk_tb
from types import FrameType, TracebackType

import torch

# Frames of these are machinery; whatever else is on the stack is the user's, or a library of the user's.
_HIDDEN = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
    os.path.dirname(os.__file__) + os.sep + "contextlib.py",
    "<",
)


def current_line() -> str | None:
    """Returns `file:line` of the innermost frame of the user's that is running; None without one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_HIDDEN):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def raised_by_user(traceback: TracebackType | None) -> bool:
    """Says whether an error was raised by the user's own code, or a library of the user's."""
    frames = [frame for frame, _ in walk_tb(traceback)]
    return bool(frames) and not frames[-1].f_code.co_filename.startswith(_HIDDEN)


def user_line(traceback: TracebackType | None) -> str:
    """Returns `file:line in function` of the innermost frame of the user's that an error went through."""
    found = "the program"
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_HIDDEN):
            found = f"{code.co_filename}:{traceback.tb_lineno} in {code.co_name}"
        traceback = traceback.tb_next
    return found
