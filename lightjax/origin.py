"""Origin: where the state of a call comes from: the task's init, the user, or a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax

from lightjax import distributed
from lightjax.checkpoint import Checkpoint, Checkpoints, find
from lightjax.checkpoint.checkpointer import versions
from lightjax.checkpoint.location import is_remote
from lightjax.data.source import Source
from lightjax.engine.engine import Engine
from lightjax.errors import CheckpointError, ConfigurationError
from lightjax.progress.output import Output


def initial_state(engine: Engine, key: jax.Array, batch: Any, given: Any, max_steps: int | None) -> Any:
    """Makes the state a training begins with, on the device.

    Args:
      engine: runs the task's `init`.
      key: for `init`.
      batch: a real batch.
      given: a state of the user's, copied; a checkpoint, restored; None for the one that `init` makes.
      max_steps: limit of optimizer steps.

    Raises:
      ConfigurationError: a given state has done `max_steps` steps already, or what is asked of its policy cannot be.
      CheckpointError: the checkpoint is damaged or does not fit.
    """
    request = engine.request
    if given is None:
        return request.for_batches(engine.create_state(key, batch), batch)
    if isinstance(given, Checkpoint):
        restored = engine.restore_state(given, key, batch)
        return request.for_batches(engine.adopt_state(restored), batch)
    state = request.for_batches(engine.adopt_state(request.apply(given)), batch)
    step = steps_done(state)
    if max_steps is not None and step >= max_steps:
        raise ConfigurationError(
            f"max_steps={max_steps} was asked for, but the given state is at step {step} already; "
            "max_steps counts all optimizer steps of the state: raise it, or use max_epochs."
        )
    return state


def checkpoint_to_resume(
    resume: str | os.PathLike[str] | None, root: Path, place: Path | None, *, given: Any
) -> Checkpoint | None:
    """Finds the checkpoint that a run goes on from; says so where "auto" finds none.

    Process 0 looks for it and reads every byte of it; the others take what it found.

    Raises:
      ConfigurationError: a state was given as well.
      CheckpointError: there is no whole checkpoint, or it holds no position in a run.
    """
    if resume is None:
        return None
    if given is not None:
        raise ConfigurationError("fit got both state and resume; a resumed run has its state in the checkpoint.")
    found, outcome = None, {"path": "", "error": ""}
    if distributed.is_main():
        try:
            found = find(resume, root, place if place is not None and is_remote(place) else None)
            outcome["path"] = "" if found is None else os.fspath(found)
        except CheckpointError as error:
            outcome["error"] = str(error)
    outcome = json.loads(distributed.from_main(json.dumps(outcome)))
    if outcome["error"]:
        raise CheckpointError(outcome["error"])
    if not outcome["path"]:
        Output().write_line(f"resume='auto': no run to resume under {root}, so a new one begins")
        return None
    found = found or Checkpoint.open(outcome["path"])
    if "position" not in found.about():
        raise CheckpointError(
            f"The checkpoint {found.path} holds a state but no position in a run, so nothing can be resumed; "
            "begin a new run with its state: fit(..., state=lj.restore(path, like))."
        )
    if before := {name: one for name, one in found.about()["versions"].items() if versions().get(name, one) != one}:
        changes = ", ".join(f"{name} {one}, now {versions()[name]}" for name, one in before.items())
        Output().write_line(f"note: the run was saved with {changes}: last bits may differ from here on")
    return found


def state_to_evaluate(
    engine: Engine, key: jax.Array, data: Source, given: Any, trained: Any, checkpoints: Checkpoints
) -> Any:
    """Finds the state that an evaluation or prediction is of, and places it.

    Args:
      engine: places it.
      key: for the shapes of a state that is known by its path only.
      data: for the same.
      given: a state, a checkpoint or its directory, "best", "last", or None.
      trained: the last state of the last training; None without one.
      checkpoints: of that training.

    Raises:
      ConfigurationError: there is no such state.
    """
    if isinstance(given, str) and given in ("best", "last"):
        given = getattr(checkpoints, given)
        if given is None:
            raise ConfigurationError("The last fit of this Trainer left no checkpoint; pass state=result.state.")
    elif given is None:
        given = engine.present_state() if trained is None else trained
        if given is None:
            raise ConfigurationError(
                "No state was given and this Trainer has not trained one; pass state=result.state, or the "
                "directory of a checkpoint."
            )
    if isinstance(given, Checkpoint) and given.like is not None:
        return engine.place_state(engine.request.apply(given.restore(given.like)))
    if isinstance(given, str | os.PathLike):
        return engine.place_state(engine.restore_state(Checkpoint.open(given), key, data.first()))
    return engine.place_state(engine.request.apply(given))


def steps_done(state: Any) -> int:
    """Returns the optimizer steps a state has done, as far as it counts them."""
    return int(getattr(state, "step", 0))
