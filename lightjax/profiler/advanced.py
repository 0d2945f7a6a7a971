"""AdvancedProfiler: the functions that take the time of each action."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightjax.profiler.simple import SimpleProfiler

if TYPE_CHECKING:
    import cProfile


class AdvancedProfiler(SimpleProfiler):
    """Runs Python's cProfile in every action of the loop's thread, and prints its heaviest functions.

    It slows Python down, so that shares shift from the device to the host; the numbers of training stay the same.
    What it finds is also written to `profile_ACTION.pstats` in the run's directory, for snakeviz and the like.

    Args:
      functions: shown of each action.
    """

    def __init__(self, functions: int = 10) -> None:
        super().__init__()
        self.functions = functions
        self._directory: Path | None = None
        self._profiles: dict[str, cProfile.Profile] = {}
        self._open: list[cProfile.Profile] = []
        self._thread = 0

    def start(self, directory: Path | None) -> None:
        """Begins a run; see `Profiler.start`."""
        super().start(directory)
        self._directory, self._profiles, self._open = directory, {}, []
        self._thread = threading.get_ident()

    def profile(self, action: str) -> AbstractContextManager[Any]:
        """Returns a context whose functions are those of an action."""
        times = super().profile(action)
        return self._watched(action, times) if threading.get_ident() == self._thread and self._running else times

    def finish(self) -> None:
        """Ends the run, and writes the files."""
        super().finish()
        if self._directory is not None:
            for action, profile in self._profiles.items():
                profile.dump_stats(self._directory / f"profile_{action.replace(' ', '_').replace('/', '_')}.pstats")

    def report(self) -> str:
        """Returns the table, and the heaviest functions of each action, the longest action first."""
        import pstats

        seconds = {one.name: one.seconds for one in self.times().actions}
        parts = [super().report()]
        for action in sorted(self._profiles, key=lambda action: -seconds.get(action, 0.0)):
            text = io.StringIO()
            stats = pstats.Stats(self._profiles[action], stream=text)
            stats.strip_dirs().sort_stats("tottime").print_stats(self.functions)
            lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
            parts.append("\n".join([f"{action}:", *lines]))
        return "\n\n".join(parts)

    @contextmanager
    def _watched(self, action: str, times: AbstractContextManager[Any]) -> Iterator[None]:
        import cProfile

        # Two profiles cannot run at once: the outer action's rests while the inner one's runs.
        profile = self._profiles.setdefault(action, cProfile.Profile())
        if self._open:
            self._open[-1].disable()
        self._open.append(profile)
        profile.enable()
        try:
            with times:
                yield
        finally:
            profile.disable()
            self._open.pop()
            if self._open:
                self._open[-1].enable()
