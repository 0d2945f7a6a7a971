"""PortReport: what came of training a module in torch and in JAX, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from lightjax.summary import format_bytes

# Tolerances below this one are of float64.
_FLOAT64 = 1e-6


@dataclass(frozen=True)
class Difference:
    """How far the tensors of one kind are apart.

    Attributes:
      name: of the tensor that is furthest off.
      share: of that tensor's largest element.
      tensors: how many were compared.
    """

    name: str
    share: float
    tensors: int


@dataclass(frozen=True)
class PortReport:
    """What a comparison found.

    Attributes:
      module: the class.
      tolerance: the largest share that counts as equal.
      steps: training steps that were compared; 0 where only the port was tried.
      error: why the module cannot be ported, with the user's line; "" where it can.
      unsupported: operations without a rule, with the user's lines.
      random: the step draws numbers. They are other ones in JAX, so that operations are compared one by one.
      operations: how many were compared one by one.
      losses: of every step, in torch and in JAX.
      gradient, weight, buffer, metric: the largest differences: of gradients and buffers in the first step, of weights
        after the last, of logged values in all. Buffers follow the weights, rounding included, from the second step on.
      noise: numbers among the weights whose first gradient is rounding in both, and which are left out for that.
      torch_s, jax_s: the median time of a step in the trainer's loop, looked at after every one; the first is left out.
      capture_s, compile_s: what comes before the first step in JAX.
      memory: bytes of a device that the compiled step needs, by kind; one of the topology's where one was asked for.
      topology: the pod that was asked for; `mesh` are its axes, with their sizes.
      fits: whether the step fits its devices; None where that is not known.
    """

    module: str
    tolerance: float
    steps: int = 0
    error: str = ""
    unsupported: Mapping[str, Sequence[str]] = field(default_factory=dict)
    random: bool = False
    operations: int = 0
    losses: tuple[tuple[float, float], ...] = ()
    gradient: Difference | None = None
    weight: Difference | None = None
    buffer: Difference | None = None
    metric: Difference | None = None
    noise: int = 0
    torch_s: float | None = None
    jax_s: float | None = None
    capture_s: float | None = None
    compile_s: float | None = None
    memory: Mapping[str, int | None] = field(default_factory=dict)
    topology: str | None = None
    mesh: Mapping[str, int] = field(default_factory=dict)
    fits: bool | None = None

    @property
    def loss(self) -> float | None:
        """The largest difference of a loss, as a share of it."""
        shares = [abs(one - other) / max(abs(one), 1e-12) for one, other in self.losses]
        return None if not shares else max(shares, key=lambda share: float("inf") if share != share else share)

    @property
    def agrees(self) -> bool | None:
        """Whether nothing differs by more than the tolerance; None where nothing was compared."""
        kinds = (self.gradient, self.weight, self.buffer, self.metric)
        shares = [one.share for one in kinds if one is not None]
        shares += [] if self.loss is None else [self.loss]
        if not shares:
            return True if self.operations else None
        return all(share <= self.tolerance for share in shares)  # a NaN is not

    @property
    def exit_code(self) -> int:
        """0 where the module is ported, agrees and fits; 1 otherwise."""
        return int(bool(self.error) or self.agrees is False or self.fits is False)

    def to_json(self) -> str:
        """Returns everything as JSON."""
        return json.dumps(asdict(self) | {"loss": self.loss, "agrees": self.agrees}, indent=2)

    def __str__(self) -> str:
        if self.error:
            lines = [f"{self.module} cannot be ported", f"  {self.error}"]
            return "\n".join([*lines, *(f"  {one:<40} {', '.join(at)}" for one, at in self.unsupported.items())])
        lines = [f"{self.module} is ported" + (f"; {self.steps} steps in torch and in JAX" if self.steps else "")]
        row = lambda name, *cells: lines.append(f"  {name:<22}" + "".join(f"{cell:<16}" for cell in cells).rstrip())  # noqa: E731
        if self.steps:
            row("", "torch", "JAX", "differs by")
        if self.losses:
            (first, ours), (last, ours_last) = self.losses[0], self.losses[-1]
            row("loss, step 1", f"{first:.6g}", f"{ours:.6g}", f"{abs(first - ours) / max(abs(first), 1e-12):.1e}")
            row(f"loss, step {self.steps}", f"{last:.6g}", f"{ours_last:.6g}", f"{self.loss:.1e} at most")
        for name, found in (
            ("gradients, step 1", self.gradient),
            (f"weights, step {self.steps}", self.weight),
            ("buffers, step 1", self.buffer),
            ("logged values", self.metric),
        ):
            if found is not None:
                row(name, f"{found.tensors} compared", "", f"{found.share:.1e} in {found.name}")
        if self.noise:
            row("", f"{self.noise} numbers whose gradient is only rounding are left out")
        if self.random:
            row("random numbers", f"other ones in JAX: {self.operations} operations agree one by one")
        if self.torch_s is not None and self.jax_s is not None:
            row("a step", f"{self.torch_s * 1e3:.2f} ms", f"{self.jax_s * 1e3:.2f} ms")
        if self.capture_s is not None and self.compile_s is not None:
            row("before the first step", "", f"captured in {self.capture_s:.1f} s, compiled in {self.compile_s:.1f} s")
        if (peak := self.memory.get("peak")) is not None:
            row("memory of a device", "", format_bytes(peak))
        if self.topology is not None:
            said = {True: "fits", False: "does not fit", None: "fits, as far as is known"}[self.fits]
            limit = self.memory.get("limit")
            has = "" if limit is None else f", which has {format_bytes(limit)}"
            axes = ", ".join(f"{name}={size}" for name, size in self.mesh.items())
            row(self.topology, f"{said} a device{has} ({axes})")
        if self.agrees is not None:
            lines.append(
                f"  {'agrees' if self.agrees else 'DIFFERS'}: the tolerance is {self.tolerance:g} of the largest"
            )
        if self.agrees is False and self.tolerance > _FLOAT64:
            lines.append("  --float64 tells rounding, of which optimizers like Adam make whole steps, from a fault")
        return "\n".join(lines)
