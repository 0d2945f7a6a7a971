"""The command line: `lightjax checkpoint ls|verify|show DIRECTORY`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lightjax.checkpoint import Checkpoint, steps_in
from lightjax.checkpoint.catalog import FOLDER
from lightjax.errors import CheckpointError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: what was typed after `lightjax`; taken from the process when None.

    Returns:
      The exit code: 0, or 1 where something is wrong with what was asked about.
    """
    parser = argparse.ArgumentParser(prog="lightjax", description="Tools around runs of lightjax.")
    commands = parser.add_subparsers(required=True, metavar="command")
    checkpoint = commands.add_parser("checkpoint", help="look at the checkpoints of a run")
    actions = checkpoint.add_subparsers(required=True, metavar="action")
    for name, function, text in (
        ("ls", list_checkpoints, "list steps, sizes, metrics"),
        ("verify", verify_checkpoints, "read every byte and compare it with the checksums"),
        ("show", show_checkpoint, "print what is known of one checkpoint: position, metrics, leaves"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("directory", type=Path, help="of a run, of its checkpoints, or of one checkpoint")
        action.set_defaults(run=function)
    chosen = parser.parse_args(arguments)
    try:
        return chosen.run(chosen.directory)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1


def list_checkpoints(directory: Path) -> int:
    """Prints a line for each checkpoint, newest first."""
    for path in _found(directory):
        try:
            checkpoint = Checkpoint.open(path)
        except CheckpointError:
            print(f"{path.name}  incomplete")
            continue
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        metrics = "  ".join(f"{name} {value:.6g}" for name, value in checkpoint.metrics.items())
        print(f"{path.name}  {size / 1e6:.3g} MB  {metrics}")
    return 0


def verify_checkpoints(directory: Path) -> int:
    """Prints whether each checkpoint is whole; the exit code is 1 if one is not."""
    broken = 0
    for path in _found(directory):
        try:
            fault = Checkpoint.open(path).damage()
        except CheckpointError as error:
            fault = str(error)
        print(f"{path.name}  {fault or 'whole'}")
        broken += fault is not None
    return int(broken > 0)


def show_checkpoint(directory: Path) -> int:
    """Prints what is kept beside the arrays of a checkpoint (the newest, of several), as JSON."""
    print(json.dumps(Checkpoint.open(_found(directory)[0]).about(), indent=2))
    return 0


def _found(directory: Path) -> list[Path]:
    if (directory / "about").is_dir():
        return [directory]
    found = steps_in(directory / FOLDER if (directory / FOLDER).is_dir() else directory)
    if not found:
        raise CheckpointError(
            f"{directory} holds no checkpoints; give the directory of a run, such as lightjax_logs/version_0."
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
