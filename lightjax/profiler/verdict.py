"""Verdict: what a run waits for, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from lightjax.profiler.times import Times, format_duration

Bound = Literal["data", "device", "dispatch", "checkpoint", "evaluation", "logging", "callback", "nothing"]

NAMES: dict[Bound, str] = {
    "data": "data-bound",
    "device": "compute-bound",
    "dispatch": "dispatch-bound",
    "checkpoint": "checkpoint-bound",
    "evaluation": "evaluation-bound",
    "logging": "logging-bound",
    "callback": "callback-bound",
}
# The devices are the slowest part where at least this share of the calls finds them at work.
BUSY_SHARE = 0.75


@dataclass(frozen=True)
class Verdict:
    """What a run waits for.

    Attributes:
      bound: what the most time goes to.
      share: of the time of the run, compiling left out.
      text: a sentence with what helps.
    """

    bound: Bound
    share: float
    text: str


def verdict(times: Times, advice: Mapping[str, str] = MappingProxyType({})) -> Verdict:
    """Judges where the time of a run went; compiling, and what a profiler itself took, are left out.

    The loop waits for the devices, or it does something else. What stops the steps (checkpoints, evaluation, logging,
    callbacks) is named where it takes the most time. Otherwise the devices are the slowest part where the loop mostly
    waits for them, or where most calls find them still at work; else it is what the loop does in the meantime: it waits
    for data, or it starts calls.

    Args:
      times: of a run.
      advice: what helps, by what it waits for, where that is not what helps with compiled steps; see `Tracer`.

    Example:
      >>> from lightjax.profiler import Action, Times
      >>> actions = (Action("data", 6.2, 100), Action("device", 3.8, 100))
      >>> reading = (Action("reading", 9.0, 100),)
      >>> print(verdict(Times(10.0, actions, reading, 100, 100, 99)).text)
      data-bound: 62 % of the time waits for data. Reading a batch takes 90 ms: raise num_workers, prepare the data
      once, or keep it on the device with lj.ArrayLoader(..., on_device=True).
    """
    seconds = times.seconds - times.spent("compilation", "profiler")
    if not times.calls or seconds <= 0:
        return Verdict("nothing", 0.0, "No steps were run.")
    callbacks = [one for one in times.actions if one.name.startswith("callback ")]
    spent: dict[Bound, float] = {
        "device": times.spent("device"),
        "data": times.spent("data", "reading", "moving"),
        "dispatch": times.spent("dispatch", "rest", "display"),
        "checkpoint": times.spent("checkpoint"),
        "evaluation": times.spent("evaluation"),
        "logging": times.spent("logging"),
        "callback": sum(one.seconds for one in callbacks),
    }
    bound = max(spent, key=lambda name: spent[name])
    if bound in ("data", "dispatch") and times.calls - times.idle_calls >= BUSY_SHARE * times.calls:
        bound = "device"
    share = spent[bound] / seconds
    text = advice.get(bound) or _advice(bound, times)
    return Verdict(bound, share, f"{NAMES[bound]}: {100 * share:.0f} % of the time {text}")


def _advice(bound: Bound, times: Times) -> str:
    if bound == "device":
        at_work = 100 * (1 - times.idle_calls / times.calls)
        return (
            f"waits for the device, and {at_work:.0f} % of the calls found it at work. What helps is a faster step: "
            "precision='bf16-mixed', more devices; profiler='jax' names its heaviest operations."
        )
    if bound == "data":
        return f"waits for data. {_data_advice(times)}"
    if bound == "dispatch":
        fuse = "steps_per_call='auto' (or a number, such as 32), callbacks that look less often (every_n_steps), "
        return (
            f"starts calls of {times.steps / times.calls:.3g} steps, and the device is idle meanwhile. What helps is "
            f"fewer calls: {fuse if times.steps < 2 * times.calls else ''}larger batches, fewer arrays in the state."
        )
    if bound == "checkpoint":
        return (
            "saves checkpoints. Save less often, lj.ModelCheckpoint(every_n_epochs=..., every_n_train_steps=...), or "
            "to a faster disk."
        )
    if bound == "evaluation":
        return (
            "evaluates. Evaluate less often (check_val_every_n_epoch, val_check_interval), on less "
            "(limit_val_batches), or in larger batches."
        )
    if bound == "logging":
        return "goes to loggers. Log less often: log_every_n_steps."
    slowest = max(times.actions, key=lambda one: one.seconds * one.name.startswith("callback "))
    name = slowest.name.removeprefix("callback ")
    return f"goes to callbacks, the most to {name}. Let it look less often: every_n_steps."


def _data_advice(times: Times) -> str:
    both = (*times.actions, *times.beside)
    reading_s = sum(one.seconds for one in both if one.name == "reading") / max(1, times.steps)
    moving_s = sum(one.seconds for one in both if one.name == "moving") / max(1, times.steps)
    on_device = "keep it on the device with lj.ArrayLoader(..., on_device=True)."
    if moving_s > reading_s:
        return (
            f"Moving a batch takes {format_duration(moving_s)}: send smaller types (uint8 images, converted in the "
            f"step), or {on_device}"
        )
    return (
        f"Reading a batch takes {format_duration(reading_s)}: raise num_workers, prepare the data once, or {on_device}"
    )
