"""Parameters of a checkpoint for another model: fine-tuning, transfer, parts of a larger network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lightjax import _tree
from lightjax.checkpoint.catalog import find
from lightjax.checkpoint.storage import Storage, read_about
from lightjax.errors import CheckpointError

PREFIX = "params/"
_SHOWN = 20


@dataclass(frozen=True)
class LoadReport:
    """What `load_params` found.

    Attributes:
      path: of the checkpoint.
      matched: loaded leaves: the name in the model by the name in the checkpoint.
      missing: names in the model that the checkpoint does not have; they kept their values.
      extra: names in the checkpoint that the model does not have.
      mismatched: leaves of another shape or kind, one clause each; they kept their values.
    """

    path: Path
    matched: dict[str, str]
    missing: list[str]
    extra: list[str]
    mismatched: list[str]

    @property
    def complete(self) -> bool:
        """Whether every leaf of each side found its like."""
        return not (self.missing or self.extra or self.mismatched)

    def __str__(self) -> str:
        renamed = [f"{old} -> {new}" for old, new in self.matched.items() if old != new]
        parts = [
            f"{self.path}: {len(self.matched)} leaves loaded{f', {len(renamed)} under a new name' * bool(renamed)}"
        ]
        for title, lines in (
            ("renamed", renamed),
            ("not in the checkpoint, left as they are", self.missing),
            ("not in the model, left out", self.extra),
            ("of another shape, left as they are", self.mismatched),
        ):
            if lines:
                shown = [f"    {line}" for line in lines[:_SHOWN]]
                more = [f"    and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
                parts += [f"  {title}:", *shown, *more]
        return "\n".join(parts)


def load_params(
    path: str | os.PathLike[str],
    into: Any,
    mapping: Mapping[str, str | None] | None = None,
    strict: bool = True,
) -> tuple[Any, LoadReport]:
    """Loads the parameters of a checkpoint, and nothing else of it, into a state or into parameters.

    The rest of the state stays as it is: step, optimizer and key are those of a new training. Each leaf takes the
    dtype and the placement of the one it replaces. Waits for the disk.

    Args:
      path: the directory of a checkpoint, or of a run, whose newest whole one is taken.
      into: a `TrainState` (or any state with `params` and `replace`), or a pytree of parameters.
      mapping: new names for those in the checkpoint: `{pattern: replacement}`, regular expressions as for `re.sub`,
        anchored at the beginning; the first that matches counts, and a replacement of None leaves the leaf out. Names
        are those `lightjax checkpoint show` prints, without "params/": `{"encoder/": "backbone/", "head/": None}`.
      strict: raise unless every leaf of each side finds its like (leaves left out by `mapping` aside).

    Returns:
      `into` with the parameters loaded, and a report to print.

    Raises:
      CheckpointError: there is no whole checkpoint, nothing matches, a pattern matches nothing, or, with `strict`, a
        leaf is missing, extra or of another shape; every one is listed.

    Example:
      >>> import lightjax as lj, jax.numpy as jnp, tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     checkpointer = lj.Checkpointer(directory)
      ...     checkpoint = checkpointer.save(1, {"params": {"old/w": jnp.ones(2), "head": jnp.ones(3)}}, metrics={})
      ...     checkpointer.close()
      ...     params = {"new": {"w": jnp.zeros(2)}, "head": jnp.zeros(5)}
      ...     params, report = lj.load_params(checkpoint, params, {"old/": "new/", "head": None}, strict=False)
      >>> params["new"]["w"].tolist(), report.matched, report.missing
      ([1.0, 1.0], {'old/w': 'new/w'}, ['head'])
    """
    found = find(path, Path())
    assert found is not None
    has_params = hasattr(into, "params") and hasattr(into, "replace")
    target = into.params if has_params else into
    wanted = _tree.named_leaves(target)
    saved = read_about(found.path)["leaves"]
    prefix = PREFIX if any(name.startswith(PREFIX) for name in saved) else ""
    names = _renamed(
        [name.removeprefix(prefix) for name in saved if name.startswith(prefix)], mapping or {}, found.path
    )
    matched = {old: new for old, new in names.items() if new in wanted and _fits(saved[prefix + old], wanted[new])}
    report = LoadReport(
        found.path,
        matched,
        missing=[name for name in wanted if name not in names.values()],
        extra=[old for old, new in names.items() if new is not None and new not in wanted],
        mismatched=[
            f"{new}: {saved[prefix + old]} in the checkpoint, {_tree.describe(wanted[new])} in the model"
            for old, new in names.items()
            if new in wanted and old not in matched
        ],
    )
    if not matched or (strict and not report.complete):
        raise CheckpointError(
            f"The parameters do not fit. {report}\nGive new names with mapping={{'encoder/': 'backbone/'}}, leave "
            "leaves out with mapping={'head/': None}, or load what fits with strict=False."
        )
    storage = Storage()
    try:
        values = storage.read_leaves(found.path, "state", {prefix + old: wanted[new] for old, new in matched.items()})
    finally:
        storage.close()
    loaded = {new: values[prefix + old] for old, new in matched.items()}
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: loaded.get(_tree.leaf_path(path), leaf), target)
    return (into.replace(params=params) if has_params else params), report


def _renamed(names: Iterable[str], mapping: Mapping[str, str | None], path: Path) -> dict[str, str | None]:
    """Maps each name to its new one, None for those left out."""
    renamed: dict[str, str | None] = {}
    unused = set(mapping)
    for name in names:
        renamed[name] = name
        for pattern, replacement in mapping.items():
            if found := re.match(pattern, name):
                renamed[name] = None if replacement is None else found.expand(replacement) + name[found.end() :]
                unused.discard(pattern)
                break
    if unused:
        raise CheckpointError(
            f"mapping has {sorted(unused)}, but no parameter of {path} begins so; it has: {', '.join(renamed)}."
        )
    taken = [new for new in renamed.values() if new is not None]
    if twice := sorted({new for new in taken if taken.count(new) > 1}):
        raise CheckpointError(f"mapping gives several leaves of {path} the same name: {', '.join(twice)}.")
    return renamed


def _fits(saved: str, leaf: Any) -> bool:
    """Says whether a leaf described as `float32[3,2]` can become one of the shape and the kind of `leaf`."""
    dtype, _, shape = saved.partition("[")
    both_float = jnp.issubdtype(jnp.dtype(dtype), jnp.floating) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return shape == _tree.describe(leaf).partition("[")[2] and (both_float or dtype == str(leaf.dtype))
