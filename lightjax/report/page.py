"""The page of one or several runs: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from lightjax.profiler.times import Times, format_duration
from lightjax.report.charts import COLORS, charts_of
from lightjax.report.drawing import legend, svg
from lightjax.report.record import Record
from lightjax.summary import format_bytes

# The order and colours of the bar that shows where the time went.
TIMES = {
    "device": ("waiting for the device", "#2563eb"),
    "dispatch": ("starting calls", "#60a5fa"),
    "data": ("waiting for data", "#ea580c"),
    "evaluation": ("evaluation", "#059669"),
    "checkpoint": ("checkpoints", "#c026d3"),
    "compilation": ("compiling", "#94a3b8"),
    "logging": ("logging", "#ca8a04"),
    "callbacks": ("callbacks", "#dc2626"),
    "rest": ("the rest", "#cbd5e1"),
}


def write_page(records: Sequence[Record], path: str | os.PathLike[str], names: Sequence[str] | None = None) -> Path:
    """Writes the page of one or several runs, those overlaid in the same charts.

    Args:
      records: the runs.
      path: the file; its directory is made.
      names: quantities or metrics to show; all when None.

    Returns:
      The path.
    """
    charts = charts_of(records, names)
    checkpoints = [step for step, _, _ in records[0].checkpoints] if len(records) == 1 else []
    cards = {False: "", True: ""}
    for chart in charts:
        scale = '<small class="scale">log</small>' if chart.logarithmic else ""
        cards[chart.is_gauge] += (
            f'<figure class="card"><figcaption>{escape(chart.title)}{scale}</figcaption>'
            f"{svg(chart, checkpoints)}{legend(chart)}</figure>"
        )
    sections = [
        ("Metrics", f'<div class="cards">{cards[False]}</div>' if cards[False] else ""),
        ("Speed and memory", f'<div class="cards">{cards[True]}</div>' if cards[True] else ""),
        ("Where the time went", _times(records)),
        ("Checkpoints", _checkpoints(records)),
        ("Hyperparameters", _hyperparameters(records)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    template = (files("lightjax.report") / "page.html").read_text()
    title = ", ".join(record.name for record in records)
    filled = template.replace("{{title}}", escape(title)).replace("{{runs}}", _runs(records)).replace("{{body}}", body)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(filled, encoding="utf-8")
    return target


def _runs(records: Sequence[Record]) -> str:
    chips = []
    for place, record in enumerate(records):
        steps = max((points[-1][0] for points in record.series.values() if points), default=0)
        seconds = sum(life.times.seconds for life in record.lives)
        facts = [f"{steps:,} steps"]
        facts += [format_duration(seconds), f"stopped by {record.lives[-1].stopped_by}"] if record.lives else []
        color = COLORS[place % len(COLORS)] if len(records) > 1 else COLORS[0]
        chips.append(
            f'<div class="run"><i style="background:{color}"></i><b>{escape(record.name)}</b> '
            f"{escape(' · '.join(facts))}</div>"
        )
    return "".join(chips)


def _times(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        if not record.lives:
            continue
        spent = _split([life.times for life in record.lives])
        total = sum(spent.values()) or 1.0
        bars = "".join(
            f'<span style="flex:{spent[name] / total:.4f};background:{color}" title="{title}: '
            f'{format_duration(spent[name])}, {100 * spent[name] / total:.1f} %"></span>'
            for name, (title, color) in TIMES.items()
            if spent[name] > 0.002 * total
        )
        rows.append(f'<div class="times"><b>{escape(record.name)}</b><div class="bar">{bars}</div>'
                    f"<span>{format_duration(total)}</span></div>")  # fmt: skip
    if not rows:
        return ""
    names = "".join(
        f'<span><i style="border-top:10px solid {color}"></i>{title}</span>' for title, color in TIMES.values()
    )
    return f'<div class="card">{"".join(rows)}<div class="legend">{names}</div></div>'


def _split(lives: Sequence[Times]) -> dict[str, float]:
    spent = dict.fromkeys(TIMES, 0.0)
    for times in lives:
        for action in times.actions:
            name = action.name
            if name in ("reading", "moving"):
                name = "data"
            elif name.startswith("callback "):
                name = "callbacks"
            spent[name if name in spent else "rest"] += action.seconds
    return spent


def _checkpoints(records: Sequence[Record]) -> str:
    lines = []
    for record in records:
        for step, metrics, size in record.checkpoints:
            values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not name.endswith("_epoch"))
            cells = [record.name] if len(records) > 1 else []
            cells += [f"{step:,}", format_bytes(size), values]
            lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = (["run"] if len(records) > 1 else []) + ["step", "size", "metrics"]
    return _table(heads, lines)


def _hyperparameters(records: Sequence[Record]) -> str:
    given = [(name, value) for record in records for name, value in record.hyperparameters.items()]
    names = list(dict.fromkeys(name for name, value in given if value != "null"))
    lines = []
    for name in names:
        values = [record.hyperparameters.get(name, "") for record in records]
        differs = ' class="differs"' if len(set(values)) > 1 else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f"<tr{differs}><td>{escape(name)}</td>{cells}</tr>")
    return _table(["name", *(record.name for record in records)], lines)


def _table(heads: Sequence[str], lines: Sequence[str]) -> str:
    if not lines:
        return ""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    return (
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
