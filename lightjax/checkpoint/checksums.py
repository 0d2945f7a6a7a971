"""Checksums: what makes a checkpoint complete, and tells a damaged one.

Orbax notices no flipped bit in array data; a sha256 of every file does, and costs 0.3 s for 465 MB.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

FILE = "checksums.json"
# Orbax writes these after the rest; nothing that is restored depends on them.
UNCHECKED = (FILE, f"{FILE}.tmp", "_CHECKPOINT_METADATA", "commit_success.txt")


def write_checksums(directory: Path) -> None:
    """Writes the size and sha256 of every file of a checkpoint beside them."""
    sums = {str(path.relative_to(directory)): _describe(path) for path in _files(directory)}
    unfinished = directory / f"{FILE}.tmp"
    with open(unfinished, "w") as file:
        json.dump(sums, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, directory / FILE)


def damage(directory: Path) -> str | None:
    """Says what is wrong with a checkpoint.

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
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _describe(path) != expected:
            return f"{name} is not what was written: its checksum differs"
    return None


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in UNCHECKED)


def _describe(path: Path) -> dict[str, int | str]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
