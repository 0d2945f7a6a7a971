"""The table of a summary: a tree of modules, folded where it would be too long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightjax.summary import Row

HEAD = ("Name", "Shape", "Dtype", "Parameters", "Size", "Each device", "")
# What stays at the right of its column.
NUMBERS = (3, 4)


@dataclass
class Node:
    """A module with what is inside of it, or a leaf.

    Attributes:
      name: the last part of its path; several parts where a module holds nothing else.
      row: of the leaf; None for a module.
      children: what is inside of a module, by name.
    """

    name: str
    row: Row | None = None
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The leaves inside."""
        return [self.row] if self.row is not None else [row for child in self.children.values() for row in child.rows]


def tree_of(rows: Sequence[Row], separator: str) -> Node:
    """Puts rows into a tree by the parts of their paths; a module that holds one thing is joined with it."""
    root = Node("")
    for row in rows:
        *modules, leaf = row.path.split(separator)
        node = root
        for name in modules:
            node = node.children.setdefault(name, Node(name))
        # A leaf beside a module of its name, or beside another leaf of it, is one more child.
        key = leaf
        while key in node.children:
            key += " "
        node.children[key] = Node(leaf, row)
    for child in root.children.values():
        _join(child, separator)
    return root


def lines_of(root: Node, depth: int | None, max_rows: int | None, separator: str) -> list[tuple[str, ...]]:
    """Writes the cells of each line.

    Args:
      root: of the tree.
      depth: modules that lie as deep are folded into a line each; none when None.
      max_rows: where there are more lines, deep modules are folded, and what is left over at the end; None for all.
      separator: between the parts of a path.
    """
    deepest = _depth(root) if depth is None else depth
    lines = list(_lines(root, deepest, separator))
    while max_rows is not None and len(lines) > max_rows and deepest > 1:
        deepest -= 1
        lines = list(_lines(root, deepest, separator))
    if max_rows is not None and len(lines) > max_rows:  # many at the top
        kept, rest = [], []
        for node in root.children.values():
            (kept if len(kept) < max_rows - 1 else rest).append(node)
        lines = [line for node in kept for line in _node_lines(node, 1, 1, separator)]
        lines.append(_folded("...", [row for node in rest for row in node.rows]))
    return lines


def write(lines: Sequence[tuple[str, ...]], totals: Sequence[str]) -> str:
    """Writes a table with a head, lines and sums; a column that is empty is left out."""
    columns = [column for column in range(len(HEAD)) if column < 5 or any(line[column] for line in lines)]
    widths = [max(len(line[column]) for line in (HEAD, *lines)) for column in range(len(HEAD))]
    rule = "-" * (sum(widths[column] for column in columns) + 2 * (len(columns) - 1))

    def align(line: tuple[str, ...]) -> str:
        cells = [line[one].rjust(widths[one]) if one in NUMBERS else line[one].ljust(widths[one]) for one in columns]
        return "  ".join(cells).rstrip()

    return "\n".join([align(HEAD), rule, *map(align, lines), rule, *totals])


def format_bytes(size: int) -> str:
    """Writes a size in decimal units.

    Example:
      >>> format_bytes(40), format_bytes(31_400), format_bytes(102_400_000)
      ('40 B', '31.4 kB', '102 MB')
    """
    number = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        text = f"{number:.3g}"
        if float(text) < 1000:  # after rounding: 999.9 kB is 1 MB
            return f"{text} {unit}"
        number /= 1000
    return f"{number:.0f} PB"


def _join(node: Node, separator: str) -> None:
    while len(node.children) == 1:
        (child,) = node.children.values()
        node.name, node.row, node.children = f"{node.name}{separator}{child.name}", child.row, child.children
    for child in node.children.values():
        _join(child, separator)


def _depth(node: Node) -> int:
    return 1 + max((_depth(child) for child in node.children.values()), default=-1)


def _lines(root: Node, deepest: int, separator: str) -> Iterator[tuple[str, ...]]:
    for child in root.children.values():
        yield from _node_lines(child, 1, deepest, separator)


def _node_lines(node: Node, level: int, deepest: int, separator: str) -> Iterator[tuple[str, ...]]:
    indent = "  " * (level - 1)
    if node.row is not None:
        yield _leaf(indent + node.name, node.row)
    elif level >= deepest:
        yield _folded(f"{indent}{node.name}{separator}...", node.rows)
    else:
        yield (indent + node.name, "", "", *_sums(node.rows), "", "")
        for child in node.children.values():
            yield from _node_lines(child, level + 1, deepest, separator)


def _leaf(name: str, row: Row) -> tuple[str, ...]:
    shard = "" if row.shard is None else _shape(row.shard)
    return (name, _shape(row.shape), row.dtype, *_sums([row]), shard, "" if row.trained else "frozen")


def _folded(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    dtypes, trained = {row.dtype for row in rows}, {row.trained for row in rows}
    note = "" if trained == {True} else "frozen" if trained == {False} else "partly frozen"
    return (
        name,
        f"{len(rows):,} arrays",
        dtypes.pop() if len(dtypes) == 1 else "mixed",
        *_sums(rows),
        "split" if any(row.shard for row in rows) else "",
        note,
    )


def _sums(rows: Sequence[Row]) -> tuple[str, str]:
    parameters = sum(row.parameters for row in rows)
    return f"{parameters:,}" if parameters else "-", format_bytes(sum(row.bytes for row in rows))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
