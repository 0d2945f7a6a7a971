"""A model trained for some steps in torch and ported to JAX: outputs, loss, gradients, buffers and weights."""

from __future__ import annotations

import contextlib
import copy
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch
from torch.utils import _pytree as pytree

import lightjax as lj
from lightjax_torch import from_torch
from lightjax_torch.arrays import to_jax, to_torch
from lightjax_torch.float64 import Float64

STEPS = 3
# Of a tensor's largest element. Gradients, weights and buffers whose elements are all below the floor are sums that
# cancel, such as the gradient of a bias before a softmax: what is left is rounding, and is not compared.
WIDE, NARROW, FLOOR = 1e-6, 1e-4, 1e-5
# In float32 a tensor may also be this many times as far from float64 as torch's own float32.
AS_TORCH = 4.0
# Of what is further from float64 than this in torch itself, float32 says nothing.
ROUNDING = 1e-2

Call = Callable[[torch.nn.Module, Any], Any]


@dataclass(frozen=True)
class Model:
    """A model and one batch.

    Attributes:
      module: in training mode, in float32, without dropout.
      batch: dict of tensors.
      call: `(module, batch) -> outputs`, whose first floating tensor, or `loss`, is the loss.
    """

    module: torch.nn.Module
    batch: dict[str, torch.Tensor]
    call: Call


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
      kind: "passes", "fails", or "not applicable": torch itself cannot, Python or a shape depends on values, or torch's
        own numbers move as far with the last bit of the batch.
      reason: what was said, or what differs.
      wide: the largest difference in float64, as a share of the tensor's largest element.
      narrow: in float32, from torch's float32.
      parameters: how many numbers are trained.
    """

    kind: str
    reason: str = ""
    wide: float | None = None
    narrow: float | None = None
    parameters: int = 0


class Trained(torch.nn.Module):
    """A model with a training step and an optimizer; the step leaves the model's outputs in buffers."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = copy.deepcopy(model.module).to(dtype)
        self.call = model.call
        self.dtype = dtype
        with torch.no_grad(), self.arithmetic():
            _, outputs = self.outputs(cast(model.batch, dtype))
        # Tried on a copy: what a forward pass leaves in buffers comes with the steps.
        self.model = copy.deepcopy(model.module).to(dtype)
        for place, output in enumerate(outputs):
            self.register_buffer(f"output_{place}", torch.zeros_like(output), persistent=False)

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """In which a step runs."""
        return Float64() if self.dtype is torch.float64 else contextlib.nullcontext()

    def outputs(self, batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns loss and floating outputs."""
        found = self.call(self.model, batch)
        leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        leaves = [leaf for leaf in leaves if leaf.is_floating_point()]
        loss = getattr(found, "loss", None)
        if loss is None:
            loss = leaves[0] if leaves[0].dim() == 0 else sum(_projected(leaf) for leaf in leaves)
        return loss.mean(), [leaf for leaf in leaves if leaf is not loss]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Returns the loss."""
        with self.arithmetic():
            loss, outputs = self.outputs(batch)
        for place, output in enumerate(outputs):
            getattr(self, f"output_{place}").copy_(output.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain, so that rounding of gradients that are zero does not decide the direction, as in Adam's."""
        return torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-2)


def _projected(output: torch.Tensor) -> torch.Tensor:
    """A loss of any output: no two elements count the same."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return (output * weights).mean() + (output * output).mean()


Run = dict[str, dict[str, torch.Tensor]]


def in_torch(trained: Trained, batch: Any) -> Run:
    """Trains in torch; returns tensors by kind and name."""
    optimizer = trained.configure_optimizers()
    found: Run = {"loss": {}, "gradient": {}}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = trained.training_step(batch, 0)
        loss.backward()
        found["loss"][f"step {step}"] = loss.detach().clone()
        if step == 0:
            gradients = ((name, p.grad) for name, p in trained.named_parameters())
            found["gradient"] = {name: g.clone() for name, g in gradients if g is not None}
            found["output"] = {name: one.clone() for name, one in trained.named_buffers() if name.startswith("output_")}
        optimizer.step()
    found["buffer"] = {name: one.detach() for name, one in trained.named_buffers() if not name.startswith("output_")}
    found["weight"] = {name: one.detach() for name, one in trained.named_parameters()}
    return found


def in_jax(trained: Trained, batch: Any) -> Run:
    """Trains the ported module; returns what `in_torch` returns."""
    task = from_torch(trained, backend="jax")
    arrays = to_jax(batch)
    state = task.init(jax.random.key(0), arrays)

    def step(state: Any, batch: Any) -> Any:
        grads, (metrics, model_state) = lj.grad(task._loss)(state, batch)
        return metrics["loss"], grads, state.apply_gradients(grads, model_state=model_state)

    compiled = jax.jit(step).lower(state, arrays).compile()
    found: Run = {"loss": {}, "gradient": {}}
    for number in range(STEPS):
        loss, grads, state = compiled(state, arrays)
        found["loss"][f"step {number}"] = to_torch(loss)
        if number == 0:
            found["gradient"] = to_torch(dict(grads))
            kept = state.model_state
            found["output"] = {name: to_torch(one) for name, one in kept.items() if name.startswith("output_")}
    found["buffer"] = {name: to_torch(one) for name, one in state.model_state.items()}
    found["weight"] = to_torch(dict(state.params))
    return found


def differences(ours: Run, theirs: Run) -> dict[tuple[str, str], float]:
    """Returns how far every tensor of `theirs` is off, as a share of its largest element."""
    found = {}
    for kind, tensors in theirs.items():
        largest = max((_size(one) for one in tensors.values()), default=0.0)
        floor = {"gradient": FLOOR * largest, "weight": FLOOR * largest, "buffer": FLOOR}.get(kind, 0.0)
        for name, expected in tensors.items():
            if expected.numel() and name in ours[kind]:
                found[kind, name] = _difference(ours[kind][name], expected, floor)
    return found


def _size(tensor: torch.Tensor) -> float:
    """The largest element; masks of huge numbers do not count."""
    values = (
        tensor.detach().double().abs().numpy().ravel() if not tensor.is_complex() else tensor.abs().double().numpy()
    )
    values = values[values < 1e30]
    return float(values.max()) if values.size else 0.0


def _difference(ours: torch.Tensor, theirs: torch.Tensor, floor: float) -> float:
    if max(_size(theirs), _size(ours)) < floor:
        return 0.0
    scale = max(_size(theirs), floor, 1e-300)
    found, expected = (
        one.detach().to(torch.complex128 if one.is_complex() else torch.float64).numpy() for one in (ours, theirs)
    )
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    off = np.abs(found - expected, where=~same, out=np.zeros(np.shape(expected)))
    huge = np.abs(expected) >= 1e30  # masks, compared in their own size
    off = np.where(huge & np.isfinite(expected), off / np.where(huge, np.abs(expected), 1) * scale, off)
    return float(np.nan_to_num(off, nan=np.inf).max()) / scale


def cast(batch: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Returns a batch with its floating tensors in a dtype."""
    return {
        name: one.to(dtype) if isinstance(one, torch.Tensor) and one.is_floating_point() else one
        for name, one in batch.items()
    }


def _shaken(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch that differs in the last bits of its floating tensors."""
    return {
        name: one * (1 + 2**-52 * torch.sign(torch.randn_like(one))) if one.is_floating_point() else one
        for name, one in batch.items()
    }


def compare(model: Model, *, narrow: bool = True) -> Outcome:
    """Trains a model in torch and in JAX.

    Args:
      model: the model.
      narrow: in float32, too; float64 always.
    """
    parameters = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            batches = {dtype: cast(model.batch, dtype) for dtype in (torch.float64, torch.float32)}
            truth = in_torch(Trained(model, torch.float64), batches[torch.float64])
            again = in_torch(Trained(model, torch.float64), batches[torch.float64])
            theirs = in_torch(Trained(model, torch.float32), batches[torch.float32]) if narrow else {}
        except Exception as error:
            return Outcome("not applicable", f"torch itself: {short(error)}", parameters=parameters)
        if not all(math.isfinite(float(loss)) for loss in truth["loss"].values()):
            return Outcome("not applicable", "torch's own loss is not finite", parameters=parameters)
        if any(torch.ne(one, again["loss"][name]) for name, one in truth["loss"].items()):
            return Outcome("not applicable", "draws random numbers, others than torch's", parameters=parameters)
        try:
            with jax.enable_x64(True):
                found = in_jax(Trained(model, torch.float64), batches[torch.float64])
            far = differences(found, truth)
            name, wide = max(far.items(), key=lambda item: item[1])
            if wide > WIDE:
                shaken = in_torch(Trained(model, torch.float64), _shaken(batches[torch.float64]))
                own = max(differences(shaken, truth).values())
                if wide <= AS_TORCH * own:
                    reason = f"torch's own numbers move by {own:.1e} with the last bit of the batch, JAX's are off by"
                    return Outcome("not applicable", f"{reason} {wide:.1e}", wide, None, parameters)
                return Outcome("fails", f"float64: {' '.join(name)} is off by {wide:.1e}", wide, None, parameters)
            if not narrow:
                return Outcome("passes", "", wide, None, parameters)
            found = in_jax(Trained(model, torch.float32), batches[torch.float32])
        except Exception as error:
            text = short(error)
            of_values = "Python asks for " in text or "depends on values" in text
            return Outcome("not applicable" if of_values else "fails", text, parameters=parameters)
        from_theirs, from_truth, torchs = (
            differences(one, other) for one, other in ((found, theirs), (found, truth), (theirs, truth))
        )
        worst, name = 0.0, ("", "")
        noise = {place: share for place, share in torchs.items() if share > ROUNDING}
        for place, share in from_theirs.items():
            if place in noise:
                continue
            if share > NARROW and from_truth[place] > AS_TORCH * torchs[place]:
                return Outcome(
                    "fails",
                    f"float32: {' '.join(place)} is off by {from_truth[place]:.1e}, torch's by {torchs[place]:.1e}",
                    *(wide, share, parameters),
                )
            worst, name = max((worst, name), (share, place))
        reason = f"float32 of {' '.join(name)}: as far from float64 as torch's" if worst > NARROW else ""
        if noise:
            far = f"torch's own float32 of {len(noise)} tensors is off by up to {max(noise.values()):.0e} and left out"
            reason = f"{reason}; {far}" if reason else far
        return Outcome("passes", reason, wide, worst, parameters)


def short(error: BaseException) -> str:
    """One line of an error, files named from where they are installed."""
    text = re.sub(r"\S*/(?:site-packages|tests)/", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:300]
