"""What a state is made of: every parameter with its shape, type and size, and the sums."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax._tree import leaf_path
from lightjax.summary_table import format_bytes, lines_of, tree_of, write
from lightjax.trainable import trained_leaves

__all__ = ["Row", "Summary", "format_bytes", "summarize"]

_MAX_ROWS = 80


@dataclass(frozen=True)
class Row:
    """A leaf of the state.

    Attributes:
      path: its name, such as `Dense_0/kernel`.
      shape: its shape over all devices; the key's shape for typed PRNG keys.
      dtype: its type, such as `float32` or `key<fry>`.
      parameters: how many trained numbers it holds; 0 for model state.
      bytes: its size over all devices, each replica counted once.
      shard: the shape that lies on each device, where it is split; None where it is whole.
      trained: False for a parameter that is frozen.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    bytes: int
    shard: tuple[int, ...] | None = None
    trained: bool = True


@dataclass(frozen=True)
class Summary:
    """The rows and sums of a state. `print(summary)` shows a table.

    Attributes:
      rows: the leaves of the parameters, then those of the model state; every leaf for a state that is not
        and has no `TrainState`.
      parameters: how many trained numbers there are.
      parameter_bytes: their size.
      model_state_bytes: the size of what the model carries besides parameters.
      optimizer_bytes: the size of the optimizer state.
      bytes: the size of the whole state, with step, keys and anything else.
      separator: between the parts of a row's path.
    """

    rows: tuple[Row, ...]
    parameters: int
    parameter_bytes: int
    model_state_bytes: int
    optimizer_bytes: int
    bytes: int
    separator: str = "/"

    @property
    def frozen(self) -> int:
        """How many of the parameters are not trained."""
        return sum(row.parameters for row in self.rows if not row.trained)

    def table(self, max_rows: int | None = _MAX_ROWS, depth: int | None = None) -> str:
        """Writes the summary as a table: modules with their sums, and inside of them their arrays.

        Args:
          max_rows: with more lines than this, modules are folded into one line each, the deepest first. None shows
            every array.
          depth: fold modules that lie as deep: 1 shows those at the top, 2 what they hold, and so on.
        """
        root = tree_of(self.rows, self.separator)
        lines = lines_of(root, depth, max_rows, self.separator)
        whole = len(lines_of(root, None, None, self.separator))
        totals = self._totals()
        if len(lines) < whole:
            folded = sum(int(line[1].removesuffix(" arrays").replace(",", "")) for line in lines if "arrays" in line[1])
            totals.append(
                f"{folded:,} arrays are folded into modules; print(lj.summarize(state).table(max_rows=None)) shows all"
            )
        return write(lines, totals)

    def __str__(self) -> str:
        return self.table()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Shows the table at the end of a notebook's cell."""
        printer.text(str(self))

    def _totals(self) -> list[str]:
        totals = [
            ("Parameters", f"{self.parameters:,}", self.parameter_bytes),
            ("Frozen", f"{self.frozen:,}", sum(row.bytes for row in self.rows if not row.trained)),
            ("Model state", "", self.model_state_bytes),
            ("Optimizer state", "", self.optimizer_bytes),
            ("Whole state", "", self.bytes),
        ]
        kept = [total for total in totals if total[2] or total[0] in ("Parameters", "Whole state")]
        width = max(len(count) for _, count, _ in kept)
        return [f"{name:<15}  {count:>{width}}  {format_bytes(size):>8}" for name, count, size in kept]


def summarize(state: Any) -> Summary:
    """Lists what a state is made of, without reading any value.

    Args:
      state: a pytree of arrays, or of their shapes (`jax.eval_shape(...)`): a `TrainState`, something that
        holds several, or any other. Of the last, all floating-point leaves count as parameters.

    Returns:
      The rows and sums.

    Raises:
      TypeError: a leaf is neither an array, nor a shape, nor a number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"Dense_0": {"bias": jnp.zeros(10), "kernel": jnp.zeros((784, 10))}}
      >>> print(summarize(params))
      Name      Shape   Dtype    Parameters     Size
      ----------------------------------------------
      Dense_0                         7,850  31.4 kB
        bias    10      float32          10     40 B
        kernel  784x10  float32       7,840  31.4 kB
      ----------------------------------------------
      Parameters       7,850   31.4 kB
      Whole state              31.4 kB
    """
    parts, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_train_state)
    train_states = [(path, part) for path, part in parts if _is_train_state(part)]
    whole = sum(row.bytes for row in _rows(state))
    if not train_states:
        rows = _rows(state, trained=True)
        return Summary(
            rows=tuple(rows),
            parameters=sum(row.parameters for row in rows),
            parameter_bytes=sum(row.bytes for row in rows if row.parameters),
            model_state_bytes=0,
            optimizer_bytes=0,
            bytes=whole,
        )
    params: list[Row] = []
    model_state: list[Row] = []
    optimizer_bytes = 0
    for path, part in train_states:
        prefix = f"{leaf_path(path)}/" if path else ""
        rows = _rows(part.params, prefix, trained=True, every=True)
        trainable = getattr(getattr(part, "policy", None), "trainable", None)
        trained = trained_leaves(trainable, part.params)
        params += [replace(row, trained=one) for row, one in zip(rows, trained, strict=True)]
        model_state += _rows(getattr(part, "model_state", None), f"{prefix}model_state/")
        optimizer_bytes += sum(row.bytes for row in _rows(part.opt_state))
    return Summary(
        rows=(*params, *model_state),
        parameters=sum(row.parameters for row in params),
        parameter_bytes=sum(row.bytes for row in params),
        model_state_bytes=sum(row.bytes for row in model_state),
        optimizer_bytes=optimizer_bytes,
        bytes=whole,
    )


def _is_train_state(node: Any) -> bool:
    return hasattr(node, "params") and hasattr(node, "opt_state")


def _rows(tree: Any, prefix: str = "", *, trained: bool = False, every: bool = False) -> list[Row]:
    """The leaves of a tree; with `trained`, the floating-point ones (or every one) count as parameters."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = f"{prefix}{leaf_path(path)}".rstrip("/")
        shape, dtype = _shape_and_dtype(name, leaf)
        counts = trained and (every or jnp.issubdtype(dtype, jnp.inexact))
        count = math.prod(shape)
        sharding = getattr(leaf, "sharding", None)
        shard = None if sharding is None else tuple(sharding.shard_shape(shape))
        split = shard if shard != shape else None
        rows.append(Row(name, shape, str(dtype), count if counts else 0, count * dtype.itemsize, split))
    return rows


def _shape_and_dtype(name: str, leaf: Any) -> tuple[tuple[int, ...], Any]:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return tuple(leaf.shape), leaf.dtype
    if isinstance(leaf, bool | int | float | complex):
        return (), jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype)
    raise TypeError(
        f"The state's leaf {name!r} is a {type(leaf).__name__}, {leaf!r:.80}. A state is a pytree of arrays: "
        "those can be compiled, placed on devices and saved. Keep it outside the state, or make it a static "
        "field of a dataclass registered with jax.tree_util.register_dataclass and metadata={'static': True}."
    )
