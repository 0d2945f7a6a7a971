"""Port check: a user's module, trained on one batch in torch and in JAX by the same trainer, and compared."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import lightjax as lj
from lightjax import _tree
from lightjax.errors import ConfigurationError
from lightjax_torch.arrays import to_jax, to_torch
from lightjax_torch.bridge import from_torch
from lightjax_torch.errors import CaptureError, UnsupportedOperatorError
from lightjax_torch.float64 import in_float64, wide
from lightjax_torch.port import PortedTask
from lightjax_torch.port_report import Difference, PortReport

# Gradients below this share of the largest one are sums that cancel, such as that of a bias before a softmax: their
# digits are rounding, and Adam makes whole steps of them.
_NOISE = 1e-5
# A step that goes one way or another by a random number may go the same way a few times.
_SEEDS = 8


def run(arguments: argparse.Namespace) -> int:
    """Runs `lightjax port`; returns its exit code."""
    name, _, made = arguments.module.rpartition(":")
    if not name:
        raise ConfigurationError(
            f"{arguments.module!r} names no class: write package.module:LitModel, or train.py:LitModel."
        )
    script = _imported(name)
    module = _module(_named(script, made), made)
    report = check(
        module,
        _batch(script, arguments.batch, module),
        steps=arguments.steps if arguments.check else 0,
        tolerance=arguments.tolerance,
        float64=arguments.float64,
        topology=arguments.topology,
        strategy=arguments.strategy,
    )
    print(report.to_json() if arguments.json else report)
    return report.exit_code


def check(
    module: torch.nn.Module,
    batch: Any,
    *,
    steps: int = 5,
    tolerance: float | None = None,
    float64: bool = False,
    topology: str | None = None,
    strategy: Any = "auto",
) -> PortReport:
    """Trains a module on one batch, again and again, in torch and in JAX, and compares.

    Both run in a trainer of lightjax, the hooks, optimizers and schedulers of the module included.

    Args:
      module: a LightningModule, or any module with its methods; it is left as it is.
      batch: what `training_step` gets: tensors or arrays.
      steps: how many; 0 only tries whether the module can be ported.
      tolerance: the largest difference that counts as equal, as a share of a tensor's largest element; 1e-4, with
        `float64` 1e-7, when None.
      float64: train in float64, whatever `jax_enable_x64` says.
      topology: a TPU pod to compile the step for, too, as `Trainer.plan` takes it.
      strategy: how training spreads over that pod.

    Returns:
      The report; where the module cannot be ported, with the reason.

    Raises:
      ConfigurationError: something that was asked for is not there.

    Example:
      >>> import torch
      >>> class Line(torch.nn.Linear):
      ...     def training_step(self, batch, batch_idx):
      ...         return ((self(batch) - 1) ** 2).mean()
      ...     def configure_optimizers(self):
      ...         return torch.optim.SGD(self.parameters(), lr=0.1)
      >>> report = check(Line(2, 1), torch.ones(4, 2), steps=2)
      >>> report.agrees, report.gradient.tensors, report.exit_code
      (True, 2, 0)
    """
    tolerance = (1e-7 if float64 else 1e-4) if tolerance is None else tolerance
    name = type(module).__name__
    with wide() if float64 else contextlib.nullcontext():
        if float64:
            module, batch = in_float64(module, batch)
        arrays = to_jax(batch)
        try:
            found = _both(module, batch, arrays, steps, tolerance)
            if topology is not None:
                task = from_torch(copy.deepcopy(module), backend="jax")
                plan = lj.Trainer(strategy=strategy, **_QUIET).plan(task, _tree.abstract(arrays), topology=topology)
                found |= {"topology": topology, "mesh": plan.mesh, "fits": plan.fits, "memory": _bytes(plan.memory)}
        except CaptureError as error:
            unsupported = error.operations if isinstance(error, UnsupportedOperatorError) else {}
            return PortReport(name, tolerance, error=str(error), unsupported=unsupported)
    return PortReport(name, tolerance, steps=steps, **found)


_QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "compilation_cache": False,  # a program that is kept from before takes no time to compile
}


def _both(module: torch.nn.Module, batch: Any, arrays: Any, steps: int, tolerance: float) -> dict[str, Any]:
    """Returns what the report says of the module here."""
    task: PortedTask = from_torch(copy.deepcopy(module), backend="jax")
    trainer = lj.Trainer(max_steps=max(steps, 1), log_every_n_steps=1, **_QUIET)
    watch = _Watch(task, arrays)
    found: dict[str, Any] = {}
    ours: Any = None
    if steps:
        trainer.callbacks.append(watch)
        ours = trainer.fit(task, [arrays] * steps)
    fresh: PortedTask = from_torch(copy.deepcopy(module), backend="jax")
    fresh.attach(trainer)
    started = time.perf_counter()
    state = jax.eval_shape(fresh.init, jax.random.key(0), arrays)
    jax.eval_shape(fresh.train_step, state, arrays)
    captured = time.perf_counter()
    plan = trainer.plan(fresh, _tree.abstract(arrays))
    found |= {"capture_s": captured - started, "compile_s": time.perf_counter() - captured}
    found |= {"memory": _bytes(plan.memory)}
    if not steps:
        return found
    reference = copy.deepcopy(module)
    gradients: dict[str, torch.Tensor] = {}
    losses: list[float] = []
    clock = _Clock(lambda state: _copied(reference))
    with _first_gradients(reference, gradients), _losses(reference, losses):
        theirs = lj.Trainer(max_steps=steps, log_every_n_steps=1, callbacks=clock, **_QUIET).fit(
            from_torch(reference, backend="eager", device="cpu"), [batch] * steps
        )
    found |= {"torch_s": clock.step_s, "jax_s": watch.step_s}
    if watch.random:
        return found | {"random": True, "operations": task.verify(watch.state, arrays, tolerance=tolerance)}
    weights, expected = (
        task.state_dict(ours.state),
        _copied(reference),
    )
    trained = {name for name, one in reference.named_parameters() if one.requires_grad}
    noise = _noise(gradients, watch.gradients)
    rows = list(zip(theirs.history, ours.history, strict=True))
    logged = {
        f"{key}, step {one['step']}": (one[key], other[key])
        for one, other in rows
        for key in sorted(one.keys() & other.keys() - {"step", "epoch"})
    }
    return found | {
        "losses": tuple(zip(losses, (row["train/loss"] for row in ours.history), strict=True)) if losses else (),
        "gradient": _worst(watch.gradients, gradients, noise),
        "weight": _worst(weights, {name: one for name, one in expected.items() if name in trained}, noise),
        "buffer": _worst(
            watch.after_first, {name: one for name, one in clock.after_first.items() if name not in trained}, {}
        ),
        "metric": _worst(
            {name: torch.tensor(other) for name, (_, other) in logged.items()},
            {name: torch.tensor(one) for name, (one, _) in logged.items()},
            {},
        ),
        "noise": sum(int(mask.sum()) for mask in noise.values()),
    }


class _Clock(lj.Callback):
    """Notes when each step has ended."""

    every_n_steps = 1

    def __init__(self, weights: Callable[[Any], Mapping[str, torch.Tensor]]) -> None:
        self.times: list[float] = []
        self.weights = weights
        self.after_first: Mapping[str, torch.Tensor] = {}

    def on_train_batch_end(self, run: Any, *_: Any) -> None:
        """Waits for the step: its numbers are read. Keeps the weights of the first one."""
        jax.block_until_ready(jax.tree.leaves(run.metrics))
        self.times.append(time.perf_counter())
        if len(self.times) == 1:
            self.after_first = self.weights(run.state)

    @property
    def step_s(self) -> float | None:
        """The median time between two steps."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else None


class _Watch(_Clock):
    """Takes the gradients of the first step in JAX, and looks whether they depend on random numbers."""

    def __init__(self, task: PortedTask, arrays: Any) -> None:
        super().__init__(task.state_dict)
        self.task, self.arrays = task, arrays
        self.gradients: dict[str, torch.Tensor] = {}
        self.random = False
        self.state: Any = None

    def on_fit_start(self, run: Any) -> None:
        """Looks at the state of step 0."""
        self.state = jax.tree.map(lambda leaf: leaf.copy() if hasattr(leaf, "copy") else leaf, run.state)
        outcome = jax.jit(self._outcome)
        first = outcome(self.state, jax.random.key(0), self.arrays)
        for seed in range(1, _SEEDS):
            other = outcome(self.state, jax.random.key(seed), self.arrays)
            same = jax.tree.map(lambda one, other: np.array_equal(one, other, equal_nan=True), first, other)
            if not all(jax.tree.leaves(same)):
                self.random = True
                break
        if self._automatic:
            self.gradients = to_torch(first[0])

    @property
    def _automatic(self) -> bool:
        return getattr(self.task.module, "automatic_optimization", True) is not False

    def _outcome(self, state: Any, key: Any, batch: Any) -> Any:
        """Returns the gradients and the loss; of a module that optimizes by itself, its parameters after a step."""
        state = state.replace(key=key)
        if self._automatic:
            grads, (metrics, _) = lj.grad(self.task._loss)(state, batch)
            return dict(grads), metrics["loss"]
        after, metrics = self.task.train_step(state, batch)
        return dict(after.params), metrics


@contextlib.contextmanager
def _first_gradients(module: torch.nn.Module, into: dict[str, torch.Tensor]) -> Iterator[None]:
    """Keeps the gradients of the first backward pass."""
    handles = []
    if getattr(module, "automatic_optimization", True):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:

                def keep(parameter: torch.Tensor, name: str = name) -> None:
                    if name not in into and parameter.grad is not None:
                        into[name] = parameter.grad.clone()

                handles.append(parameter.register_post_accumulate_grad_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _losses(module: torch.nn.Module, into: list[float]) -> Iterator[None]:
    """Keeps what every training step returns as its loss; torch's own engine reports only what the module logs."""
    step: Any = module.training_step

    @functools.wraps(step)
    def keeping(*args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if isinstance(loss, torch.Tensor):
            into.append(float(loss.detach()))
        return output

    module.training_step = keeping  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del module.training_step


def _noise(gradients: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns where a first gradient is rounding, and not exactly zero in both."""
    limit = _NOISE * max((float(one.abs().max()) for one in gradients.values() if one.numel()), default=0.0)
    found = {}
    for name, gradient in gradients.items():
        size = torch.maximum(gradient.abs(), others[name].abs()) if name in others else gradient.abs()
        found[name] = (size > 0) & (size <= limit)
    return found


def _worst(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], without: Mapping[str, torch.Tensor]
) -> Difference | None:
    """Returns the largest difference; `without` masks elements that are left out."""
    compared = {name: _wide(one) for name, one in theirs.items() if name in ours and one.numel()}
    sizes = {name: float(one.abs().max()) for name, one in compared.items()}
    floor = _NOISE * max(sizes.values(), default=0.0)
    worst: Difference | None = None
    for name, expected in compared.items():
        found = _wide(ours[name])
        off = torch.where((found == expected) | (found.isnan() & expected.isnan()), 0.0, (found - expected).abs())
        if name in without:
            off = torch.where(without[name], 0.0, off)
        share = float(off.max()) / max(sizes[name], floor, 1e-12)
        if worst is None or not share <= worst.share:
            worst = Difference(name, share, len(compared))
    return worst


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in module.state_dict().items()}


def _bytes(memory: Any) -> dict[str, int | None]:
    return asdict(memory) | {"peak": memory.peak}


def _module(found: Any, name: str) -> torch.nn.Module:
    if not isinstance(found, torch.nn.Module) and callable(found):
        try:
            found = found()
        except TypeError as error:
            raise ConfigurationError(
                f"{name}() cannot be called without arguments ({error}); name a function that makes the module: "
                f"def make(): return {name}(...)."
            ) from error
    if not isinstance(found, torch.nn.Module):
        raise ConfigurationError(f"{name} is a {type(found).__name__}, and makes no torch.nn.Module.")
    return found


def _batch(script: Any, name: str, module: torch.nn.Module) -> Any:
    """Returns one batch of what the user named."""
    own = getattr(module, "train_dataloader", None)
    if name == "batch" and not hasattr(script, name) and callable(own):
        batches: Any = own()
        return next(iter(batches))
    found: Any = _named(script, name)
    makes = isinstance(found, type) or (callable(found) and not hasattr(found, "__iter__"))
    data: Any = found() if makes else found
    if callable(getattr(data, "train_dataloader", None)):
        for prepare in ("prepare_data", "setup"):
            if callable(method := getattr(data, prepare, None)):
                method(*(["fit"] if prepare == "setup" else []))
        data = data.train_dataloader()
    if hasattr(data, "shape") or not hasattr(data, "__iter__"):
        return data
    batches = data
    return batches if isinstance(data, list | tuple | Mapping) else next(iter(batches))


def _imported(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"{name} cannot be imported from {Path.cwd()}: {error}.") from error
    path = Path(name)
    if not path.is_file():
        raise ConfigurationError(f"{name} is no file of {Path.cwd()}.")
    sys.path.insert(0, str(path.parent.absolute()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found  # what copies a class looks for its module
    spec.loader.exec_module(found)
    return found


def _named(script: Any, name: str) -> Any:
    if not hasattr(script, name):
        names = ", ".join(sorted(one for one in vars(script) if not one.startswith("_")))
        raise ConfigurationError(f"{script.__file__} has no {name!r}; it has {names}.")
    return getattr(script, name)
