"""Locations: where checkpoints are, in a directory or, as `gs://bucket/path`, in an object store.

A location is a `pathlib.Path`, or for a URL a path of `etils.epath` with the same methods: nothing else here has to
know which.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lightjax.errors import ConfigurationError


def located(path: str | os.PathLike[str]) -> Path:
    """Returns a path, absolute, or the location of a URL.

    Raises:
      ConfigurationError: orbax has no way to write to such a URL.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return Path(text).absolute()
    if not text.startswith("gs://"):
        raise ConfigurationError(
            f"Checkpoints were asked for at {text!r}, but orbax writes arrays to gs:// and to file systems only: mount "
            "the bucket and give the directory it is mounted at."
        )
    # Imported with orbax at the latest, which is imported late.
    from etils import epath

    return epath.Path(text)  # pyright: ignore[reportReturnType]


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Says whether a path is a URL: of an object store, which keeps checksums of its own and renames nothing."""
    return "://" in os.fspath(path)


def files_below(directory: Path) -> Iterator[Path]:
    """Passes over all files in a directory and in those in it."""
    for path in sorted(directory.iterdir(), key=lambda path: path.name):
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def size_of(path: Path) -> int:
    """Returns the size of a file in bytes."""
    found = path.stat()
    return found.st_size if hasattr(found, "st_size") else found.length  # pyright: ignore[reportAttributeAccessIssue]


def remove(directory: Path) -> None:
    """Removes a directory with all that is in it; what cannot be removed is left."""
    if is_remote(directory):
        directory.rmtree(missing_ok=True)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        shutil.rmtree(directory, ignore_errors=True)
