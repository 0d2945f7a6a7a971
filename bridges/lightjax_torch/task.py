"""TorchTask: a torch module to train, natively."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from lightjax.errors import ConfigurationError
from lightjax_torch.engine import TorchEngine
from lightjax_torch.lightning_checkpoint import load_weights_of, read_checkpoint
from lightjax_torch.processes import Processes
from lightjax_torch.state import TorchState

if TYPE_CHECKING:
    from lightjax.trainer import Trainer


class TorchTask:
    """A module that the trainer runs in torch; made by `from_torch`.

    Attributes:
      module: the module; it is trained in place.
      backend: "eager", or a backend of torch.compile.
      device: where it runs.
      processes: that train it together.
      use_distributed_sampler: whether each of them is given its share of the data.
      find_unused_parameters: of DistributedDataParallel.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        backend: str | Callable[..., Any],
        device: torch.device,
        processes: Processes,
        *,
        use_distributed_sampler: bool,
        find_unused_parameters: bool,
    ) -> None:
        self.module = module
        self.backend = backend
        self.device = device
        self.processes = processes
        self.use_distributed_sampler = use_distributed_sampler
        self.find_unused_parameters = find_unused_parameters

    def engine(self, trainer: Trainer) -> TorchEngine:
        """Returns what runs the module's steps (called by the trainer)."""
        return TorchEngine(self, trainer)

    def init(self, key: Any, batch: Any) -> TorchState:
        """Is not called: the module has its weights."""
        raise NotImplementedError

    def train_step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Is not called: the engine runs the module's own step."""
        raise NotImplementedError

    def compiled(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a step of the module, compiled by the backend."""
        return step if self.backend == "eager" else torch.compile(step, backend=self.backend)

    def plain(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that a compiled step calls as it is."""
        return function if self.backend == "eager" else torch.compiler.disable(function)

    def to_torch(self, state: TorchState) -> torch.nn.Module:
        """Returns the module with the weights of a state; the same module, changed in place."""
        self.module.load_state_dict(self.state_dict(state), strict=False)
        return self.module

    def state_dict(self, state: TorchState) -> dict[str, torch.Tensor]:
        """Returns the weights of a state as the module's `state_dict`: copies, on the CPU."""
        tensors = state.tensors()
        own = self.module.state_dict(keep_vars=True)
        named = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        by_identity = {id(one): name for name, one in named.items()}
        # Tied weights have one entry in the state and one for each of their names here.
        return {name: tensors[by_identity[id(one)]] for name, one in own.items() if id(one) in by_identity}

    def save_safetensors(self, state: TorchState, path: str | os.PathLike[str]) -> None:
        """Writes the weights of a state as a safetensors file.

        Raises:
          ConfigurationError: safetensors is not installed.
        """
        try:
            from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigurationError(
                "save_safetensors needs the package safetensors, which is not installed."
            ) from error
        save_file({name: one.contiguous().clone() for name, one in self.state_dict(state).items()}, os.fspath(path))

    def load_checkpoint(self, path: str | os.PathLike[str], *, strict: bool = True) -> None:
        """Loads the weights of a Lightning `.ckpt`, or of a directory of ours, into the module; runs no code in it.

        Raises:
          CheckpointError: it cannot be read without a pickle.
        """
        load_weights_of(self.module, read_checkpoint(path)["state_dict"], strict=strict)
