"""Memory: the bytes that a compiled program needs on each device, against what the device has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from lightjax.errors import ConfigurationError

# What programs may use of a chip's memory, by kind of device: asked of the compiler, which names it when it gives up.
HBM_BYTES = {
    "TPU v5 lite": 15.75 * 2**30,
    "TPU v5": 95.74 * 2**30,
    "TPU v5p": 95.74 * 2**30,
    "TPU v6 lite": 31.25 * 2**30,
}


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
      argument: what the program is given: state and batch.
      output: what it gives: state and metrics.
      donated: of the output, what lies where arguments were.
      temporary: what it needs in between.
      program: its code.
      limit: what a device has; None where that is not known.
      exceeded: the peak the compiler names of a program too large for it.
    """

    argument: int | None
    output: int | None
    donated: int | None
    temporary: int | None
    program: int | None
    limit: int | None
    exceeded: int | None = None

    @property
    def peak(self) -> int:
        """The most that is needed at once, with what is donated counted once."""
        if self.exceeded is not None:
            return self.exceeded
        parts = (self.argument, self.output, self.temporary, self.program)
        return sum(part or 0 for part in parts) - (self.donated or 0)

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the limit; None without a limit."""
        if self.exceeded is not None:
            return False
        return None if self.limit is None else self.peak <= self.limit

    @property
    def verdict(self) -> str:
        """The answer in words."""
        if self.exceeded == 0:
            return "does not fit, says the compiler, without a number"
        if self.limit is None:
            return "what the device has is not known"
        has, needs = f"{self.limit / 2**30:.2f} GiB", f"{self.peak / 2**30:.2f} GiB"
        return f"fits: {needs} of {has}" if self.fits else f"does not fit: it needs {needs}, the device has {has}"


def memory_of(compiled: Any, device: Any) -> Memory:
    """Reads the memory of a compiled program, for a device it runs on."""
    stats = compiled.memory_analysis()
    return Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
        device_memory(device),
    )


def device_memory(device: Any) -> int | None:
    """Returns the bytes that programs may use of a device, None where that is not known (the CPU)."""
    try:
        stats = device.memory_stats()
    except jax.errors.JaxRuntimeError:  # a chip that is not there
        stats = None
    limit = (stats or {}).get("bytes_limit", HBM_BYTES.get(device.device_kind))
    return None if limit is None else int(limit)


def check_memory(compiled: Any, device: Any) -> None:
    """Refuses a program that needs more than a device has.

    Raises:
      ConfigurationError: with the numbers.
    """
    memory = memory_of(compiled, device)
    if memory.fits is False:
        raise ConfigurationError(
            f"The train step {memory.verdict} ({device.device_kind}). Arguments {memory.argument or 0:,} bytes, "
            f"temporaries {memory.temporary or 0:,} bytes: trainer.plan(task, batch) names the largest. Split the "
            "state (strategy='fsdp'), hold activations to the batch (lj.shard_batch), give smaller batches, or run it "
            "all the same: Trainer(check_memory=False)."
        )


def refusal(error: Exception) -> ConfigurationError | None:
    """Returns what to raise instead of the compiler's error, where it gave up because a program is too large."""
    reason = str(error)
    if "RESOURCE_EXHAUSTED" not in reason:
        return None
    return ConfigurationError(
        f"The compiler gave up on a program that is too large for the devices: {reason.splitlines()[0]} "
        "trainer.plan(task, batch) names the largest arrays. Split the state (strategy='fsdp'), hold activations to "
        "the batch (lj.shard_batch), or give smaller batches."
    )
