"""The checkpoints of a directory: which there are, and which to go on from."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from lightjax.checkpoint.checkpoint import Checkpoint
from lightjax.checkpoint.checksums import damage
from lightjax.errors import CheckpointError

FOLDER = "checkpoints"


def steps_in(directory: Path) -> list[Path]:
    """Returns the directories of checkpoints, whole or not, newest step first."""
    named = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in directory.glob("step_*") if path.is_dir()]
    return [path for match, path in sorted(named, key=lambda one: -int(one[0][1]) if one[0] else 0) if match]


def newest_whole(directory: Path) -> Checkpoint | None:
    """Returns the newest checkpoint that is complete and undamaged; warns about each one that is not.

    Args:
      directory: holds `step_N` directories.
    """
    for path in steps_in(directory):
        try:
            checkpoint = Checkpoint.open(path)
            fault = checkpoint.damage()
        except CheckpointError as error:
            fault, checkpoint = str(error), None
        if checkpoint is not None and fault is None:
            return checkpoint
        warnings.warn(f"The checkpoint {path} is passed over: {fault}.", stacklevel=2)
    return None


def is_newest(checkpoint: Checkpoint) -> bool:
    """Says whether no checkpoint beside it is newer and whole: going on from an older one would destroy it."""
    newer = [path for path in steps_in(checkpoint.path.parent) if int(path.name.partition("_")[2]) > checkpoint.step]
    return all(damage(path) is not None for path in newer)


def find(resume: str | os.PathLike[str], root: Path) -> Checkpoint | None:
    """Finds the checkpoint to resume from.

    Args:
      resume: "auto" for the newest whole checkpoint of the newest run under `root` that has one; or the directory of a
        checkpoint, of its run, or of the run's checkpoints.
      root: where run directories are.

    Returns:
      The checkpoint; None where "auto" finds none.

    Raises:
      CheckpointError: a given directory holds no whole checkpoint.
    """
    if resume == "auto":
        runs = [(re.fullmatch(r"version_(\d+)", path.name), path) for path in root.glob("version_*")]
        for match, run in sorted(runs, key=lambda one: -int(one[0][1]) if one[0] else 0):
            if match and (found := newest_whole(run / FOLDER)) is not None:
                return found
        return None
    path = Path(resume).absolute()
    if (path / "about").is_dir():
        return Checkpoint.open(path)
    found = newest_whole(path / FOLDER if (path / FOLDER).is_dir() else path)
    if found is None:
        raise CheckpointError(
            f"resume={str(resume)!r} holds no whole checkpoint; give the directory of a checkpoint, of a run, or "
            "resume='auto'."
        )
    return found
