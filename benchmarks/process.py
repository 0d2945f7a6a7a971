"""A contestant's process, seen from outside: started, given its turns, stopped in between."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent


class Failed(Exception):
    """A contestant gave no answer; the message says why."""


class ContestantProcess:
    """Runs `contestant.py` on a terminal of its own, so that progress bars do what they do for people.

    Between its turns the whole process is stopped (SIGSTOP): its background threads neither disturb the others nor
    finish work off the clock.

    Args:
      job: what `contestant.py` reads.
      timeout_s: how long one answer may take.
      platform: what JAX runs on: "cpu", "cuda", "tpu".
    """

    def __init__(self, job: dict[str, Any], timeout_s: float, platform: str = "cpu") -> None:
        self.timeout_s = timeout_s
        self.output = ""
        self._partial = b""
        self._directory = tempfile.TemporaryDirectory(prefix="lightjax_benchmark_", ignore_cleanup_errors=True)
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._terminal, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._process = subprocess.Popen(
            [
                sys.executable,
                BENCHMARKS / "contestant.py",
                json.dumps(job | {"commands": commands, "answers": answers}),
            ],
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            pass_fds=(commands, answers),
            cwd=self._directory.name,
            env=environment(self._directory.name, platform),
            start_new_session=True,
        )
        for descriptor in (commands, answers, terminal):
            os.close(descriptor)
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def turn(self) -> dict[str, Any]:
        """Lets it run until it answers.

        Raises:
          Failed: it ended or takes too long.
        """
        os.write(self._commands, b"go\n")
        self._signal(signal.SIGCONT)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Waits for an answer, then stops the process.

        Raises:
          Failed: it ended or takes too long.
        """
        while b"\n" not in self._partial:
            if not select.select([self._answers], [], [], self.timeout_s)[0]:
                raise Failed(f"no answer in {self.timeout_s:.0f} s")
            if not (more := os.read(self._answers, 1 << 16)):
                raise Failed(f"it ended without a word, exit status {self._status()}")
            self._partial += more
        self._signal(signal.SIGSTOP)
        line, self._partial = self._partial.split(b"\n", 1)
        return json.loads(line)

    def end(self) -> None:
        """Ends the process and removes its files."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        for descriptor in (self._commands, self._answers, self._terminal):
            os.close(descriptor)
        self._directory.cleanup()

    def _status(self) -> int | None:
        try:
            return self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return None

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _drain(self) -> None:
        while True:
            try:
                read = os.read(self._terminal, 1 << 16)
            except OSError:  # what Linux says where others return nothing: the other side is closed
                return
            if not read:
                return
            self.output = (self.output + read.decode(errors="replace"))[-50_000:]


def environment(home: str, platform: str = "cpu") -> dict[str, str]:
    """Returns the environment of a contestant: one platform, this checkout, and no files outside of its directory."""
    paths = [str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "JAX_PLATFORMS": platform,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # all contestants are alive at once
        "KERAS_BACKEND": "jax",
        "KERAS_HOME": home,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TERM": "xterm-256color",
    }
