"""from_torch: a torch module as a task of the trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from lightjax.errors import ConfigurationError
from lightjax_torch.processes import joined
from lightjax_torch.task import TorchTask

MALICIOUS = ("2.6.2", "2.6.3")


def from_torch(
    module: torch.nn.Module,
    backend: str | Callable[..., Any] = "eager",
    device: str | torch.device = "auto",
    *,
    use_distributed_sampler: bool = True,
    find_unused_parameters: bool = False,
    **options: Any,
) -> Any:
    """Makes a task of a module, for `Trainer.fit`, `validate`, `test` and `predict`.

    Args:
      module: a LightningModule (Lightning's or ours), or any module with its methods.
      backend: "eager" runs torch as it is; the name of a torch.compile backend, such as "inductor", or a function,
        compiles the steps; "jax" makes a pure JAX task of the module.
      device: "auto" for a GPU where there is one, or a device of torch's. Not for "jax".
      use_distributed_sampler: where torchrun, SLURM or MPI started several processes, give each its share of the data;
        False leaves the loaders alone. Not for "jax".
      find_unused_parameters: of DistributedDataParallel, for steps that leave parameters without gradients. Not for
        "jax".
      **options: for backend="jax".

    Returns:
      The task. `task.to_torch(state)` returns the module with the weights of a state, `task.state_dict(state)` the
      weights alone.

    Raises:
      ConfigurationError: `module` is no module, the backend, what it compiles with or the device is not there, or the
        installed Lightning is one of its malicious releases.

    Example:
      >>> import torch, lightjax as lj
      >>> class Line(torch.nn.Linear):
      ...     def training_step(self, batch, batch_idx):
      ...         x, y = batch
      ...         return ((self(x) - y) ** 2).mean()
      ...     def configure_optimizers(self):
      ...         return torch.optim.SGD(self.parameters(), lr=0.1)
      >>> data = [(torch.ones(4, 1), torch.full((4, 1), 3.0))] * 5
      >>> trainer = lj.Trainer(max_epochs=20, barebones=True)
      >>> task = from_torch(Line(1, 1), device="cpu")
      >>> result = trainer.fit(task, data)
      >>> round(task.to_torch(result.state)(torch.ones(1)).item(), 3)
      3.0
    """
    if not isinstance(module, torch.nn.Module):
        raise ConfigurationError(
            f"from_torch got a {type(module).__name__}, which is no torch.nn.Module; pass an instance of your module."
        )
    refuse_malicious_lightning()
    if backend == "jax":
        from lightjax_torch.port import port_task

        return port_task(module, **options)
    if options:
        raise ConfigurationError(f"from_torch got {sorted(options)}, which are options of backend='jax'.")
    found = _backend(backend)
    processes = joined()
    place = _device(device, processes.local_rank if not processes.alone else 0)
    if backend == "inductor":
        _check_compiler(place)
    return TorchTask(
        module,
        found,
        place,
        processes,
        use_distributed_sampler=use_distributed_sampler,
        find_unused_parameters=find_unused_parameters,
    )


def _backend(backend: str | Callable[..., Any]) -> str | Callable[..., Any]:
    if not isinstance(backend, str) or backend == "eager":
        return backend
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigurationError(
            f"backend={backend!r} is none of this torch: it offers {', '.join(sorted({'eager', *known}))}; or 'jax'. A "
            "backend of another package is there once the package is installed."
        )
    try:
        from torch._dynamo import lookup_backend

        lookup_backend(backend)
    except Exception as error:
        raise ConfigurationError(
            f"backend={backend!r} cannot be imported: {error}; install what it needs, or take one of "
            f"{', '.join(sorted({'eager', *known}))}."
        ) from error
    return backend


def _check_compiler(device: torch.device) -> None:
    """Looks for what inductor compiles with before anything runs: it would look at the first step.

    Raises:
      ConfigurationError: it is not there.
    """
    if device.type == "cuda" and find_spec("triton") is None:
        raise ConfigurationError(
            "backend='inductor' needs the package triton on a GPU, which is not installed; install it, or take "
            "backend='eager'."
        )
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ConfigurationError(
                f"backend='inductor' needs a C++ compiler on the CPU ({str(error).splitlines()[0]}); "
                "install one (g++ on Debian and Ubuntu), name it in the environment as CXX, or take backend='eager' or "
                "'jax'."
            ) from error


def _device(device: str | torch.device, local_rank: int = 0) -> torch.device:
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    kind = there[1].partition(":")[0] if len(there) > 1 and device == "auto" else device
    if local_rank and kind == "cuda":
        device = f"cuda:{local_rank}"
    elif device == "auto":
        return torch.device(str(kind) if len(there) > 1 else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"device={device!r} is no device of torch; there are: {', '.join(there)}.") from error
    if str(found) not in there and found.type not in {one.partition(":")[0] for one in there if found.index is None}:
        raise ConfigurationError(f"device={str(device)!r} is not there; there are: {', '.join(there)}.")
    return found


def refuse_malicious_lightning() -> None:
    """Refuses the releases of Lightning that stole credentials.

    Raises:
      ConfigurationError: one of them is imported.
    """
    for package in ("lightning", "pytorch_lightning"):
        if package not in sys.modules:
            continue
        version = getattr(sys.modules[package], "__version__", None) or metadata.version(package.replace("_", "-"))
        if version in MALICIOUS:
            raise ConfigurationError(
                f"{package} {version} is installed: the releases {' and '.join(MALICIOUS)} were malicious "
                "(GHSA-w37p-236h-pfx3). Remove it, treat the credentials of this machine as stolen, and install "
                "lightning>=2.6.6."
            )
