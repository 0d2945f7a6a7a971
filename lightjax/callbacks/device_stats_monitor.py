"""DeviceStatsMonitor: how full the devices and the host are."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

import jax

from lightjax.callbacks.callback import Callback, Stage

if TYPE_CHECKING:
    from lightjax.run import Run

STATS = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit", "largest_alloc_size")


class DeviceStatsMonitor(Callback):
    """Reports the memory of this process's devices and of the process itself, in bytes.

    `device_0/bytes_in_use`, `device_0/peak_bytes_in_use`... where the device tells (CPUs do not), and
    `host/peak_bytes_in_use`. Asking takes microseconds and does not wait for the device.

    Args:
      every_n_steps: how often; as often as training metrics when None.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self._wanted = every_n_steps
        self.every_n_steps = every_n_steps

    def setup(self, run: Run, stage: Stage) -> None:
        """Looks as often as metrics are reported unless told otherwise."""
        self.every_n_steps = self._wanted or run.trainer.log_every_n_steps

    def on_train_batch_end(self, run: Run) -> None:
        """Reports the memory."""
        stats = {f"device_{device.id}": device.memory_stats() or {} for device in jax.local_devices()}
        found = {f"{name}/{key}": float(one[key]) for name, one in stats.items() for key in STATS if key in one}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["host/peak_bytes_in_use"] = float(peak if sys.platform == "darwin" else peak * 1024)
        run.log(found)
