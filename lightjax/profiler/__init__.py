"""Profilers: where the time and the memory of a run go."""

from lightjax.profiler.advanced import AdvancedProfiler
from lightjax.profiler.choice import PROFILERS, make_profiler
from lightjax.profiler.memory import MemoryProfiler
from lightjax.profiler.profiler import Profiler
from lightjax.profiler.simple import SimpleProfiler
from lightjax.profiler.times import Action, Times
from lightjax.profiler.trace import JaxProfiler
from lightjax.profiler.tracer import JaxTracer, Tracer
from lightjax.profiler.verdict import Verdict, verdict

__all__ = [
    "PROFILERS",
    "Action",
    "AdvancedProfiler",
    "JaxProfiler",
    "JaxTracer",
    "MemoryProfiler",
    "Profiler",
    "SimpleProfiler",
    "Times",
    "Tracer",
    "Verdict",
    "make_profiler",
    "verdict",
]
