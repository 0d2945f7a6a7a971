"""HLO: what a compiled program says about itself in its text: collectives, and the arrays it makes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r"s32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_NAME = re.compile(r'op_name="([^"]*)"')
_BITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Collective:
    """Messages of one kind in one run of a program, for each device.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
      count: how many are made. What a loop makes counts for each of its rounds, once where their number is not known
        to the compiler.
      bytes: of the arrays they result in.
    """

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Temporary:
    """An array that a program makes.

    Attributes:
      bytes: its size on one device.
      shape: its type and shape on one device, such as "f32[64,128]".
      name: where in the user's functions it is made, as jax names operations.
    """

    bytes: int
    shape: str
    name: str


@dataclass(frozen=True)
class _Instruction:
    computation: str
    shape: str
    operation: str
    line: str


def collectives(text: str) -> tuple[Collective, ...]:
    """Counts the collectives of a program by kind."""
    instructions = list(_instructions(text))
    rounds = _rounds(instructions)
    counts, sizes = defaultdict(int), defaultdict(int)
    seen: set[str] = set()
    for one in instructions:
        kind = next((kind for kind in KINDS if one.operation in (kind, f"{kind}-start")), None)
        if kind is None or not rounds[one.computation]:
            continue
        channel = _CHANNEL.search(one.line)
        # Fusions that begin, go on and end one collective on the TPU each hold it, with the same channel.
        if channel and channel[1] in seen:
            continue
        seen.update(channel.groups() if channel else ())
        arrays = [_size(dtype, dims) for dtype, dims in _ARRAY.findall(one.shape)]
        # The result of an asynchronous start holds its operands, too: what is moved is the larger half.
        moved = sum(arrays) if one.operation == kind else max(arrays, default=0)
        counts[kind] += rounds[one.computation]
        sizes[kind] += rounds[one.computation] * moved
    return tuple(Collective(kind, counts[kind], sizes[kind]) for kind in KINDS if counts[kind])


def largest_temporaries(text: str, most: int = 8) -> tuple[Temporary, ...]:
    """Finds the largest arrays that a program makes, one for each name and shape, largest first.

    Those inside of fusions are never made. Arrays that are not alive at the same time share memory.
    """
    instructions = list(_instructions(text))
    fused = {
        name
        for one in instructions
        if one.operation in ("fusion", "reduce", "scatter", "sort", "map", "reduce-window", "select-and-scatter")
        for name in _called(one.line)
    }
    found: dict[tuple[str, str], Temporary] = {}
    passing = ("parameter", "tuple", "get-tuple-element", "while", "bitcast", "constant", "conditional", "call")
    for one in instructions:
        if one.computation in fused or one.operation in passing or one.shape.startswith("("):
            continue
        array = _ARRAY.match(one.shape)
        if array is not None:
            name = _NAME.search(one.line)
            temporary = Temporary(_size(*array.groups()), array[0], name[1] if name else one.operation)
            found[temporary.shape, temporary.name] = temporary
    return tuple(sorted(found.values(), key=lambda one: -one.bytes)[:most])


def _instructions(text: str) -> Iterator[_Instruction]:
    computation = ""
    for line in text.splitlines():
        if begun := _COMPUTATION.match(line):
            computation = "ENTRY" if begun[1] else begun[2]
        elif found := _INSTRUCTION.match(line):
            yield _Instruction(computation, found[2], found[3], line)


def _rounds(instructions: list[_Instruction]) -> dict[str, int]:
    """Says how often each computation runs in one run of the program."""
    bounds: dict[str, list[int]] = defaultdict(list)
    for one in instructions:
        if bound := _BOUND.search(one.line):
            bounds[one.computation].append(int(bound[1]))
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for one in instructions:
        trips = 1
        if one.operation == "while":
            told, condition = _TRIPS.search(one.line), _CONDITION.search(one.line)
            # A loop that counts up to a constant has it, and no other, in its condition.
            compared = bounds[condition[1]] if condition else []
            trips = int(told[1]) if told else compared[0] if len(compared) == 1 else 1
        for name in _called(one.line):
            calls[one.computation].append((name, trips))
    rounds: dict[str, int] = defaultdict(int)

    def run(computation: str, times: int) -> None:
        rounds[computation] += times
        for name, trips in calls.get(computation, ()):
            run(name, times * trips)

    run("ENTRY", 1)
    return rounds


def _called(line: str) -> list[str]:
    return [name.strip(" %{}") for names in _CALLED.findall(line) for name in names.split(",") if name.strip(" {}")]


def _size(dtype: str, dimensions: str) -> int:
    bits = 8 if dtype == "pred" else int(match[0]) if (match := _BITS.search(dtype)) else 0
    return math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8
