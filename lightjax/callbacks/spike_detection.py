"""SpikeDetection: notices when a loss jumps."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from lightjax.callbacks.callback import Callback, Stage
from lightjax.errors import ConfigurationError

if TYPE_CHECKING:
    from lightjax.run import Run


class SpikeDetection(Callback):
    """Ends a run, or only says so, when a training metric is far from its running mean.

    A value is a spike when it is worse than the mean of the last `window` by more than `atol` or by more than `rtol`
    times that mean, or when it is not finite. Values are looked at as they are reported, every `log_every_n_steps`, one
    look late: nothing waits for the device.

    Args:
      monitor: name of the metric.
      mode: "min" where a spike goes up, "max" where it goes down.
      window: values of the running mean.
      warmup: values before anything counts as a spike.
      atol: absolute distance that is tolerated; None for no bound of this kind.
      rtol: distance relative to the mean that is tolerated; None for no bound of this kind.
      finite_only: whether a value that is not finite is a spike.
      action: "stop" ends the run; "log" reports `spike` (1 at a spike) and goes on.

    Attributes:
      spikes: steps at which there was one, with the value.

    Raises:
      ConfigurationError: a number is out of range.
    """

    def __init__(
        self,
        monitor: str = "train/loss",
        *,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 25,
        atol: float | None = None,
        rtol: float | None = 2.0,
        finite_only: bool = True,
        action: Literal["stop", "log"] = "stop",
    ) -> None:
        if mode not in ("min", "max") or action not in ("stop", "log") or window < 1 or warmup < 0:
            raise ConfigurationError(
                f"SpikeDetection got mode={mode!r}, action={action!r}, window={window}, warmup={warmup}; write 'min' "
                "or 'max', 'stop' or 'log', a window of 1 at least and a warmup of 0 at least."
            )
        self.monitor = monitor
        self.mode = mode
        self.window = window
        self.warmup = warmup
        self.atol = atol
        self.rtol = rtol
        self.finite_only = finite_only
        self.action = action
        self.every_n_steps = None
        self._forget()

    def setup(self, run: Run, stage: Stage) -> None:
        """Forgets an earlier run, and looks as often as metrics are reported."""
        if stage == "fit":
            self._forget()
            self.every_n_steps = run.trainer.log_every_n_steps

    def on_train_batch_end(self, run: Run) -> None:
        """Judges what was reported since the look before."""
        self._look(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Judges what was reported since the look before."""
        self._look(run)

    def judge(self, value: float) -> str | None:
        """Takes in a value.

        Returns:
          Why it is a spike, or None.
        """
        why, mean = None, sum(self._values) / len(self._values) if self._values else None
        if not math.isfinite(value):
            return f"{self.monitor} is {value}" if self.finite_only else None
        if mean is not None and self._seen >= self.warmup:
            worse_by = value - mean if self.mode == "min" else mean - value
            bounds = [] if self.atol is None else [self.atol]
            bounds += [] if self.rtol is None else [self.rtol * abs(mean)]
            if bounds and worse_by > min(bounds):
                why = f"{self.monitor} = {value:.6g} is far from its running mean {mean:.6g}"
        self._seen += 1
        if why is None:
            self._values.append(value)
        return why

    def state_dict(self) -> dict[str, Any]:
        """Returns the running window."""
        return {"values": list(self._values), "seen": self._seen, "at": self._at, "spikes": self.spikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a running window."""
        self._values.extend(state["values"])
        self._seen, self._at = state["seen"], state["at"]
        self.spikes = [(step, value) for step, value in state["spikes"]]

    def _forget(self) -> None:
        self._values: deque[float] = deque(maxlen=self.window)
        self._seen, self._at = 0, -1
        self.spikes: list[tuple[int, float]] = []

    def _look(self, run: Run) -> None:
        new = []
        for row in reversed(run.history.rows):
            if row["step"] <= self._at:
                break
            if self.monitor in row:
                new.append((row["step"], row[self.monitor]))
        for step, value in reversed(new):
            self._at = step
            why = self.judge(value)
            if why is not None:
                self.spikes.append((step, value))
                if self.action == "stop":
                    run.stop(f"spike_detection: {why} at step {step}")
            if self.action == "log":
                run.log({"spike": float(why is not None)})
