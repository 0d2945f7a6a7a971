"""What is heaviest in a trace: operations by their own time, and gaps in which the devices idled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from lightjax.profiler.times import format_duration

GAPS = 5
# The loop's lines are the ones that hold the names of its actions.
ACTIONS = {"data", "reading", "dispatch", "device", "logging", "checkpoint", "evaluation", "display"}


class Span(NamedTuple):
    """A time in a trace, in nanoseconds."""

    begin: float
    end: float
    name: str


@dataclass(frozen=True)
class DeviceTrace:
    """What a device did in a trace.

    Attributes:
      name: of the device.
      operations: seconds and calls of each operation, less what others inside of it took.
      busy_s: seconds in which it did anything.
      window_s: seconds from its first operation to the end of its last.
      gaps: the times between, longest first.
    """

    name: str
    operations: dict[str, tuple[float, int]]
    busy_s: float
    window_s: float
    gaps: list[Span]


def heaviest(trace: Path, operations: int = 10) -> str:
    """Writes a table of the heaviest operations of a trace and of the gaps, with what the loop did in them.

    Args:
      trace: an `.xplane.pb` file.
      operations: how many.
    """
    data = ProfileData.from_file(str(trace))
    return described(device_traces(data), _actions(data), operations)


def described(devices: Iterable[DeviceTrace], actions: list[Span], operations: int) -> str:
    """Writes a table of the heaviest operations of devices and of their gaps, with what the loop did in them.

    Args:
      devices: what they did.
      actions: what the loop did at the time.
      operations: how many.
    """
    lines = []
    for device in devices:
        busy = device.busy_s / device.window_s if device.window_s else 1.0
        lines.append(f"{device.name}: {busy:.0%} busy over {format_duration(device.window_s)}")
        longest = sorted(device.operations.items(), key=lambda one: -one[1][0])
        total = sum(seconds for seconds, _ in device.operations.values())
        for name, (seconds, calls) in longest[:operations]:
            lines.append(f"  {seconds / total:6.1%}  {format_duration(seconds):>8}  {calls:>6,}x  {name}")
        if device.gaps:
            lines.append(f"  longest gaps of {len(device.gaps):,}:")
        for gap in device.gaps[:GAPS]:
            doing = _doing(actions, gap)
            lines.append(f"    {format_duration((gap.end - gap.begin) / 1e9):>8}  before {gap.name}{doing}")
    return "\n".join(lines) or "No operations of a device are in the trace."


def device_traces(data: Any) -> list[DeviceTrace]:
    """Picks the devices that ran operations; the CPU's are in the lines of its threads."""
    found = []
    for plane in data.planes:
        if plane.name.startswith("/device:"):
            lines = {line.name: line for line in plane.lines}
            # TPUs keep a line of operations, GPUs a line for each stream.
            chosen = [lines["XLA Ops"]] if "XLA Ops" in lines else [lines[name] for name in lines if "Stream" in name]
            spans = [[_span(event) for event in line.events] for line in chosen]
        elif plane.name.startswith("/host:CPU"):
            spans = [
                [_span(event) for event in line.events if any(key == "hlo_op" for key, _ in event.stats)]
                for line in plane.lines
            ]
        else:
            continue
        if any(spans):
            found.append(device_trace(plane.name.removeprefix("/device:").removeprefix("/host:"), spans))
    return found


def own_times(spans: Iterable[Span]) -> dict[str, tuple[float, int]]:
    """Returns the seconds and calls of each name in one thread, less what spans inside of it took.

    Example:
      >>> own_times([Span(0, 10e9, "loop"), Span(1e9, 4e9, "dot"), Span(5e9, 6e9, "add")])
      {'loop': (6.0, 1), 'dot': (3.0, 1), 'add': (1.0, 1)}
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    around: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
        while around and around[-1].end <= span.begin:
            around.pop()
        length = (span.end - span.begin) / 1e9
        if around:
            seconds[around[-1].name] -= min(length, (around[-1].end - span.begin) / 1e9)
        seconds[span.name] += length
        calls[span.name] += 1
        around.append(span)
    return {name: (seconds[name], calls[name]) for name in calls}


def device_trace(name: str, threads: list[list[Span]]) -> DeviceTrace:
    """Sums up what a device did.

    Args:
      name: of the device.
      threads: the operations of each of its threads or streams; not all empty.
    """
    operations: dict[str, tuple[float, int]] = {}
    for spans in threads:
        for operation, (seconds, calls) in own_times(spans).items():
            known = operations.get(operation, (0.0, 0))
            operations[operation] = (known[0] + seconds, known[1] + calls)
    ordered = sorted(span for spans in threads for span in spans)
    busy, gaps, end = 0.0, [], ordered[0].begin
    for span in ordered:
        if span.begin > end:
            gaps.append(Span(end, span.begin, span.name))
        busy += max(0.0, span.end - max(end, span.begin))
        end = max(end, span.end)
    gaps.sort(key=lambda gap: gap.begin - gap.end)
    return DeviceTrace(name, operations, busy / 1e9, (end - ordered[0].begin) / 1e9, gaps)


def _actions(data: Any) -> list[Span]:
    """Returns what the loop did: the annotations on the lines that hold its steps."""
    lines = [
        [_span(event) for event in line.events]
        for plane in data.planes
        if plane.name.startswith("/host:CPU")
        for line in plane.lines
    ]
    return [
        span for spans in lines if any(span.name == "train" for span in spans) for span in spans if is_action(span.name)
    ]


def is_action(name: str) -> bool:
    """Says whether a name in a trace is that of an action of the loop."""
    return name in ACTIONS or name.startswith("callback ")


def _doing(actions: list[Span], gap: Span) -> str:
    overlaps: defaultdict[str, float] = defaultdict(float)
    for span in actions:
        overlaps[span.name] += max(0.0, min(span.end, gap.end) - max(span.begin, gap.begin))
    name = max(overlaps, key=lambda name: overlaps[name], default="")
    return f", the loop in: {name}" if name and overlaps[name] > 0 else ""


def _span(event: Any) -> Span:
    return Span(event.start_ns, event.start_ns + event.duration_ns, event.name)
