"""ThroughputMonitor: how fast a training runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from lightjax.callbacks.callback import Callback, Stage
from lightjax.metrics import batch_size

if TYPE_CHECKING:
    from lightjax.run import Run

# Dense bfloat16 FLOP/s of one chip, as its vendor states them.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


class ThroughputMonitor(Callback):
    """Reports steps, examples, tokens and floating-point operations a second over the steps since its last look.

    Time of evaluations is left out. Nothing waits for the device: since only few calls are in flight, the host runs at
    the device's pace.

    Reports `throughput/steps_per_s`, `throughput/examples_per_s`, and where they are known `throughput/tokens_per_s`,
    `throughput/flops_per_s` and `throughput/peak_share` (of the dense bfloat16 peak of all devices).

    Args:
      every_n_steps: how often; as often as training metrics when None.
      tokens: `batch -> tokens in it`, given the shapes of a batch.
      flops_per_step: operations of a step; counted by XLA from the traced step when None (not those of torch modules).
      peak_flops: of one device; looked up by its name when None.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        tokens: Callable[[Any], int] | None = None,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self._wanted = every_n_steps
        self.every_n_steps = every_n_steps
        self.tokens = tokens
        self.flops_per_step = flops_per_step
        self.peak_flops = peak_flops
        self._flops: float | None = None
        self._since: tuple[int, float] | None = None
        self._left_out_s = 0.0

    def setup(self, run: Run, stage: Stage) -> None:
        """Learns what a step is."""
        if stage != "fit":
            return
        self.every_n_steps = self._wanted or run.trainer.log_every_n_steps
        self._since, self._left_out_s = None, 0.0
        self._flops = run.flops_per_step() if self.flops_per_step is None else self.flops_per_step
        device = jax.devices()[0].device_kind
        known = (peak for name, peak in PEAK_FLOPS.items() if device.startswith(name))
        self._peak = next(known, None) if self.peak_flops is None else self.peak_flops

    def on_train_batch_end(self, run: Run) -> None:
        """Reports what happened since the look before."""
        now_s = time.perf_counter()
        if self._since is not None:
            steps, seconds = run.step - self._since[0], now_s - self._since[1] - self._left_out_s
            run.log({f"throughput/{name}": value for name, value in self._rates(run, steps / seconds).items()})
        self._since, self._left_out_s = (run.step, now_s), 0.0

    def on_validation_start(self, run: Run) -> None:
        """Stops the clock."""
        self._stopped_s = time.perf_counter()

    def on_validation_end(self, run: Run) -> None:
        """Starts the clock again."""
        self._left_out_s += time.perf_counter() - self._stopped_s

    def _rates(self, run: Run, steps_per_s: float) -> dict[str, float]:
        rates = {"steps_per_s": steps_per_s}
        if (examples := batch_size(run.batch_spec)) is not None:
            rates["examples_per_s"] = examples * steps_per_s
        if self.tokens is not None:
            rates["tokens_per_s"] = self.tokens(run.batch_spec) * steps_per_s
        if self._flops:
            rates["flops_per_s"] = self._flops * steps_per_s
            if self._peak:
                rates["peak_share"] = rates["flops_per_s"] / (self._peak * jax.device_count())
        return rates
