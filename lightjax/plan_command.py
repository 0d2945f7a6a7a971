"""The command `lightjax plan script.py:task`: what a train step needs, without running it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from lightjax.errors import ConfigurationError


def add_plan(commands: Any) -> None:
    """Adds the command to a parser's commands."""
    text = "compile a train step ahead of time, for the devices here or a TPU pod that is not, and say what it needs"
    plan = commands.add_parser("plan", help=text, description=text)
    plan.add_argument(
        "task", metavar="SCRIPT:TASK", help="a Python file and the name in it of a task, or what makes it"
    )
    plan.add_argument(
        "--batch", default="batch", help="the name of a batch (arrays or shapes), or what makes it: %(default)s"
    )
    plan.add_argument("--batch-size", type=int, help="examples of the batch over all devices, instead of its own")
    plan.add_argument("--topology", help="a TPU pod, such as v5e:16x16 or v5p:4x4x4; the devices here without it")
    plan.add_argument(
        "--strategy", default="auto", help="auto, jit, fsdp or pmap, or a name in the script: %(default)s"
    )
    plan.add_argument("--precision", help="such as bf16-mixed")
    plan.add_argument("--steps-per-call", type=int, default=1, help="train steps of a call: %(default)s")
    plan.add_argument("--json", action="store_true", help="print JSON instead of a table")
    plan.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace) -> int:
    """Prints the plan; the exit code is 1 if the program does not fit."""
    if arguments.topology is not None:
        # What is compiled for is not here: no accelerator needs to be started for it.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    file, _, name = arguments.task.rpartition(":")
    if not file or not Path(file).is_file():
        raise ConfigurationError(
            f"{arguments.task!r} names no task: write the file and the name, such as train.py:task."
        )
    script = _load(Path(file))
    task, batch = _named(script, name), _named(script, arguments.batch)
    import jax

    from lightjax import _tree
    from lightjax.strategy import NAMES
    from lightjax.trainer import Trainer

    batch = _tree.abstract(batch)
    if arguments.batch_size is not None:
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((arguments.batch_size, *leaf.shape[1:]), leaf.dtype), batch
        )
    strategy = arguments.strategy if arguments.strategy in NAMES else _named(script, arguments.strategy)
    trainer = Trainer(strategy=strategy, precision=arguments.precision)
    plan = trainer.plan(task, batch, topology=arguments.topology, steps_per_call=arguments.steps_per_call)
    print(plan.to_json() if arguments.json else plan)
    return int(plan.fits is False)


def _load(file: Path) -> Any:
    """Runs a script under its own name, so that what it does as a program is left out."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    # What the script imports beside itself is found as if it ran.
    sys.path.insert(0, str(file.parent.absolute()))
    spec.loader.exec_module(script)
    return script


def _named(script: Any, name: str) -> Any:
    found = getattr(script, name, None)
    if found is None:
        names = ", ".join(sorted(one for one in vars(script) if not one.startswith("_")))
        raise ConfigurationError(f"{script.__file__} has no {name!r}; it has {names}.")
    is_task = callable(getattr(found, "train_step", None))
    return found() if callable(found) and not is_task else found
