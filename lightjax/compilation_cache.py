"""The persistent compilation cache: a second start of the same program skips compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

# Programs that compile faster than this are not worth a file.
LEAST_COMPILE_S = 0.1


@contextmanager
def compilation_cache_in(directory: Path | None) -> Iterator[None]:
    """While entered, jax keeps what it compiles in a directory, and looks there first.

    A cache the user has configured is left alone. Entries are named by jax after the program, the versions and the
    devices; damaged ones are compiled anew.

    Args:
      directory: where; None for no cache.
    """
    if directory is None or _setting("jax_compilation_cache_dir") is not None:
        yield
        return
    least_compile_s = _setting("jax_persistent_cache_min_compile_time_secs")
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_COMPILE_S)
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_compile_s)
        # jax opens a cache once and would keep writing to this one.
        compilation_cache.reset_cache()


def _setting(name: str) -> Any:
    return getattr(jax.config, name)
