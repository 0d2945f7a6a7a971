"""Times: where the time of a run went, in plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

# What the actions of a training are called in tables.
TITLES = {
    "data": "waiting for data",
    "dispatch": "starting calls",
    "device": "waiting for the device",
    "compilation": "compiling",
    "logging": "logging",
    "checkpoint": "checkpoints",
    "evaluation": "evaluation",
    "display": "progress display",
    "reading": "reading batches",
    "moving": "moving batches to the devices",
    "rest": "the loop itself",
}


@dataclass(frozen=True)
class Action:
    """What was done, how often, and how long it took.

    Attributes:
      name: "data", "dispatch", ..., or the name a callback gave.
      seconds: spent in it, less what was spent in actions inside of it.
      calls: how often.
    """

    name: str
    seconds: float
    calls: int

    @property
    def title(self) -> str:
        """The name for people."""
        return TITLES.get(self.name, self.name)


@dataclass(frozen=True)
class Times:
    """Where the time of a run went.

    Attributes:
      seconds: the whole run.
      actions: of the loop's own thread; they sum up to `seconds`.
      beside: of other threads, at the same time.
      steps: train steps done.
      calls: compiled calls they took.
      idle_calls: calls that found every call before them finished: the devices had nothing to do.
    """

    seconds: float
    actions: tuple[Action, ...]
    beside: tuple[Action, ...]
    steps: int
    calls: int
    idle_calls: int

    def spent(self, *names: str) -> float:
        """Returns the seconds spent in actions of the loop's thread."""
        return sum(action.seconds for action in self.actions if action.name in names)

    def described(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return asdict(self)

    @classmethod
    def read(cls, described: dict[str, Any]) -> Self:
        """Takes back what `described` returned."""
        actions = {name: tuple(Action(**one) for one in described[name]) for name in ("actions", "beside")}
        return cls(**{**described, **actions})

    def table(self) -> str:
        """Writes a table, the longest first."""
        sections = [("Action", self.actions)] + ([("Beside it, in other threads", self.beside)] if self.beside else [])
        lines: list[tuple[str, str, str, str, str]] = []
        for head, actions in sections:
            lines.append((head, "Total s", "Share", "Calls", "Each"))
            for one in sorted(actions, key=lambda one: -one.seconds):
                each = format_duration(one.seconds / one.calls) if one.calls else ""
                share = f"{one.seconds / self.seconds:.1%}" if self.seconds else ""
                lines.append((one.title, f"{one.seconds:.3f}", share, f"{one.calls:,}" if one.calls else "", each))
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        rows = [
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
                ]
            )
            for line in lines
        ]
        rule = "-" * len(rows[0])
        for place in sorted((i for i, line in enumerate(lines) if line[1] == "Total s"), reverse=True):
            rows.insert(place + 1, rule)
            if place:
                rows.insert(place, "")
        calls = f"{self.steps:,} steps in {self.calls:,} calls" if self.calls else "no steps"
        return "\n".join([*rows, rule, f"{format_duration(self.seconds)} in all, {calls}"])


def format_duration(duration_s: float) -> str:
    """Writes a duration with three digits.

    Example:
      >>> format_duration(4.2e-5), format_duration(0.0123), format_duration(75)
      ('42 us', '12.3 ms', '1 min 15 s')
    """
    if duration_s < 1e-3:
        return f"{duration_s * 1e6:.3g} us"
    if duration_s < 1:
        return f"{duration_s * 1e3:.3g} ms"
    if duration_s < 60:
        return f"{duration_s:.3g} s"
    minutes, rest = divmod(round(duration_s), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
