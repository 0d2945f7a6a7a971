"""Preflight: what was derived from the arguments and the data, on one screen, before the first step runs."""

from __future__ import annotations

from typing import Any

import jax

from lightjax import _tree
from lightjax._jaxpr import count_flops
from lightjax.callbacks.model_checkpoint import ModelCheckpoint
from lightjax.data.stage import FitData
from lightjax.data.stretch import Stretch
from lightjax.engine.engine import Engine
from lightjax.engine.jit import JitEngine
from lightjax.engine.memory import memory_of
from lightjax.metrics import batch_size
from lightjax.pace import Pace
from lightjax.run import Run
from lightjax.schedule import Schedule
from lightjax.summary import format_bytes
from lightjax.train_states import precision_of, train_states


def preflight(run: Run, engine: Engine, data: FitData, schedule: Schedule, pace: Pace, stretch: Stretch) -> str:
    """Writes the screen; the program of the stretch is compiled.

    Args:
      run: about to take its first step.
      engine: runs the steps.
      data: what is trained and evaluated on.
      schedule: limits and intervals.
      pace: how many steps run in one call.
      stretch: the first one.
    """
    compiled = isinstance(engine, JitEngine)
    facts = dict(_engine_facts(engine, stretch) if compiled else engine.facts())
    devices = facts.pop("devices", f"1 x {engine.platform}")
    lines = {
        "devices": f"{devices}, strategy {run.trainer.strategy!r}" if compiled else devices,
        "precision": facts.pop("precision", None) or _precision(run),
        "batch": _batch(run, schedule, int(devices.split()[0])),
        "epoch": _epoch(run, data, schedule),
        "steps a call": str(pace).removeprefix("steps_per_call="),
        **facts,
        "checkpoints": _checkpoints(run),
    }
    width = max(map(len, lines))
    return "\n".join(["Preflight", *(f"  {name:<{width}}  {text}" for name, text in lines.items())])


def format_flops(flops: float) -> str:
    """Writes a number of floating-point operations.

    Example:
      >>> format_flops(0), format_flops(12_300_000), format_flops(4.5e15)
      ('0 FLOP', '12.3 MFLOP', '4.5 PFLOP')
    """
    for unit in ("", "k", "M", "G", "T", "P"):
        if flops < 999.5 or unit == "P":
            break
        flops /= 1000
    return f"{flops:.3g} {unit}FLOP"


def _engine_facts(engine: JitEngine, stretch: Stretch) -> dict[str, str]:
    traced, device = engine.traced("train"), engine.layout.device
    mesh = getattr(engine.layout.replicated, "mesh", None)
    shape = dict(mesh.shape) if mesh is not None else {}
    axes = f" ({', '.join(f'{name}={size}' for name, size in shape.items())})" if shape else ""
    count = mesh.size if mesh is not None else 1
    memory = memory_of(engine.program("train", stretch), device)
    capacity = stretch.steps.capacity
    limit = "" if memory.limit is None else f" of {format_bytes(memory.limit)}"
    with engine.layout.scope():
        flops = count_flops(jax.make_jaxpr(traced.step)(traced.state, traced.batch))
    return {
        "devices": f"{count} x {device.device_kind}{axes}",
        "FLOPs a step": f"{format_flops(flops)} (matrix products and convolutions, all devices)",
        "peak memory": f"{format_bytes(memory.peak)}{limit} on each device, in calls of up to {capacity} step(s)",
    }


def _precision(run: Run) -> str:
    dtypes = {str(leaf.dtype) for one in train_states(run.state).values() for leaf in jax.tree.leaves(one.params)}
    kept = f"parameters {', '.join(sorted(dtypes))}" if dtypes else "the state's own"
    wanted, precision = run.trainer.policy.get("precision"), precision_of(run.state)
    if wanted is None:
        return f"{kept}, as init made them" if dtypes else kept
    compute = precision.compute or "as they are"
    return f"{kept}, compute {compute} (precision={wanted!r})"


def _batch(run: Run, schedule: Schedule, devices: int) -> str:
    size, group = batch_size(run.batch_spec), schedule.accumulation.at(run.epoch)
    if size is None:
        return "as the loader gives it"
    parts = [f"{size:,} examples"]
    if devices > 1:
        parts.append(f"{size / devices:,.4g} on each device")
    if group > 1:
        parts.append(f"{group} of them a step: {size * group:,} examples")
    return ", ".join(parts)


def _epoch(run: Run, data: FitData, schedule: Schedule) -> str:
    batches = data.train.batches
    total = schedule.total_steps(run.step, batches)
    epoch = "of unknown length" if batches is None else f"{schedule.accumulation.steps(1, batches):,} steps"
    whole = "" if total is None else f", {total - run.step:,} steps in all"
    evaluated = ""
    if data.val:
        counts = [one.batches for one in data.val.values()]
        known = "" if None in counts else f" on {sum(count or 0 for count in counts):,} batches"
        evaluated = f"; evaluated{known}"
    return epoch + whole + evaluated


def _checkpoints(run: Run) -> str:
    keeper: Any = next((one for one in run.trainer.callbacks if isinstance(one, ModelCheckpoint)), None)
    if keeper is None or not run.saves:
        return "none"
    when = [f"every {keeper.every_n_steps} steps"] if keeper.every_n_steps else []
    if keeper.every_n_epochs:
        when.append("every epoch" if keeper.every_n_epochs == 1 else f"every {keeper.every_n_epochs} epochs")
    size = format_bytes(_tree.size_in_bytes(run.state))
    return f"{size} each, {' and '.join(when) or 'when asked'}, in {run.directory}"
