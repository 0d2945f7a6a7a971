"""The ledger: one line an operator, how many of its samples pass in each dtype."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PATH = Path(__file__).with_name("ledger.txt")
_COUNT = re.compile(r"(\w+)=(\d+)/(\d+)(?:!(\d+))?$")


@dataclass(frozen=True)
class Count:
    """Of `expressible` samples `passed` are right, `wrong` give other numbers; the rest is refused."""

    passed: int
    expressible: int
    wrong: int = 0

    def __str__(self) -> str:
        return f"{self.passed}/{self.expressible}" + (f"!{self.wrong}" if self.wrong else "")


@dataclass(frozen=True)
class Line:
    """What the ledger says of one operator; `note` is why samples are refused or none is expressible."""

    name: str
    counts: dict[str, Count] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        counts = " ".join(f"{dtype}={count}" for dtype, count in self.counts.items())
        return f"{self.name} {counts}" + (f" # {self.note}" if self.note else "")

    @property
    def float32(self) -> Count:
        """The count of the samples in float32, with or without a gradient."""
        return self.counts.get("gradient") or self.counts.get("float32") or Count(0, 0)

    def worse_than(self, other: Line) -> list[str]:
        """Says in which dtypes fewer of the samples pass, or more are wrong."""
        found = []
        for dtype, now in self.counts.items():
            before = other.counts.get(dtype, Count(0, 0))
            if now.wrong > before.wrong or now.passed * before.expressible < before.passed * now.expressible:
                found.append(f"{self.name} {dtype}: {now}, was {before}")
            elif before.expressible and not now.expressible:
                found.append(f"{self.name} {dtype}: no sample is expressible, was {before}")
        return found


def count(kinds: Iterable[str]) -> Count:
    """Counts outcomes of one operator and dtype."""
    of = Counter(kinds)
    passed = of["passes"] + of["random"]
    return Count(passed, passed + of["missing"] + of["wrong"], of["wrong"])


def line(name: str, outcomes: dict[str, list[tuple[str, str]]]) -> Line:
    """Makes the line of an operator of its outcomes, `(kind, reason)` by dtype."""
    counts = {dtype: count(kind for kind, _ in found) for dtype, found in outcomes.items()}
    refused = [
        (kind, reason) for found in outcomes.values() for kind, reason in found if kind not in ("passes", "random")
    ]
    kinds = Counter(kind for kind, _ in refused)
    notes = [reason for kind in ("wrong", "missing") for other, reason in refused if other == kind][:1]
    if kinds["values"]:
        notes.append(f"{kinds['values']} depend on values")
    if kinds["no array"]:
        notes.append(f"{kinds['no array']} without arrays (sparse, quantized, no such dtype)")
    if any(kind == "random" for found in outcomes.values() for kind, _ in found):
        notes.append("random: shapes and dtypes only")
    return Line(name, counts, "; ".join(notes))


def write(lines: Iterable[Line], path: Path = PATH) -> None:
    """Writes a ledger, with what it says in all at its top."""
    lines = sorted(lines, key=lambda one: one.name)
    head = [
        "operator dtype=passed/expressible!wrong # why the rest is refused; gradient: float32 with its gradients",
        *totals(lines),
    ]
    path.write_text("".join(f"# {text}\n" for text in head) + "".join(f"{one}\n" for one in lines))


def parse(text: str) -> dict[str, Line]:
    """Reads a ledger."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            entry, _, note = line.partition(" # ")
            name, *counts = entry.split()
            read = (_COUNT.match(one) for one in counts)
            found[name] = Line(
                name, {m[1]: Count(int(m[2]), int(m[3]), int(m[4] or 0)) for m in read if m is not None}, note
            )
    return found


def load(path: Path = PATH) -> dict[str, Line]:
    """Reads the ledger that is kept beside this file, or another one."""
    return parse(path.read_text())


def totals(lines: Iterable[Line]) -> Iterator[str]:
    """Says how many samples pass, by dtype."""
    sums: dict[str, Counter[str]] = {}
    for line in lines:
        for dtype, one in line.counts.items():
            total = sums.setdefault(dtype, Counter())
            total.update(passed=one.passed, expressible=one.expressible, wrong=one.wrong)
    for dtype, total in sums.items():
        share = 100 * total["passed"] / max(total["expressible"], 1)
        yield f"{dtype}: {total['passed']} of {total['expressible']} samples ({share:.1f} %), {total['wrong']} wrong"
