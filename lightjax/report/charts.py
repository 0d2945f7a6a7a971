"""Charts: which curves belong together, and with which colours and lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightjax.report.record import Record, finite

COLORS = ("#2563eb", "#ea580c", "#059669", "#c026d3", "#0891b2", "#ca8a04", "#dc2626", "#4f46e5")
# What the trainer measures of itself, with words for people.
GAUGES = {
    "learning_rate": "learning rate",
    "steps_per_s": "steps a second",
    "examples_per_s": "examples a second",
    "device_memory_bytes": "device memory, bytes",
    "host_memory_bytes": "host memory, bytes",
}
STAGES = ("train", "val", "test")
# Values over so many powers of ten are unreadable on a linear axis.
LOG_DECADES = 2.5

Line = Literal["solid", "faint", "dashed", "dots"]


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
      label: for the legend.
      points: steps and values, finite.
      color: "#rrggbb".
      line: how it is drawn.
      missing: how many values were NaN or infinite.
    """

    label: str
    points: list[tuple[int, float]]
    color: str
    line: Line
    missing: int = 0


@dataclass(frozen=True)
class Chart:
    """Curves of one quantity.

    Attributes:
      title: the quantity.
      curves: of all runs and stages.
      is_gauge: whether the trainer measured it of itself.
    """

    title: str
    curves: list[Curve]
    is_gauge: bool

    @property
    def logarithmic(self) -> bool:
        """Whether the values ask for a logarithmic axis."""
        values = [value for curve in self.curves for _, value in curve.points]
        return bool(values) and min(values) > 0 and math.log10(max(values) / min(values)) > LOG_DECADES


def charts_of(records: Sequence[Record], names: Sequence[str] | None = None) -> list[Chart]:
    """Groups the metrics of runs: `train/loss`, its epoch means and `val/loss` are one chart.

    Args:
      records: the runs; one colour each, or one colour a stage where there is only one.
      names: quantities ("loss") or metrics ("val/loss") to show; all when None.
    """
    plain = {
        rest.removesuffix("_epoch")
        for record in records
        for name in record.series
        if (rest := name.partition("/")[2]) and "/" not in rest
    }
    groups: dict[str, list[Curve]] = {}
    for place, record in enumerate(records):
        for name, points in record.series.items():
            stage, quantity, epoch = _parts(name, plain)
            if names is not None and not {name, quantity} & set(names):
                continue
            shown = finite(points)
            own = STAGES.index(stage.split("/")[0]) if stage.split("/")[0] in STAGES else 0
            color = COLORS[(own if len(records) == 1 else place) % len(COLORS)]
            by_window = stage == "train" and not epoch
            line: Line = "dots" if epoch else "solid"
            if by_window and len(records) > 1:
                line = "dashed"
            elif by_window and f"{name}_epoch" in record.series:
                line = "faint"
            words = [stage, "epoch" if epoch else "", record.name if len(records) > 1 else ""]
            label = " ".join(word for word in words if word) or quantity
            groups.setdefault(quantity, []).append(Curve(label, shown, color, line, len(points) - len(shown)))
    places = {name: place for place, name in enumerate(GAUGES, 1)}
    charts = [
        Chart(GAUGES.get(quantity, quantity), curves, quantity in GAUGES)
        for quantity, curves in sorted(groups.items(), key=lambda group: places.get(group[0], 0))
        if any(curve.points or curve.missing for curve in curves)
    ]
    return charts


def _parts(name: str, plain: set[str]) -> tuple[str, str, bool]:
    """Splits "val/clean/loss" into ("val/clean", "loss", False): stage, quantity, whether it is a mean of an epoch."""
    stage, _, rest = name.partition("/")
    if not rest or stage not in STAGES:
        return "", name, False
    epoch = stage == "train" and rest.endswith("_epoch")
    loader, _, last = rest.rpartition("/")
    if loader and last in plain:
        return f"{stage}/{loader}", last, False
    return stage, rest.removesuffix("_epoch") if epoch else rest, epoch


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers between two values.

    Example:
      >>> ticks(0.03, 1.21)
      [0.25, 0.5, 0.75, 1.0]
    """
    if high <= low:
        return [low]
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: Sequence[tuple[int, float]], most: int = 800) -> list[tuple[int, float]]:
    """Leaves the lowest and the highest of each part of a long curve, so that no spike is lost.

    Example:
      >>> thin([(i, float(i == 777)) for i in range(10_000)], most=4)
      [(0, 0.0), (777, 1.0), (5000, 0.0), (9999, 0.0)]
    """
    if len(points) <= most:
        return list(points)
    parts, kept = max(1, most // 2), []
    for i in range(parts):
        part = points[i * len(points) // parts : (i + 1) * len(points) // parts]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]
