"""Compiler: lowered programs compiled in a background thread, one after the other."""

from __future__ import annotations

import ctypes
import functools
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from lightjax.engine.memory import refusal


class Compiler:
    """Compiles in a thread that lives from the first program to `close`.

    Args:
      options: of XLA, for every program.

    Attributes:
      compile_s: seconds the newest program took to compile.
    """

    def __init__(self, options: Mapping[str, str | bool]) -> None:
        self._options = options
        self.compile_s = 0.0
        self._thread: ThreadPoolExecutor | None = None

    def submit(
        self, lowered: Any, *, sequential: bool = False, check: Callable[[Any], None] | None = None
    ) -> Future[Callable[..., Any]]:
        """Begins to compile; does not wait.

        Args:
          lowered: the program.
          sequential: in the sequential order of operations of XLA on the CPU.
          check: called with the compiled program; what it raises is raised to who asks for the program.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="lightjax-compiler")
        program = self._thread.submit(self._compile, lowered, _sequential() if sequential else None, check)
        # After the program is handed over: nobody waits for it.
        self._thread.submit(_give_memory_back)
        return program

    def close(self) -> None:
        """Ends the thread, after what it is at; a later compilation begins a new one."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def _compile(
        self, lowered: Any, options: dict[str, str | bool] | None, check: Callable[[Any], None] | None
    ) -> Callable[..., Any]:
        begun_s = time.perf_counter()
        try:
            program = lowered.compile(compiler_options={**self._options, **(options or {})} or None)
        except jax.errors.JaxRuntimeError as error:
            raise refusal(error) or error from error
        self.compile_s = time.perf_counter() - begun_s
        if check is not None:
            check(program)
        return program


def _give_memory_back() -> None:
    """Gives what XLA's compiler has freed back to the system, where the C library (glibc) knows how.

    glibc keeps it in the pools of the compiler's threads, and the next program takes more beside it: an MLP's training
    takes 293 instead of 323 MB at its peak, with everything on 329 instead of 363; a hand-written loop takes 319.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


@functools.cache
def _sequential() -> dict[str, str | bool] | None:
    """Asks XLA on the CPU for the sequential order of operations, where it knows how.

    Its default order runs small operations side by side, and handing them to threads costs more than it gains: an MLP's
    step that logs 10 scalars takes 81 us instead of 107, with the same bits. Not for convolutions: a small CNN's step
    takes 9.3 ms instead of 7.3 (docs/decisions.md).
    """
    options: dict[str, str | bool] = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    try:
        jax.jit(lambda x: x).lower(jax.ShapeDtypeStruct((), np.float32)).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return None  # another version of XLA, without this option
    return options
