"""Tracer: what profilers need of the library that runs the steps; that of jax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from lightjax.profiler.heaviest import heaviest


class Held(NamedTuple):
    """An array or tensor that lives: "float32 [8, 3]" and its bytes."""

    kind: str
    bytes: int


class Tracer(Protocol):
    """Traces the library that runs the steps, and knows its devices and its memory.

    Attributes:
      library: its name.
      synchronous: whether a call of steps returns when they are done, so that its time is that of the device.
      advice: what helps, by what a run waits for, where it is not what helps with compiled steps.
    """

    library: str
    synchronous: bool
    advice: Mapping[str, str]

    def finished(self, values: Any) -> bool:
        """Says whether the devices have done what they were given; does not wait.

        Args:
          values: what the newest call returned.
        """
        ...

    def wait(self, values: Any) -> None:
        """Waits until the devices have done what they were given."""
        ...

    def annotated(self, action: str) -> AbstractContextManager[Any]:
        """Returns a context that stands in the trace under a name."""
        ...

    def step(self, number: int) -> AbstractContextManager[Any]:
        """Returns a context that stands in the trace as a call of train steps."""
        ...

    def start(self, directory: Path) -> None:
        """Begins a trace."""
        ...

    def stop(self, directory: Path, operations: int) -> tuple[Path, str]:
        """Ends the trace and writes it.

        Args:
          directory: where it goes.
          operations: how many of the heaviest are wanted.

        Returns:
          Where it lies, and its heaviest operations and longest gaps as text.
        """
        ...

    def held(self) -> Iterable[Held]:
        """Goes through the arrays that live."""
        ...

    def devices(self) -> Iterable[tuple[str, Mapping[str, int]]]:
        """Goes through the devices that say how much memory is used: "bytes_in_use", "peak_bytes_in_use", ..."""
        ...

    def save_memory(self, file: Path) -> bool:
        """Writes a profile of the memory, where the library has one; says whether it did."""
        ...


class JaxTracer:
    """Traces jax, with `jax.profiler`."""

    library = "jax"
    synchronous = False
    advice: Mapping[str, str] = {}

    def finished(self, values: Any) -> bool:
        """Says whether every array is there."""
        return all(leaf.is_ready() for leaf in jax.tree.leaves(values))

    def wait(self, values: Any) -> None:
        """Waits for the arrays."""
        jax.block_until_ready(values)

    def annotated(self, action: str) -> AbstractContextManager[Any]:
        """Returns an annotation."""
        return jax.profiler.TraceAnnotation(action)

    def step(self, number: int) -> AbstractContextManager[Any]:
        """Returns an annotation that TensorBoard takes for a step."""
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def start(self, directory: Path) -> None:
        """Begins a trace without Python calls: each would slow the loop and hide the rest."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        jax.profiler.start_trace(str(directory), profiler_options=options)

    def stop(self, directory: Path, operations: int) -> tuple[Path, str]:
        """Ends the trace; it lies where TensorBoard looks for it, `plugins/profile/DATE` of the directory."""
        jax.profiler.stop_trace()
        found = max(directory.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        return found.parent, heaviest(found, operations)

    def held(self) -> Iterable[Held]:
        """Goes through the arrays of all devices."""
        for array in jax.live_arrays():
            yield Held(f"{array.dtype} {'x'.join(map(str, array.shape)) or 'scalar'}", array.nbytes)

    def devices(self) -> Iterable[tuple[str, Mapping[str, int]]]:
        """Goes through the devices of this process; CPUs say nothing."""
        for device in jax.local_devices():
            if stats := device.memory_stats():
                yield str(device), stats

    def save_memory(self, file: Path) -> bool:
        """Writes every allocation with the Python lines that made it, for pprof."""
        jax.profiler.save_device_memory_profile(str(file))
        return True
