"""The figure of one or several runs, drawn by matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightjax.errors import ConfigurationError
from lightjax.report.charts import Chart, charts_of, thin
from lightjax.report.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


def figure(records: Sequence[Record], names: Sequence[str] | None = None) -> Figure:
    """Draws the charts of one or several runs as one figure.

    Args:
      records: the runs.
      names: quantities ("loss") or metrics ("val/loss") to show; all when None.

    Raises:
      ConfigurationError: there is nothing to draw, or none of the names is known.
      ModuleNotFoundError: matplotlib is not installed.
    """
    charts = charts_of(records, names)
    if not charts:
        known = ", ".join(sorted({name for record in records for name in record.series})) or "none"
        raise ConfigurationError(f"Nothing to plot of {names!r}: reported are {known}.")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Figures are drawn by matplotlib, which is not installed here. Run `pip install lightjax[plot]`, or write "
            "an HTML page, which needs nothing: result.plot('run.html').",
            name="matplotlib",
        ) from error
    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    # Not through pyplot: it would choose a window system, and keep the figure alive.
    drawn = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained", dpi=130)
    for place, chart in enumerate(charts):
        _draw(drawn.add_subplot(rows, columns, place + 1), chart)
    return drawn


def write_figure(records: Sequence[Record], path: str | os.PathLike[str], names: Sequence[str] | None = None) -> Path:
    """Writes the figure to a file: .png, .svg or .pdf; see `figure`."""
    target = Path(path)
    drawn = figure(records, names)
    target.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(target)
    return target


def _draw(axes: Axes, chart: Chart) -> None:
    for curve in chart.curves:
        steps, values = zip(*thin(curve.points), strict=True) if curve.points else ((), ())
        lines = {"solid": "-", "faint": "-", "dashed": "--", "dots": "none"}
        axes.plot(
            steps,
            values,
            color=curve.color,
            linestyle=lines[curve.line],
            linewidth=1.4,
            alpha={"faint": 0.45, "dashed": 0.6}.get(curve.line, 1.0),
            marker="o" if curve.line == "dots" or len(steps) == 1 else None,
            markersize=3.5,
            label=f"{curve.label} ({curve.missing} not finite)" if curve.missing else curve.label,
        )
    axes.set_title(chart.title, fontsize=10, fontweight="bold", loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#e5e9f0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.logarithmic:
        axes.set_yscale("log")
    axes.legend(fontsize=7.5, frameon=False)
