"""Profiling: what profilers need of torch, through `torch.profiler`."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from lightjax.profiler.heaviest import DeviceTrace, Span, described, device_trace, is_action
from lightjax.profiler.tracer import Held

ACTIVITIES = {"cuda": "CUDA", "xpu": "XPU"}


class TorchTracer:
    """Traces torch; see `lightjax.profiler.Tracer`.

    Args:
      device: where the module runs. On the CPU a step is done when its call returns.
      backend: what runs the steps, for the advice.
    """

    library = "torch"

    def __init__(self, device: torch.device, backend: Any = "eager") -> None:
        self.device = device
        self.synchronous = device.type == "cpu"
        compiled = "backend='jax'" if backend != "eager" else "backend='inductor' or 'jax'"
        self.advice: Mapping[str, str] = {
            "device": (
                f"computes steps. What helps is a faster step: precision='bf16-mixed', {compiled}; profiler='jax' "
                "names its heaviest operations."
            ),
            "dispatch": (
                "starts the operations of torch one by one, and the device is idle meanwhile. What helps is fewer and "
                f"larger operations: {compiled}, larger batches."
            ),
        }
        self._trace: Any = None

    def finished(self, values: Any) -> bool:
        """Says whether the device has nothing left to do; False where torch cannot tell."""
        streams = getattr(torch, self.device.type, None)
        if not hasattr(streams, "current_stream"):
            return self.synchronous
        return bool(streams.current_stream(self.device).query())  # pyright: ignore[reportOptionalMemberAccess]

    def wait(self, values: Any) -> None:
        """Waits for the device."""
        if not self.synchronous:
            getattr(torch, self.device.type).synchronize()

    def annotated(self, action: str) -> AbstractContextManager[Any]:
        """Returns a context that stands in the trace."""
        return torch.profiler.record_function(action)

    def step(self, number: int) -> AbstractContextManager[Any]:
        """Returns a context that TensorBoard takes for a step."""
        return torch.profiler.record_function(f"ProfilerStep#{number}")

    def start(self, directory: Path) -> None:
        """Begins a trace of the CPU and of the device."""
        kinds = ["CPU", *([ACTIVITIES[self.device.type]] if self.device.type in ACTIVITIES else [])]
        activities = [getattr(torch.profiler.ProfilerActivity, kind) for kind in kinds]
        self._trace = torch.profiler.profile(activities=activities)
        self._trace.start()

    def stop(self, directory: Path, operations: int) -> tuple[Path, str]:
        """Ends the trace; TensorBoard's plugin for torch and Perfetto open its `.pt.trace.json.gz`."""
        trace, self._trace = self._trace, None
        trace.stop()
        place = directory / f"{time.time_ns()}.pt.trace.json.gz"
        trace.export_chrome_trace(str(place))
        events = trace.events()
        actions = [_span(event) for event in events if is_action(event.name) and event.device_type.name == "CPU"]
        return place, described(_devices(events), actions, operations)

    def held(self) -> Iterable[Held]:
        """Goes through the tensors that Python holds, and their gradients; views of one memory count once."""
        seen = set()
        # Fake tensors and the like have no memory of their own.
        tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
        for tensor in [*tensors, *(one.grad for one in tensors if one.is_leaf and one.grad is not None)]:
            if tensor.layout is not torch.strided or tensor.device.type == "meta":
                continue
            storage = tensor.untyped_storage()
            try:
                address = storage.data_ptr()
            except RuntimeError:  # of a capture: it has a shape and no memory
                continue
            if address not in seen:
                seen.add(address)
                shape = "x".join(map(str, tensor.shape)) or "scalar"
                yield Held(f"{str(tensor.dtype).removeprefix('torch.')} {shape}", storage.nbytes())

    def devices(self) -> Iterable[tuple[str, Mapping[str, int]]]:
        """Gives what CUDA's allocator says of the device."""
        if self.device.type == "cuda":
            stats = torch.cuda.memory_stats(self.device)
            yield (
                torch.cuda.get_device_name(self.device),
                {
                    "bytes_in_use": stats["allocated_bytes.all.current"],
                    "peak_bytes_in_use": stats["allocated_bytes.all.peak"],
                    "bytes_limit": torch.cuda.get_device_properties(self.device).total_memory,
                },
            )

    def save_memory(self, file: Path) -> bool:
        """Writes nothing: torch keeps where memory was allocated only when it was asked to from the start."""
        return False


def _devices(events: Iterable[Any]) -> list[DeviceTrace]:
    """Picks the devices that ran operations; the CPU only where no other did."""
    lines: dict[str, defaultdict[int, list[Span]]] = {}
    for event in events:
        if event.is_user_annotation:
            continue
        name = "CPU" if event.device_type.name == "CPU" else f"{event.device_type.name}:{event.device_index}"
        line = event.thread if name == "CPU" else event.device_resource_id
        lines.setdefault(name, defaultdict(list))[line].append(_span(event))
    if len(lines) > 1:
        lines.pop("CPU", None)
    return [device_trace(name, list(threads.values())) for name, threads in sorted(lines.items())]


def _span(event: Any) -> Span:
    return Span(1e3 * event.time_range.start, 1e3 * event.time_range.end, event.name)
