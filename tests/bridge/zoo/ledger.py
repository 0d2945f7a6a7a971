"""The ledger: one line a model, whether it trains in JAX as in torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).with_name("ledger.txt")
_LINE = re.compile(r"(\S+) (passes|fails|not applicable)(?: float64=(\S+))?(?: float32=(\S+))?(?: # (.*))?$")


@dataclass(frozen=True)
class Line:
    """What the ledger says of a model."""

    name: str
    kind: str
    wide: float | None = None
    narrow: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        shares = [f"{name}={x:.0e}" for name, x in (("float64", self.wide), ("float32", self.narrow)) if x is not None]
        return " ".join([self.name, self.kind, *shares, *([f"# {self.reason}"] if self.reason else [])])

    def worse_than(self, other: Line) -> bool:
        """Whether it passed before and no longer does."""
        return other.kind == "passes" and self.kind != "passes"


def parse(text: str) -> dict[str, Line]:
    """Reads a ledger."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = _LINE.match(line)
            if match is None:
                raise ValueError(f"{line!r} is no line of a ledger: name, passes|fails|not applicable, # reason")
            name, kind, wide, narrow, reason = match.groups()
            shares = (None if share is None else float(share) for share in (wide, narrow))
            found[name] = Line(name, kind, *shares, reason or "")
    return found


def load(path: Path = PATH) -> dict[str, Line]:
    """Reads the ledger that is kept beside this file, or another one."""
    return parse(path.read_text()) if path.exists() else {}


def write(lines: Iterable[Line], path: Path = PATH) -> None:
    """Writes a ledger, with its totals at the top."""
    lines = sorted(lines, key=lambda one: one.name)
    head = [
        "model passes|fails|not applicable, the largest difference as a share of a tensor's largest element # reason",
        *totals(lines),
    ]
    path.write_text("".join(f"# {text}\n" for text in head) + "".join(f"{one}\n" for one in lines))


def totals(lines: Iterable[Line]) -> list[str]:
    """Says how many models pass, by library."""
    kinds: dict[str, Counter[str]] = {}
    for line in lines:
        kinds.setdefault(line.name.partition("/")[0], Counter()).update([line.kind])
    return [
        f"{library}: {of['passes']} of {of['passes'] + of['fails']} models pass, {of['not applicable']} not applicable"
        for library, of in kinds.items()
    ]
