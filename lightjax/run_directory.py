"""The directory of a run: where its metrics, checkpoints and profiles go."""

import os
import re
from pathlib import Path

__all__ = ["create_run_directory", "place_checkpoints"]

DEFAULT_ROOT = "lightjax_logs"
_VERSION = re.compile(r"version_(\d+)")


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
            "knows local and mounted file systems only. Pass a local path as default_root_dir and copy the "
            "run afterwards, or mount the bucket and pass the mount point."
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


def place_checkpoints(link: Path, place: Path) -> None:
    """Puts the checkpoints of a new run somewhere else than into its directory, and a link there.

    Args:
      link: `<root>/version_N/checkpoints`; nothing is there yet.
      place: a directory, made when it is missing. Where it holds the checkpoints of another run, those of this one go
        into a `version_N` in it: they are never mixed.

    Raises:
      OSError: it cannot be made.
    """
    if any(place.glob("step_*")):
        place = place / link.parent.name
    place.mkdir(parents=True, exist_ok=True)
    link.symlink_to(place.absolute(), target_is_directory=True)


def _highest_version(parent: Path) -> int:
    matches = (_VERSION.fullmatch(name) for name in os.listdir(parent))
    return max((int(match[1]) for match in matches if match), default=-1)


def _first_file(path: Path) -> Path:
    """The topmost part of `path` that exists and is no directory; `path` itself when there is none."""
    return next((part for part in (*reversed(path.parents), path) if part.exists() and not part.is_dir()), path)
