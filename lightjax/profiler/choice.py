"""The choice of a profiler."""

from __future__ import annotations

from lightjax.errors import ConfigurationError
from lightjax.profiler.advanced import AdvancedProfiler
from lightjax.profiler.memory import MemoryProfiler
from lightjax.profiler.profiler import Profiler
from lightjax.profiler.simple import SimpleProfiler
from lightjax.profiler.trace import JaxProfiler

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "jax": JaxProfiler,
    "memory": MemoryProfiler,
}


def make_profiler(wanted: str | Profiler | None) -> Profiler:
    """Makes a profiler of its name.

    Args:
      wanted: one of `PROFILERS`, a profiler, or None for one that prints nothing.

    Raises:
      ConfigurationError: it is none of these.
    """
    if conflict := profiler_conflict(wanted):
        raise ConfigurationError(conflict)
    if isinstance(wanted, str):
        return PROFILERS[wanted]()
    return wanted or Profiler()


def profiler_conflict(wanted: object) -> str | None:
    """Says what is wrong with a wanted profiler; None where nothing is."""
    if wanted is None or isinstance(wanted, Profiler) or (isinstance(wanted, str) and wanted in PROFILERS):
        return None
    names = ", ".join(f"'{name}'" for name in PROFILERS)
    return (
        f"profiler={wanted!r} is no profiler: write one of {names}, an object such as "
        "lightjax.profiler.JaxProfiler(first_step=200), or None"
    )
