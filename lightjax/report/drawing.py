"""Drawing: charts as SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape

from lightjax.report.charts import Chart, Curve, thin, ticks

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 68, 16, 12, 34
STYLES = {"solid": "", "faint": ' opacity="0.45"', "dashed": ' stroke-dasharray="5 4" opacity="0.6"'}


def svg(chart: Chart, checkpoints: Sequence[int] = ()) -> str:
    """Draws a chart.

    Args:
      chart: the curves.
      checkpoints: steps that are marked on the axis.
    """
    steps = [step for curve in chart.curves for step, _ in curve.points]
    values = [value for curve in chart.curves for _, value in curve.points]
    if not values:
        return f'<p class="none">No finite values: {_missing(chart.curves)}</p>'
    low_x, high_x = min(steps), max(steps)
    logarithmic = chart.logarithmic
    low_y, high_y = (math.log10(min(values)), math.log10(max(values))) if logarithmic else (min(values), max(values))
    margin = 0.05 * (high_y - low_y) or 0.05 * abs(high_y) or 1.0
    low_y, high_y = low_y - margin, high_y + margin

    def x_of(step: float) -> float:
        share = (step - low_x) / (high_x - low_x) if high_x > low_x else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        height = (math.log10(value) if logarithmic else value) - low_y
        return HEIGHT - BOTTOM - height / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    marks = _powers(low_y, high_y) if logarithmic else ticks(low_y, high_y)
    parts = [_grid(marks, ticks(low_x, high_x, 6), x_of, y_of)]
    for step in checkpoints:
        if low_x <= step <= high_x:
            x = x_of(step)
            parts.append(
                f'<path class="checkpoint" d="M{x:.1f} {HEIGHT - BOTTOM}l-4 7h8z"><title>checkpoint at step {step}'
                "</title></path>"
            )
    parts += [_curve(curve, x_of, y_of) for curve in chart.curves if curve.points]
    data = [
        {
            "label": curve.label,
            "color": curve.color,
            "points": [[s, round(x_of(s), 1), v] for s, v in thin(curve.points)],
        }
        for curve in chart.curves
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}" '
        f'data-curves="{escape(json.dumps(data))}">{"".join(parts)}<line class="cursor" y1="{TOP}" '
        f'y2="{HEIGHT - BOTTOM}" visibility="hidden"/></svg>'
    )


def legend(chart: Chart) -> str:
    """Names the curves of a chart; "" for one that is alone."""
    if len(chart.curves) == 1 and not chart.curves[0].missing:
        return ""
    items = []
    for curve in chart.curves:
        kind = {"dashed": "dashed", "dots": "dotted"}.get(curve.line, "solid")
        missing = f" <em>{curve.missing} not finite</em>" if curve.missing else ""
        items.append(f'<span><i style="border-top: 3px {kind} {curve.color}"></i>{escape(curve.label)}{missing}</span>')
    return f'<div class="legend">{"".join(items)}</div>'


def short(value: float) -> str:
    """Writes a number for an axis.

    Example:
      >>> short(0.25), short(1500), short(2_000_000), short(3e-5)
      ('0.25', '1.5k', '2M', '3e-05')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _curve(curve: Curve, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> str:
    points = [(x_of(step), y_of(value)) for step, value in thin(curve.points)]
    title = f"<title>{escape(curve.label)}</title>"
    if curve.line == "dots" or len(points) == 1:
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
        return f'<g class="curve" fill="{curve.color}">{title}{dots}</g>'
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="curve" d="{path}" stroke="{curve.color}"{STYLES[curve.line]}>{title}</path>'


def _grid(
    values: Sequence[float], steps: Sequence[float], x_of: Callable[[float], float], y_of: Callable[[float], float]
) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(value):.1f}" y2="{y_of(value):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y_of(value) + 5:.1f}" text-anchor="end">{short(value)}</text>'
        for value in values
    ]
    lines += [
        f'<text x="{x_of(step):.1f}" y="{HEIGHT - BOTTOM + 24}" text-anchor="middle">{short(step)}</text>'
        for step in steps
        if step == int(step)
    ]
    lines.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    return "".join(lines)


def _powers(low: float, high: float) -> list[float]:
    powers = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    return powers[:: max(1, len(powers) // 6)]


def _missing(curves: Sequence[Curve]) -> str:
    return escape(", ".join(f"{curve.label} ({curve.missing})" for curve in curves))
