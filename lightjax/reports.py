"""Reports: what a call left on the device, as numbers with names and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from lightjax.engine.engine import Engine
from lightjax.history import Report
from lightjax.metrics import numbers


def window_reports(
    engine: Engine, rows: Any, steps: range, epoch: int, every: int
) -> Callable[[], Iterator[Report]] | None:
    """Picks the steps of a stretch that end a window.

    Args:
      engine: ran the stretch.
      rows: what it returned: the window's metrics after each step, [capacity, length], on the device.
      steps: the steps of the stretch, by how many are done after each.
      epoch: the epoch.
      every: the length of a window.

    Returns:
      A function that waits for the device and reads the reports, or None where no window ends.
    """
    picked = [row for row, step in enumerate(steps) if step % every == 0]
    if not picked:
        return None

    def read() -> Iterator[Report]:
        on_host = jax.device_get(rows)
        for row in picked:
            values = engine.compute("train", engine.row(on_host, row), "step")
            yield Report(steps[row], epoch, named(engine, values, "train/"))

    return read


def totals_report(
    engine: Engine, stage: str, totals: Any, step: int, epoch: int, *, prefix: str, suffix: str = ""
) -> Callable[[], Iterator[Report]]:
    """Returns a function that waits for the device and reads the metrics of an epoch or an evaluation."""

    def read() -> Iterator[Report]:
        values = engine.compute(stage, jax.device_get(totals), "epoch" if suffix else "step")
        yield Report(step, epoch, named(engine, values, prefix, suffix))

    return read


def named(engine: Engine, values: Mapping[str, Any], prefix: str, suffix: str = "") -> dict[str, Any]:
    """Makes what metrics computed into numbers, with the names they are reported under.

    Args:
      engine: computed them.
      values: by the name the step gave them.
      prefix: what stands before a name, such as "train/".
      suffix: what stands after it.
    """
    if engine.own_names:
        return numbers(values)
    return {name + suffix: value for name, value in numbers(values, prefix).items()}
