"""The command line: `lightjax checkpoint ls|verify|show`, `lightjax report`, `lightjax plan` and `lightjax port`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lightjax.checkpoint import Checkpoint, steps_in
from lightjax.checkpoint.catalog import checkpoints_of
from lightjax.checkpoint.checksums import damage
from lightjax.checkpoint.location import files_below, located, size_of
from lightjax.errors import CheckpointError, ConfigurationError
from lightjax.plan_command import add_plan
from lightjax.port_command import add_port


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
        action.add_argument("directory", type=located, help="of a run, of its checkpoints, or of one checkpoint")
        action.set_defaults(run=lambda chosen, function=function: function(chosen.directory))
    report = commands.add_parser("report", help="draw one or several runs", description=draw_report.__doc__)
    report.add_argument("directories", type=Path, nargs="+", metavar="directory", help="of a run; several are overlaid")
    report.add_argument("-o", "--output", type=Path, help=".html, .png, .svg or .pdf; report.html when left out")
    report.add_argument("--metrics", nargs="+", help="quantities (loss) or metrics (val/loss) to show; all by default")
    report.set_defaults(run=lambda chosen: draw_report(chosen.directories, chosen.output, chosen.metrics))
    add_plan(commands)
    add_port(commands)
    chosen = parser.parse_args(arguments)
    try:
        return chosen.run(chosen)
    except (CheckpointError, ConfigurationError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1


def draw_report(directories: Sequence[Path], output: Path | None, metrics: Sequence[str] | None) -> int:
    """Draws curves, speed, checkpoints and where the time went, of several runs in the same charts."""
    from lightjax.report.record import read_record
    from lightjax.report.writing import write

    names = [directory.absolute().name for directory in directories]
    unique = len(set(names)) == len(names)
    records = [
        read_record(directory, name if unique else str(directory))
        for directory, name in zip(directories, names, strict=True)
    ]
    written = write(records, output or (directories[0] if len(directories) == 1 else Path()) / "report.html", metrics)
    print(written)
    return 0


def list_checkpoints(directory: Path) -> int:
    """Prints a line for each checkpoint, newest first; says where files are missing or too short."""
    for path in _found(directory):
        try:
            checkpoint = Checkpoint.open(path)
        except CheckpointError:
            print(f"{path.name}  incomplete")
            continue
        size = sum(map(size_of, files_below(path)))
        fault = damage(path, hashed=False)
        metrics = "  ".join(f"{name} {value:.6g}" for name, value in checkpoint.metrics.items())
        print(f"{path.name}  {size / 1e6:.3g} MB  {metrics}" + (f"  damaged: {fault}" if fault else ""))
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
    known = checkpoints_of(directory)
    found = steps_in(known if known.is_dir() else directory)
    if not found:
        raise CheckpointError(
            f"{directory} holds no checkpoints; give the directory of a run, such as lightjax_logs/version_0."
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
