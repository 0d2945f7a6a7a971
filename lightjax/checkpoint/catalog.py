"""The checkpoints of a directory: which there are, and which to go on from."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from lightjax.checkpoint.checkpoint import Checkpoint
from lightjax.checkpoint.checksums import damage
from lightjax.checkpoint.location import is_remote, located
from lightjax.errors import CheckpointError

FOLDER = "checkpoints"
# Instead of the folder, where they are in an object store, to which no link leads.
ELSEWHERE = "checkpoints.txt"


def steps_in(directory: Path) -> list[Path]:
    """Returns the directories of checkpoints, whole or not, newest step first."""
    named = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in directory.glob("step_*") if path.is_dir()]
    return [path for match, path in sorted(named, key=lambda one: -int(one[0][1]) if one[0] else 0) if match]


def checkpoints_of(run: Path) -> Path:
    """Returns where the checkpoints of a run are, by its directory."""
    elsewhere = run / ELSEWHERE
    return located(elsewhere.read_text().strip()) if elsewhere.is_file() else run / FOLDER


def run_of(checkpoint: Checkpoint, root: Path) -> Path | None:
    """Returns the directory of the run that a checkpoint belongs to; None where it is not here.

    Args:
      checkpoint: of that run.
      root: where run directories are.
    """
    place = checkpoint.path.parent
    if place.name == FOLDER and not is_remote(place):
        return place.parent
    for run in _runs(root):
        known = checkpoints_of(run)
        if known == place or (not is_remote(known) and not is_remote(place) and known.resolve() == place.resolve()):
            return run
    return None


def place_checkpoints(run: Path, place: Path, *, shared: bool = False) -> None:
    """Puts the checkpoints of a run somewhere else than into its directory, and says there where.

    Args:
      run: its directory; nothing about checkpoints is there yet.
      place: a directory, made when it is missing, or a location in an object store.
      shared: put them beside those there are; otherwise they go into a `version_N` of their own, so that those of two
        runs are never mixed.

    Raises:
      OSError: it cannot be made.
    """
    if not shared and steps_in(place):
        place = place / run.name
    if is_remote(place):
        (run / ELSEWHERE).write_text(f"{place}\n")
    else:
        place.mkdir(parents=True, exist_ok=True)
        (run / FOLDER).symlink_to(place.absolute(), target_is_directory=True)


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


def find(resume: str | os.PathLike[str], root: Path, place: Path | None = None) -> Checkpoint | None:
    """Finds the checkpoint to resume from.

    Args:
      resume: "auto" for the newest whole checkpoint of the newest run under `root` that has one; or the directory of a
        checkpoint, of its run, or of the run's checkpoints.
      root: where run directories are.
      place: in an object store, where "auto" looks first: a machine that took over has no run directories.

    Returns:
      The checkpoint; None where "auto" finds none.

    Raises:
      CheckpointError: a given directory holds no whole checkpoint.
    """
    if resume == "auto":
        places = [] if place is None else [*_runs(place), place]
        for one in [*places, *map(checkpoints_of, _runs(root))]:
            if (found := newest_whole(one)) is not None:
                return found
        return None
    path = located(resume)
    if (path / "about").is_dir():
        return Checkpoint.open(path)
    known = checkpoints_of(path)
    found = newest_whole(known if known.is_dir() else path)
    if found is None:
        raise CheckpointError(
            f"resume={str(resume)!r} holds no whole checkpoint; give the directory of a checkpoint, of a run, or "
            "resume='auto'."
        )
    return found


def _runs(root: Path) -> list[Path]:
    """Returns the directories of runs, newest first."""
    found = [(re.fullmatch(r"version_(\d+)", path.name), path) for path in root.glob("version_*")]
    return [path for match, path in sorted(found, key=lambda one: -int(one[0][1]) if one[0] else 0) if match]
