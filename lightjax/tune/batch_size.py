"""Finding a batch size: what the compiler says a step needs, and one step to confirm it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree
from lightjax.data.source import as_source
from lightjax.engine.contract import checked_init, checked_train_step
from lightjax.errors import ConfigurationError
from lightjax.metrics import batch_size
from lightjax.policy_request import PolicyRequest
from lightjax.task import TaskLike
from lightjax.tune.untouched import untouched


@dataclass(frozen=True)
class BatchSizeFinding:
    """What a search for a batch size found.

    Attributes:
      batch_size: the largest that fits; 0 where none does.
      bytes_needed: memory a step needs, by batch size, as the compiler says; None where it refused to compile.
      memory_limit: bytes that were to be had.
      confirmed: whether a step of this size has run.
    """

    batch_size: int
    bytes_needed: dict[int, int | None]
    memory_limit: int
    confirmed: bool


def find_batch_size(
    task: TaskLike,
    data: Any,
    *,
    init_val: int = 2,
    max_batch_size: int = 2**16,
    memory_limit: int | None = None,
    headroom: float = 0.1,
    confirm: bool = True,
    seed: int = 0,
) -> BatchSizeFinding:
    """Finds the largest power of two times `init_val` whose training step fits into the device's memory.

    The step is compiled for each size, which says what memory it needs without running anything; then one step runs, on
    repeated examples, to confirm. The task, the data and the random generators of the program are left as they were.

    Args:
      task: the task.
      data: training data, of which one batch is read; its examples are repeated.
      init_val: the smallest size that is tried.
      max_batch_size: the largest.
      memory_limit: bytes; those of the device when None (of the machine where the device is the CPU).
      headroom: share of the memory that is left free.
      confirm: whether to run a step.
      seed: of the key that `init` receives.

    Returns:
      The size, and what the compiler said of each that was tried.

    Raises:
      ConfigurationError: an argument is out of range, or the leaves of a batch share no first axis.
    """
    if init_val < 1 or max_batch_size < init_val or not 0.0 <= headroom < 1.0:
        raise ConfigurationError(
            f"find_batch_size got init_val={init_val}, max_batch_size={max_batch_size}, headroom={headroom}; sizes "
            "grow from 1 on, and a share below 1.0 is left free."
        )
    device = jax.devices()[0]
    limit = _memory(device) if memory_limit is None else memory_limit
    with untouched(data):
        batch = as_source(data, "data").first()
    if batch_size(batch) is None:
        raise ConfigurationError(
            "find_batch_size changes the first axis of every leaf of a batch, and those of this one share none: "
            + ", ".join(f"{path!r} {_tree.describe(leaf)}" for path, leaf in _tree.named_leaves(batch).items())
        )
    key = jax.random.key(seed)
    step = jax.jit(checked_train_step(task), donate_argnums=0)
    needed: dict[int, int | None] = {}
    programs: dict[int, Any] = {}
    size = init_val
    while size <= max_batch_size:
        state = jax.eval_shape(checked_init(task, PolicyRequest()), key, _of_size(batch, size))
        programs[size], needed[size] = _compiled(step, state, _tree.abstract(_of_size(batch, size)))
        if not _fits(needed[size], limit, headroom):
            break
        size *= 2
    fitting = [size for size, bytes_needed in needed.items() if _fits(bytes_needed, limit, headroom)]
    while confirm and fitting:
        if _runs(programs[fitting[-1]], task, key, _of_size(batch, fitting[-1])):
            break
        fitting.pop()
    return BatchSizeFinding(fitting[-1] if fitting else 0, needed, limit, confirm and bool(fitting))


def _compiled(step: Any, state: Any, batch: Any) -> tuple[Any, int | None]:
    """Compiles a step.

    Returns:
      The program and the bytes it needs; None for both where the compiler says that it cannot fit.
    """
    try:
        program = step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, None
    memory = program.memory_analysis()
    inputs, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    return program, inputs + outputs - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def _runs(program: Any, task: TaskLike, key: jax.Array, batch: Any) -> bool:
    """Runs one step; says whether there was memory for it."""
    try:
        state = jax.tree.map(jnp.copy, jax.jit(checked_init(task, PolicyRequest()))(key, batch))
        jax.block_until_ready(program(state, batch))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return False
    return True


def _fits(bytes_needed: int | None, limit: int, headroom: float) -> bool:
    return bytes_needed is not None and bytes_needed <= limit * (1 - headroom)


def _of_size(batch: Any, size: int) -> Any:
    return jax.tree.map(lambda leaf: np.resize(np.asarray(leaf), (size, *leaf.shape[1:])), batch)


def _memory(device: Any) -> int:
    """Returns the bytes of a device; of the machine for a CPU, which does not tell."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
