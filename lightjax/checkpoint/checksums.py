"""Checksums: what makes a checkpoint complete, and tells a damaged one.

Orbax notices no flipped bit in array data; a sha256 of every file does, and costs 0.3 s for 465 MB. An object store
keeps checksums of its own, and every byte would have to come back over the network: there only sizes are noted.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from lightjax.checkpoint.location import files_below, is_remote, size_of

FILE = "checksums.json"
# Orbax writes these after the rest; nothing that is restored depends on them.
UNCHECKED = (FILE, f"{FILE}.tmp", "_CHECKPOINT_METADATA", "commit_success.txt")
DESCRIPTIONS = ({"bytes", "sha256"}, {"bytes"})  # what is noted of a file: on a disk, in an object store


def write_checksums(directory: Path) -> None:
    """Writes the size and sha256 of every file of a checkpoint beside them."""
    hashed = not is_remote(directory)
    sums = {str(path.relative_to(directory)): _describe(path, hashed=hashed) for path in _files(directory)}
    if not hashed:
        (directory / FILE).write_text(json.dumps(sums, indent=1))  # appears whole or not at all
        return
    unfinished = directory / f"{FILE}.tmp"
    with open(unfinished, "w") as file:
        json.dump(sums, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, directory / FILE)


def damage(directory: Path, *, hashed: bool = True) -> str | None:
    """Says what is wrong with a checkpoint.

    Args:
      directory: of the checkpoint.
      hashed: read every byte; otherwise only look whether every file is there and has its size.

    Returns:
      One clause naming the file, or None for a checkpoint that is complete and as it was written.
    """
    try:
        sums = json.loads((directory / FILE).read_text())
    except FileNotFoundError:
        return f"{FILE} is missing: the checkpoint was not completed"
    except (OSError, ValueError) as error:
        return f"{FILE} cannot be read: {error}"
    for name, expected in sums.items():
        if set(expected) not in DESCRIPTIONS:
            return f"{FILE} is not what was written: it says {', '.join(expected) or 'nothing'} of {name}"
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if size_of(path) != expected["bytes"]:
            return f"{name} has {size_of(path)} bytes instead of {expected['bytes']}"
        if hashed and "sha256" in expected and _describe(path) != expected:
            return f"{name} is not what was written: its checksum differs"
    return None


def _files(directory: Path) -> list[Path]:
    return [path for path in files_below(directory) if path.name not in UNCHECKED]


def _describe(path: Path, *, hashed: bool = True) -> dict[str, int | str]:
    if not hashed:
        return {"bytes": size_of(path)}
    with open(path, "rb") as file:
        return {"bytes": size_of(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
