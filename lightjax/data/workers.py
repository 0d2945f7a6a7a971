"""Workers: how the processes of torch's DataLoader are started beside JAX's threads.

A forked process has the locks of threads that it does not have: it may wait for one for ever. A fork server is a small
process without threads that forks instead, as Python does by itself from 3.14 on. What a worker needs is sent to it, so
it has to be picklable, and the program's main file is imported again, so it must not train when it is.
"""

from __future__ import annotations

import ast
import io
import multiprocessing
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# Of arrays that are copied into workers, all together; forked ones share them.
COPIED_BYTES = 2**30


def iterate(loader: Any) -> Iterator[Any]:
    """Returns `iter(loader)`; workers that it starts are forked from a server, unless the loader says how.

    Warns where they have to be forked from this process, and why.
    """
    if not _forks(loader):
        return iter(loader)
    if (reason := _why_not(loader)) is not None:
        warnings.warn(
            f"The {loader.num_workers} workers of the DataLoader are forked beside JAX's threads, which may lock up, "
            f"since {reason}. Otherwise they would come from a fork server. To choose yourself, write "
            "DataLoader(..., multiprocessing_context='forkserver', 'spawn' or 'fork').",
            stacklevel=2,
        )
        return iter(loader)
    with _from_a_server(loader):
        return iter(loader)


def _forks(loader: Any) -> bool:
    """Says whether iterating over a loader forks this process."""
    if not getattr(loader, "num_workers", 0) or getattr(loader, "multiprocessing_context", "none") is not None:
        return False
    if getattr(loader, "persistent_workers", False) and getattr(loader, "_iterator", None) is not None:
        return False
    # Asking for the method in use would settle it for the rest of the program.
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return method == "fork"


@contextmanager
def _from_a_server(loader: Any) -> Iterator[None]:
    context = multiprocessing.get_context("forkserver")
    # Imported once, in the server: an epoch that starts workers anew takes no seconds for it.
    context.set_forkserver_preload(["torch.utils.data", "lightjax", type(loader.dataset).__module__])
    loader.multiprocessing_context = "forkserver"
    try:
        yield
    finally:
        loader.multiprocessing_context = None


def _why_not(loader: Any) -> str | None:
    """Says why the workers of a loader cannot come from a server; None where they can."""
    sent = io.BytesIO()
    trial = _Pickler(sent)
    try:
        trial.dump((loader.dataset, loader.collate_fn, getattr(loader, "worker_init_fn", None)))
    except Exception as error:
        return f"what they need cannot be pickled ({type(error).__name__}: {error})"
    if (copied := trial.array_bytes * loader.num_workers) > COPIED_BYTES:
        return (
            f"the {trial.array_bytes / 1e9:.3g} GB of arrays they need would be copied to each, {copied / 1e9:.3g} GB"
        )
    main = sys.modules["__main__"]
    name, file = getattr(getattr(main, "__spec__", None), "name", None), getattr(main, "__file__", None)
    # Python imports neither what has no file nor a package's __main__ again.
    if file is None or (name is not None and f".{name}".endswith(".__main__")):
        here = b"__main__" in sent.getvalue()
        return "what they need is defined in this session, not in a module" if here else None
    return None if _is_guarded(Path(file)) else f"{file} has no `if __name__ == '__main__':` around what it runs"


class _Pickler(pickle.Pickler):
    """Tries whether something can be pickled, without the arrays; sums up those of numpy (torch's are shared)."""

    array_bytes = 0

    def persistent_id(self, obj: Any) -> str | None:
        self.array_bytes += obj.nbytes if isinstance(obj, np.ndarray) else 0
        return "array" if hasattr(type(obj), "__array__") else None


def _is_guarded(file: Path) -> bool:
    """Says whether a program looks at `__name__` before it runs."""
    try:
        statements = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False
    return any(
        isinstance(part, ast.Name) and part.id == "__name__"
        for statement in statements
        if isinstance(statement, ast.If)
        for part in ast.walk(statement.test)
    )
