"""Closing: what came out of a training, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightjax.profiler.times import Times, format_duration
from lightjax.report.record import finite, series_of

MOST_METRICS = 20
MOST_ACTIONS = 5


def closing_summary(history: Sequence[Mapping[str, Any]], times: Times) -> str:
    """Writes the last, lowest and highest value of each metric, with their steps, and where the time went.

    Args:
      history: rows `{"step", "epoch", name: value...}`.
      times: of the run.

    Example:
      >>> from lightjax.profiler import Action
      >>> rows = [{"step": 10, "epoch": 0, "val/loss": 0.5}, {"step": 20, "epoch": 1, "val/loss": 0.75}]
      >>> print(closing_summary(rows, Times(2.0, (Action("data", 1.5, 20), Action("rest", 0.5, 0)), (), 20, 20, 0)))
      Metric      Last  Lowest      Highest
      val/loss    0.75  0.5 (10)    0.75 (20)
      2 s: waiting for data 75 %, the loop itself 25 %
    """
    series = {name: points for name, points in series_of(history).items() if "/" in name}
    # Where there are means over epochs, those of the last few steps say less.
    shown = [name for name in series if f"{name}_epoch" not in series][:MOST_METRICS]
    lines = []
    if shown:
        lines = [("Metric", "Last", "Lowest", "Highest")]
        for name in shown:
            points = finite(series[name])
            low, high = (min(points, key=_value), max(points, key=_value)) if points else (None, None)
            lines.append((name, f"{series[name][-1][1]:.4g}", _at(low), _at(high)))
    widths = [max(len(line[column]) for line in lines) for column in range(3)] if lines else []
    table = [
        f"{name:<{widths[0]}}  {last:>{widths[1] + 2}}  {low:<{widths[2] + 2}}  {high}"
        for name, last, low, high in lines
    ]
    longest = sorted(times.actions, key=lambda one: -one.seconds)[:MOST_ACTIONS]
    shares = [(one.title, round(100 * one.seconds / times.seconds)) for one in longest if times.seconds]
    went = ", ".join(f"{title} {share} %" for title, share in shares if share)
    return "\n".join([*table, f"{format_duration(times.seconds)}: {went}"])


def _at(point: tuple[int, float] | None) -> str:
    return "-" if point is None else f"{point[1]:.4g} ({point[0]})"


def _value(point: tuple[int, float]) -> float:
    return point[1]
