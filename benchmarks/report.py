"""What the reports of the benchmarks share: the machine, Markdown tables, JSON files."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "lightning", "pytorch-ignite", "keras", "numpy")


def installed(package: str) -> str | None:
    """Returns the version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Describes where this runs."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor,
        "cores": cores,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in PACKAGES},
    }


def machine_line(about: dict[str, Any]) -> str:
    """Puts the description of the machine into a sentence."""
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items() if number)
    return f"{about['processor']}, {about['cores']} cores, {about['system']}, Python {about['python']}; {versions}."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = (
        "|"
        + "|".join(
            "-" * (width + 2 if column == 0 else width + 1) + ":" * (column > 0) for column, width in enumerate(widths)
        )
        + "|"
    )
    return "\n".join([line(head), rule, *map(line, rows)])


def write_json(path: Path, about: dict[str, Any]) -> None:
    """Writes the numbers of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=2) + "\n")
