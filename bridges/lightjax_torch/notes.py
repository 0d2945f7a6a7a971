"""What a checkpoint of a torch training keeps beside its arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lightjax.data.position import decode, encode
from lightjax.errors import CheckpointError
from lightjax_torch import logged as logs
from lightjax_torch import random_states
from lightjax_torch.logged import Logged
from lightjax_torch.numerics import to_device
from lightjax_torch.state import load_optimizer, optimizer_rest

if TYPE_CHECKING:
    from lightjax_torch.engine import TorchEngine


def notes(engine: TorchEngine) -> dict[str, Any]:
    """Returns what a checkpoint keeps beside the arrays, as JSON; of several processes, what each of them keeps.

    Raises:
      CheckpointError: something in it would need a pickle; it is named.
    """
    found: dict[str, Any] = {
        "optimizers": [optimizer_rest(one) for one in engine.optimizers],
        "groups": _groups(engine),
        "frozen": [name for name, one in engine.module.named_parameters() if not one.requires_grad],
        "schedulers": [one.scheduler.state_dict() for one in engine.schedulers],
        "scaler": None if engine.numerics.scaler is None else engine.numerics.scaler.state_dict(),
        "optimizer_steps": engine.optimizer_steps,
        "average": engine.average.wanted,
        "hyper_parameters": _plain(engine.hyperparameters),
        **_of_process(engine),
        "module": _saved_by_module(engine),
        "callbacks": [one.state_dict() for one in engine.calls.callbacks],
    }
    processes = engine.processes
    if not processes.alone:
        place = None if engine.run is None else engine.run.place
        found["processes"] = processes.gathered(_encoded(engine, _of_process(engine)) | {"place": place})
    return _encoded(engine, found)


def _of_process(engine: TorchEngine) -> dict[str, Any]:
    """Returns what every process has of its own: random numbers, and what it gathered in the epoch."""
    return {
        "random": random_states.states() if engine.resumed_random is None else engine.resumed_random,
        "newest": dict(engine.log.newest),
        "epoch": [
            [name, one.reduce, one.forked, one.total, one.weight]
            for name, one in engine.log.current.running.items()
            if isinstance(one.reduce, str)
        ],
        "metrics": {
            name: {state: getattr(metric, state) for state in metric._defaults}
            | {"_update_count": metric._update_count}
            for name, metric in _torchmetrics(engine).items()
        },
    }


def _encoded(engine: TorchEngine, found: dict[str, Any]) -> dict[str, Any]:
    """Returns notes as JSON.

    Raises:
      CheckpointError: something in them would need a pickle; it is named.
    """
    kept = {}
    for name, value in found.items():
        try:
            kept[name] = encode(value)
        except CheckpointError as error:
            what = str(error).partition(", which")[0].partition("holds ")[2]
            raise CheckpointError(
                f"A checkpoint holds arrays and JSON, never pickles, but the {name} of "
                f"{type(engine.module).__name__} hold {what}; keep numbers, strings, arrays and tensors there."
            ) from error
    return kept


def _plain(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the hyperparameters that a checkpoint can hold; a module made of it anew is given the others."""
    kept = {}
    for name, value in hyperparameters.items():
        with suppress(CheckpointError):
            encode(value)
            kept[name] = value
    return kept


def restore_notes(engine: TorchEngine, notes: dict[str, Any]) -> None:
    """Takes back what `notes` returned."""
    found = {name: decode(value) for name, value in notes.items()} | _own(engine, notes)
    if found.get("average", False) != engine.average.wanted:
        there, asked = ("an", "none") if found.get("average") else ("no", "one")
        raise CheckpointError(
            f"The checkpoint has {there} average of the weights and the trainer's callbacks ask for {asked}, which "
            "would be another run. Resume with the same callbacks (lj.EMA and its like), or begin a new run with the "
            "weights (state=)."
        )
    if "groups" in found:
        _restore_trained(engine, found["groups"], set(found["frozen"]))
    for number, (optimizer, rest) in enumerate(zip(engine.optimizers, found["optimizers"], strict=True)):
        load_optimizer(optimizer, engine.restored_optimizers.get(str(number), {}), rest)
    engine.restored_optimizers = {}
    for scheduler, state in zip(engine.schedulers, found["schedulers"], strict=True):
        for name, value in vars(scheduler.scheduler).items():
            if isinstance(value, Counter) and name in state:
                state[name] = Counter(state[name])
        scheduler.scheduler.load_state_dict(state)
    if engine.numerics.scaler is not None and found["scaler"] is not None:
        engine.numerics.scaler.load_state_dict(found["scaler"])
    engine.optimizer_steps = found["optimizer_steps"]
    engine.resumed_random = found["random"]
    engine.log.newest.update({name: value.to(engine.device) for name, value in found["newest"].items()})
    engine.log.current = engine.log.train = Logged()
    for name, reduce, forked, total, weight in found["epoch"]:
        running = engine.log.current.running[name] = logs.Running(reduce, forked)
        running.total, running.weight = total.to(engine.device), weight
    for name, metric in _torchmetrics(engine).items():
        for state, value in found["metrics"].get(name, {}).items():
            setattr(metric, state, to_device(value, engine.device))
    for one, state in zip(engine.calls.callbacks, found.get("callbacks") or (), strict=False):
        if state:
            one.load_state_dict(state)
            if hasattr(one, "_restarting"):  # of Lightning's fine-tuning callbacks: the groups are there already
                one._restarting = False
    engine.calls.call("on_load_checkpoint", _checkpoint_dict(engine) | (found["module"] or {}))


def _groups(engine: TorchEngine) -> list[list[list[str | None]]]:
    """Returns the names of the parameters in the groups of each optimizer: hooks may add groups on the way."""
    names = {id(one): name for name, one in engine.module.named_parameters()}
    return [
        [[names.get(id(one)) for one in group["params"]] for group in opt.param_groups] for opt in engine.optimizers
    ]


def _restore_trained(engine: TorchEngine, groups: list[list[list[str | None]]], frozen: set[str]) -> None:
    """Gives optimizers the groups that they had, and freezes and thaws the parameters as they were.

    Raises:
      CheckpointError: the module does not have a parameter of theirs.
    """
    own = dict(engine.module.named_parameters())
    for optimizer, kept, now in zip(engine.optimizers, groups, _groups(engine), strict=True):
        if kept == now:
            continue
        if strange := [name for names in kept for name in names if name not in own]:
            raise CheckpointError(
                f"The optimizer of the checkpoint has parameters that {type(engine.module).__name__} does not have: "
                f"{', '.join(map(str, strange[:5]))}. Resume with the module that the run began with."
            )
        # Their settings come with their state.
        optimizer.param_groups = [{"params": [own[name] for name in names if name is not None]} for names in kept]
    changed = [one for name, one in own.items() if one.requires_grad is (name in frozen)]
    for one in changed:
        one.requires_grad_(not one.requires_grad)
    if changed:
        engine.preparation.replicate()


def _own(engine: TorchEngine, notes: dict[str, Any]) -> dict[str, Any]:
    """Returns what this process kept, and finds its place in the data."""
    parts = decode(notes.get("processes"))
    before, now = 1 if parts is None else len(parts), engine.processes
    if before != now.count:
        raise CheckpointError(
            f"The checkpoint is of {before} process{'es' if before > 1 else ''}, and {now.count} go on with it: each "
            "keeps random numbers and a place in the data of its own. Resume with as many, or begin a new run with the "
            "weights (state=)."
        )
    if parts is None:
        return {}
    mine = parts[now.rank]
    engine.data.train.own_place = mine.pop("place")
    return {name: decode(value) for name, value in mine.items()}


def _torchmetrics(engine: TorchEngine) -> dict[str, Any]:
    """Returns the torchmetrics objects of the module by name: their state crosses the steps of an epoch."""
    return {
        name: one
        for name, one in engine.module.named_modules()
        if hasattr(one, "_defaults") and hasattr(one, "_update_count")
    }


def _checkpoint_dict(engine: TorchEngine) -> dict[str, Any]:
    return {"state_dict": engine.module.state_dict(), "epoch": engine.epoch, "global_step": engine.optimizer_steps}


def _saved_by_module(engine: TorchEngine) -> dict[str, Any]:
    """Returns what `on_save_checkpoint` put into the checkpoint."""
    if not engine.calls.has("on_save_checkpoint") and not engine.calls.callbacks:
        return {}
    checkpoint = _checkpoint_dict(engine)
    own = set(checkpoint)
    engine.calls.call("on_save_checkpoint", checkpoint)
    return {name: value for name, value in checkpoint.items() if name not in own}
