"""Parts: what a module does to one batch, in Lightning's order, hooks included; each is captured as one program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.hooks import overridden
from lightjax_torch.step_view import Unknown

Stage = Literal["train", "val", "test", "predict"]

METHODS = {"train": "training_step", "val": "validation_step", "test": "test_step", "predict": "predict_step"}
_HOOKS = {"train": "train", "val": "validation", "test": "test", "predict": "predict"}

_BATCH_INDEX = Unknown("batch_idx", "the batches of a prediction are not numbered; leave it out")
_LOADER = Unknown("dataloader_idx", "a prediction does not know its loader; leave it out")
_OUTPUTS = Unknown("outputs", "keep what the hook needs in a buffer")
_OPTIMIZER = Unknown("the optimizer", "leave clipping to the trainer, gradient_clip_val, and rates to a scheduler")
_SEEN_BATCH = Unknown("batch", "the hooks of batch transfer changed it; keep what is needed in a buffer")


@dataclass(frozen=True)
class Part:
    """A part of a module's work on a batch.

    Attributes:
      name: what the user calls it.
      stage: of what it is a part.
      run: `(module, batch, batch_idx) -> outputs`.
      differentiated: whether its output is the loss.
      writes: whether it may write into trained parameters.
      loader: number of the loader of an evaluation.
    """

    name: str
    stage: Stage
    run: Callable[[Any, Any, Any], Any]
    differentiated: bool = False
    writes: bool = False
    loader: int = 0


def training(call: Callable[[Any, Any, Any], Any]) -> Part:
    """Returns what comes before the backward pass.

    Args:
      call: runs `training_step`.
    """

    def run(module: Any, batch: Any, batch_idx: Any) -> Any:
        batch = transferred(module, batch)
        began(module, batch, batch_idx)
        loss = _loss_of(call(module, batch, batch_idx), module)
        if overridden(module, "on_before_zero_grad"):
            module.on_before_zero_grad(_OPTIMIZER)
        if overridden(module, "on_before_backward"):
            module.on_before_backward(loss)
        return loss

    return Part("training_step", "train", run, differentiated=True)


def by_itself() -> Callable[[Any, Any, Any], None]:
    """Returns what a module does that optimizes manually."""

    def run(module: Any, batch: Any, batch_idx: Any) -> None:
        batch = transferred(module, batch)
        began(module, batch, batch_idx)
        call_step(module, "train", batch, batch_idx)
        if overridden(module, "on_train_batch_end"):
            module.on_train_batch_end(_OUTPUTS, batch, batch_idx)

    return run


def with_gradients() -> Part:
    """Returns what comes between the backward pass and the optimizer; parameters have their gradients."""

    def run(module: Any, batch: Any, batch_idx: Any) -> None:
        if overridden(module, "on_after_backward"):
            module.on_after_backward()
        if overridden(module, "on_before_optimizer_step"):
            module.on_before_optimizer_step(_OPTIMIZER)

    return Part("on_before_optimizer_step", "train", run)


def after_step() -> Part:
    """Returns what comes after the optimizer's step."""

    def run(module: Any, batch: Any, batch_idx: Any) -> None:
        if any(overridden(module, name) for name in _TRANSFER):
            batch = _SEEN_BATCH
        module.on_train_batch_end(_OUTPUTS, batch, batch_idx)

    return Part("on_train_batch_end", "train", run, writes=True)


def evaluation(stage: Stage, loader: int = 0) -> Part:
    """Returns what is done to a batch of an evaluation or prediction.

    Args:
      stage: which.
      loader: number of the loader.
    """
    hook = _HOOKS[stage]

    def run(module: Any, batch: Any, batch_idx: Any) -> Any:
        known: Any = loader
        if stage == "predict":
            batch_idx, known = _BATCH_INDEX, _LOADER
        batch = transferred(module, batch)
        if overridden(module, f"on_{hook}_batch_start"):
            _called(getattr(module, f"on_{hook}_batch_start"), batch, batch_idx, loader=known)
        outputs = call_step(module, stage, batch, batch_idx, known)
        if overridden(module, f"on_{hook}_batch_end"):
            _called(getattr(module, f"on_{hook}_batch_end"), outputs, batch, batch_idx, loader=known)
        return outputs if stage == "predict" else None

    return Part(METHODS[stage], stage, run, loader=loader)


def tells_loaders_apart(module: Any, stage: Stage) -> bool:
    """Says whether what a module does in an evaluation may depend on the loader."""
    names = (METHODS[stage], f"on_{_HOOKS[stage]}_batch_start", f"on_{_HOOKS[stage]}_batch_end")
    methods = [getattr(module, name) for name in names if overridden(module, name)]
    wanted = [one for method in methods for one in inspect.signature(method).parameters.values()]
    return any(one.name == "dataloader_idx" or one.kind is inspect.Parameter.VAR_POSITIONAL for one in wanted)


_TRANSFER = ("on_before_batch_transfer", "on_after_batch_transfer")


def transferred(module: Any, batch: Any) -> Any:
    """Lets a module change a batch in the hooks around its transfer."""
    for name in _TRANSFER:
        if overridden(module, name):
            batch = getattr(module, name)(batch, 0)
    return batch


def began(module: Any, batch: Any, batch_idx: Any) -> None:
    """Calls the hook before a train batch."""
    if overridden(module, "on_train_batch_start") and module.on_train_batch_start(batch, batch_idx) == -1:
        raise CaptureError(
            f"{type(module).__name__}.on_train_batch_start returns -1, to end the epoch, which a compiled step cannot; "
            f"use limit_train_batches, or {WAY_OUT}."
        )


def call_step(module: Any, stage: Stage, batch: Any, batch_idx: Any, loader: Any = 0) -> Any:
    """Calls the method of a stage as Lightning does."""
    method = getattr(module, METHODS[stage], None)
    return module(batch) if method is None else _called(method, batch, batch_idx, loader=loader)


def _called(method: Callable[..., Any], *arguments: Any, loader: Any = 0) -> Any:
    """Calls a method that may do without the number of the batch, and may ask for the one of the loader."""
    wanted = inspect.signature(method).parameters
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = [name for name, one in wanted.items() if one.kind in kinds]
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in wanted.values()):
        return method(*arguments, loader) if loader else method(*arguments)
    if "dataloader_idx" in takes:
        return method(*arguments[: takes.index("dataloader_idx")], dataloader_idx=loader)
    return method(*arguments[: len(takes)])


def _loss_of(output: Any, module: torch.nn.Module) -> torch.Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"{loss!r}"
        raise CaptureError(
            f"{type(module).__name__}.training_step returned {kind} as its loss; it returns a scalar tensor, or a dict "
            "with one at 'loss'. A step that returns None now and then, to skip a batch, cannot be compiled: multiply "
            f"the loss by 0, or {WAY_OUT}."
        )
    return loss.reshape(())
