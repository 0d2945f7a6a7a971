"""Plans: what a train step needs of its devices, which need not be there: from compiling it ahead of time."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from lightjax import _tree
from lightjax._jaxpr import count_flops
from lightjax.data.stretch import stacked_spec
from lightjax.engine.hlo import Collective, Temporary, collectives, largest_temporaries
from lightjax.engine.jit import JitEngine
from lightjax.engine.memory import Memory, memory_of
from lightjax.errors import ConfigurationError
from lightjax.metrics import batch_size
from lightjax.summary import format_bytes

# "Used 22.6G of 15.75G hbm", "HLO temporaries (19.05G) exceeds available HBM (15.75G)"
_USED = re.compile(r"(?:Used |\()([\d.]+)([KMGT]?)\)?(?: of | exceeds available \w+ \()([\d.]+)([KMGT]?)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Plan:
    """What a compiled train step needs, for each device.

    Attributes:
      device_kind: what the devices are called.
      mesh: axis names with sizes.
      steps: train steps that the program makes in one call.
      memory: bytes, with the verdict; argument, output and temporary bytes are None where the compiler gave up because
        the program is too large.
      flops: of the matrix products and convolutions of one step over all devices, remat included.
      collectives: messages between devices, by kind, of one call.
      temporaries: the largest arrays the program makes, by the names of the operations.
      unsplit: the shapes, among those, that begin with all rows of the batch although it is split, and are larger than
        any leaf of the state: activations that `lj.shard_batch` would hold to the batch.
      shardings: how each leaf of the state is split, by path.
      train_step: the compiled `(state, batch) -> (state, metrics)`, for a loop of one's own; the state is donated. None
        for devices that are not there, for several steps a call, and for a program that does not fit.
      create_state: `(key, batch) -> state`, made where the step expects it.
    """

    device_kind: str
    mesh: Mapping[str, int]
    steps: int
    memory: Memory
    flops: int
    collectives: tuple[Collective, ...]
    temporaries: tuple[Temporary, ...]
    unsplit: tuple[str, ...]
    shardings: Mapping[str, str]
    train_step: Callable[[Any, Any], tuple[Any, Any]] | None = field(default=None, repr=False)
    create_state: Callable[[Any, Any], Any] | None = field(default=None, repr=False)

    @property
    def devices(self) -> int:
        """How many devices."""
        count = 1
        for size in self.mesh.values():
            count *= size
        return count

    @property
    def fits(self) -> bool | None:
        """Whether it fits the memory of a device; None where that is not known."""
        return self.memory.fits

    def check(self) -> None:
        """Refuses a program that does not fit.

        Raises:
          ConfigurationError: with the numbers and the largest arrays.
        """
        if self.fits is False:
            raise ConfigurationError(f"The train step does not fit its devices.\n{self}")

    def to_json(self) -> str:
        """Returns the plan as JSON."""
        numbers = {
            name: getattr(self, name)
            for name in ("device_kind", "steps", "devices", "flops", "fits", "unsplit", "shardings")
        }
        lists = {name: [asdict(one) for one in getattr(self, name)] for name in ("collectives", "temporaries")}
        memory = asdict(self.memory) | {"peak": self.memory.peak}
        return json.dumps(numbers | {"mesh": dict(self.mesh), "memory": memory} | lists, indent=2)

    def __str__(self) -> str:
        memory = self.memory
        axes = ", ".join(f"{name}={size}" for name, size in self.mesh.items())
        lines = [f"{self.devices} x {self.device_kind} ({axes}), {self.steps} step(s) a call", "", "each device"]
        lines += [
            f"  {name:<12} {format_bytes(value):>10}"
            for name, value in (
                ("arguments", memory.argument),
                ("outputs", memory.output),
                ("donated", memory.donated),
                ("temporaries", memory.temporary),
                ("program", memory.program),
                ("peak", memory.peak),
                ("has", memory.limit),
            )
            if value is not None
        ]
        lines.append(f"  {memory.verdict}")
        lines.append(f"  {self.flops / self.devices / self.steps:.4g} FLOP a step, if evenly spread")
        if self.collectives:
            lines += ["", "messages between devices, a call"]
            lines += [f"  {one.kind:<18} {one.count:>6}  {format_bytes(one.bytes):>10}" for one in self.collectives]
        if self.temporaries:
            lines += ["", "largest arrays the program makes"]
            lines += [f"  {format_bytes(one.bytes):>10}  {one.shape}  {one.name}" for one in self.temporaries]
        if self.unsplit:
            lines.append(f"  {', '.join(self.unsplit)}: all rows of the batch on every device. Hold activations there")
            lines.append("  to the batch: x = lj.shard_batch(x), after the embedding and at the top of each block.")
        split = {path: spec for path, spec in self.shardings.items() if spec != "whole"}
        lines += [
            "",
            f"leaves of the state: {len(split)} split, {len(self.shardings) - len(split)} whole on each device",
        ]
        lines += [f"  {path}  {spec}" for path, spec in list(split.items())[:40]]
        if len(split) > 40:
            lines.append(f"  and {len(split) - 40} more: plan.shardings")
        return "\n".join(lines)


def make_plan(engine: JitEngine, key: Any, batch: Any, steps: int, *, present: bool) -> Plan:
    """Compiles a train step, or several in one call, and reads what it needs.

    Args:
      engine: of the task, on the devices that are meant.
      key: for `init`, which is not run.
      batch: arrays or shapes of one batch, over all devices.
      steps: train steps a call.
      present: whether the devices are there, and the program can run.
    """
    layout = engine.layout
    batch = _tree.abstract(batch)
    shapes = engine.abstract_state(key, batch)
    state = jax.eval_shape(lambda state: engine.request.for_batches(state, batch), shapes)
    engine.trace_train(state, batch)
    traced = engine.traced("train")
    lowered = engine.lower_step() if steps == 1 else engine.lower("train", stacked_spec(batch, steps))
    device = layout.device
    train_step: Callable[[Any, Any], tuple[Any, Any]] | None = None
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory, text = _too_large(str(error)), _text_of_too_large(lowered)
    else:
        memory, text = memory_of(compiled, device), compiled.as_text()
        if steps == 1 and present:
            structure = jax.tree.structure(traced.state)

            def run(state: Any, batch: Any) -> tuple[Any, Any]:
                # Each run of `init` makes an optimizer of its own, which would make a structure of its own.
                state = jax.tree.unflatten(structure, jax.tree.leaves(state))
                return compiled(state, jax.device_put(batch, layout.batch(batch)))

            train_step = run

    temporaries = largest_temporaries(text)
    mesh = getattr(layout.replicated, "mesh", None)
    with layout.scope():
        jaxpr = jax.make_jaxpr(traced.step)(traced.state, traced.batch)
    return Plan(
        device_kind=device.device_kind,
        mesh={"data": 1} if mesh is None else dict(mesh.shape),
        steps=steps,
        memory=memory,
        flops=steps * count_flops(jaxpr),
        collectives=collectives(text),
        temporaries=temporaries,
        unsplit=_unsplit(temporaries, state, batch, layout),
        shardings={path: _spec(leaf) for path, leaf in _tree.named_leaves(layout.state(state)).items()},
        train_step=train_step,
        create_state=None if train_step is None else engine.create_state,
    )


def _too_large(message: str) -> Memory:
    """Reads the compiler's reason for giving up."""
    used = _USED.search(message)
    peak, limit = (None, None) if used is None else (_bytes(*used.groups()[:2]), _bytes(*used.groups()[2:4]))
    return Memory(None, None, None, None, None, limit, exceeded=peak or 0)


def _text_of_too_large(lowered: Any) -> str:
    """Returns the text of a program that its compiler gave up on; "" where it leaves none.

    The error has a sum and no names. Asked for its notes, the compiler writes the program down before it gives up,
    which it does early: after two seconds for a transformer on 256 chips.
    """
    with tempfile.TemporaryDirectory() as directory:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            lowered.compile(compiler_options={"xla_dump_to": directory})
        notes = sorted(Path(directory).glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size)
        return notes[-1].read_text() if notes else ""


def _unsplit(temporaries: Sequence[Temporary], state: Any, batch: Any, layout: Any) -> tuple[str, ...]:
    """Finds activations that begin with all rows of a batch that is split."""
    rows, largest = batch_size(batch), max((leaf.size for leaf in jax.tree.leaves(state)), default=0)
    if rows is None or all(sharding.is_fully_replicated for sharding in jax.tree.leaves(layout.batch(batch))):
        return ()
    shapes = {one.shape: [int(size) for size in re.findall(r"\d+", one.shape.partition("[")[2])] for one in temporaries}
    return tuple(
        shape for shape, sizes in shapes.items() if len(sizes) > 1 and sizes[0] == rows and math.prod(sizes) > largest
    )


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def _spec(sharding: Any) -> str:
    spec = getattr(sharding, "spec", ())
    return ", ".join(str(entry) for entry in spec) if any(entry is not None for entry in spec) else "whole"
