"""The directory of a run: where its metrics, checkpoints and profiles go."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from lightjax import distributed
from lightjax.checkpoint import Checkpoint
from lightjax.checkpoint.catalog import checkpoints_of, is_newest, place_checkpoints, run_of
from lightjax.checkpoint.location import is_remote, located
from lightjax.history import HISTORY_FILE

__all__ = ["RunPlaces", "create_run_directory", "run_places"]

DEFAULT_ROOT = "lightjax_logs"
_VERSION = re.compile(r"version_(\d+)")


class RunPlaces(NamedTuple):
    """Where a run's files are.

    Attributes:
      directory: of the run.
      checkpoints: where its checkpoints go.
      checkpoint: the one it goes on from, by its path among these where it is one of them; None for a new run.
      reports: the file with the reports before that; None for a new run.
    """

    directory: Path
    checkpoints: Path
    checkpoint: Checkpoint | None
    reports: Path | None


def run_places(root: str | os.PathLike[str] | None, checkpoint: Checkpoint | None, place: Path | None) -> RunPlaces:
    """Finds the directory of the run that a checkpoint is the newest of, or makes a new one.

    Process 0 decides for all: their disks may differ.

    Args:
      root: the directory that holds the runs.
      checkpoint: what the run goes on from; None for a new run.
      place: where the checkpoints of a new run go instead of its directory.

    Raises:
      OSError: the directory cannot be made.
    """
    decided: list[str] = []
    if distributed.is_main():
        known = (
            None if checkpoint is None else run_of(checkpoint, Path(DEFAULT_ROOT if root is None else root).absolute())
        )
        goes_on = checkpoint is not None and is_newest(checkpoint)
        # Another machine takes over what a run has left in an object store.
        taken_over = checkpoint is not None and goes_on and known is None and is_remote(checkpoint.path)
        if known is not None and goes_on:
            directory = known
        else:
            directory = create_run_directory(root)
            if checkpoint is not None and taken_over:
                place = checkpoint.path.parent
            if place is not None:
                place_checkpoints(directory, place, shared=taken_over)
        above = [] if checkpoint is None else [*([known] if known else []), *checkpoint.path.parents[:2]]
        reports = next((one / HISTORY_FILE for one in above if (one / HISTORY_FILE).exists()), None)
        same = goes_on and (known is not None or taken_over)
        decided = [str(directory), str(checkpoints_of(directory)), "same" if same else "", str(reports or "")]
    directory, checkpoints, same, reports = json.loads(distributed.from_main(json.dumps(decided)))
    checkpoints = located(checkpoints)
    if checkpoint is not None and same:
        checkpoint = dataclasses.replace(checkpoint, path=checkpoints / checkpoint.path.name)
    return RunPlaces(Path(directory), checkpoints, checkpoint, located(reports) if reports else None)


def create_run_directory(root: str | os.PathLike[str] | None = None) -> Path:
    """Makes a new, empty `<root>/version_N` and returns it.

    N is one more than the highest version there is, so that the newest run always carries the highest
    number. Several processes may call this at the same time: each gets a directory of its own.

    Args:
      root: the directory that holds the runs; made when it is missing. None means `lightjax_logs`
        under the working directory.

    Returns:
      The path of the new directory, relative if `root` is.

    Raises:
      ValueError: `root` is a URL such as `gs://...`; a run directory is a local one.
      NotADirectoryError: `root`, or something on the way to it, is a file.
      OSError: the directory cannot be made (permissions, read-only or full disk).

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as root:
      ...     [create_run_directory(root).name for _ in range(3)]
      ['version_0', 'version_1', 'version_2']
    """
    if "://" in str(root):
        raise ValueError(
            f"The run directory was asked for at {str(root)!r}. A run directory is made with mkdir, which "
            "knows local and mounted file systems only. Pass a local path as default_root_dir, and let the "
            "checkpoints go there, lj.ModelCheckpoint(dirpath='gs://...'); or mount the bucket and pass the mount "
            "point."
        )
    parent = Path(DEFAULT_ROOT if root is None else root)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = _highest_version(parent) + 1
        while True:
            directory = parent / f"version_{number}"
            try:
                directory.mkdir()  # fails where it exists: the one atomic step, and the only lock needed
                return directory
            except FileExistsError:
                number += 1
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"The run directory could not be made under '{parent}': '{_first_file(parent)}' is a file. Runs "
            "are kept in directories named version_N inside it. Pass another directory as "
            "default_root_dir, or move that file away."
        ) from error
    except OSError as error:
        raise type(error)(
            error.errno,
            f"The run directory could not be made under '{parent}' ({error.strerror}). Metrics and "
            "checkpoints are written there. Pass a directory you may write to as default_root_dir, or train "
            "without files: logger=False, enable_checkpointing=False",
        ) from error


def _highest_version(parent: Path) -> int:
    matches = (_VERSION.fullmatch(name) for name in os.listdir(parent))
    return max((int(match[1]) for match in matches if match), default=-1)


def _first_file(path: Path) -> Path:
    """The topmost part of `path` that exists and is no directory; `path` itself when there is none."""
    return next((part for part in (*reversed(path.parents), path) if part.exists() and not part.is_dir()), path)
