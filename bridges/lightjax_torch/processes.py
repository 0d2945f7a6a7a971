"""Processes: several that train a module together, through torch.distributed."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lightjax import distributed
from lightjax.errors import ConfigurationError


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
      rank: the number of this one.
      count: how many there are.
      local_rank: its number on its machine.
      local_count: how many there are on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.count == 1

    def gathered(self, value: Any) -> list[Any]:
        """Returns an object of every process, in the order of their numbers; waits for all of them."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def reduced(self, tensor: torch.Tensor, group: Any = None, reduce_op: Any = "mean") -> torch.Tensor:
        """Returns a tensor reduced over the processes."""
        if self.alone:
            return tensor
        name = str(getattr(reduce_op, "name", reduce_op) or "mean").lower()
        tensor = tensor.clone()
        ops = {"mean": dist.ReduceOp.SUM, "avg": dist.ReduceOp.SUM, "sum": dist.ReduceOp.SUM,
               "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}  # fmt: skip
        dist.all_reduce(tensor, op=ops[name], group=group)
        return tensor / dist.get_world_size(group) if name in ("mean", "avg") else tensor

    def all_gathered(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> torch.Tensor:
        """Returns the tensors of all processes, stacked; a tensor alone is returned as it is, as Lightning does."""
        if self.alone:
            return tensor
        tensor = tensor.contiguous()
        if sync_grads:
            from torch.distributed.nn.functional import all_gather

            return torch.stack(tuple(all_gather(tensor, *([] if group is None else [group]))))
        found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        with torch.no_grad():
            dist.all_gather(found, tensor, group=group)
        return torch.stack(found)

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Returns an object of one process, in all of them."""
        return self.gathered(value)[source]

    def barrier(self, *name: Any) -> None:
        """Waits for all of them."""
        if not self.alone:
            dist.barrier()


def joined() -> Processes:
    """Joins this process with the others that torchrun, SLURM or MPI started; returns all there are.

    torch.distributed carries gradients (nccl on GPUs, gloo on CPUs). JAX's processes are joined, too: checkpoints, run
    directories and signals go through them. Does nothing the second time.

    Raises:
      ConfigurationError: the others cannot be joined.
    """
    if dist.is_available() and dist.is_initialized():
        found = _present()
        if not found.alone:
            _join_jax(found)
        return found
    by_torchrun = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if by_torchrun and int(os.environ["WORLD_SIZE"]) > 1:
        _begin(lambda backend: dist.init_process_group(backend))
    else:
        distributed.join_launched()
        if distributed.is_alone():
            return Processes()
        import jax

        address = distributed.from_main(f"{_host()}:{_free_port()}")
        rank, count = jax.process_index(), jax.process_count()
        _begin(
            lambda backend: dist.init_process_group(
                backend, init_method=f"tcp://{address}", rank=rank, world_size=count
            )
        )
    found = _present()
    _join_jax(found)
    return found


def _begin(start: Callable[[str], None]) -> None:
    if not dist.is_available():
        raise ConfigurationError("Several processes were started, but this torch has no torch.distributed.")
    start("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _present() -> Processes:
    rank, count = dist.get_rank(), dist.get_world_size()
    local_rank = next((os.environ[name] for name in _LOCAL_RANK if name in os.environ), str(rank))
    local_count = next((os.environ[name] for name in _LOCAL_COUNT if name in os.environ), str(count))
    return Processes(rank, count, int(local_rank), int(local_count) if local_count.isdigit() else 1)


_LOCAL_RANK = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
_LOCAL_COUNT = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE")


def _join_jax(found: Processes) -> None:
    if not distributed.is_alone():
        return
    host = os.environ.get("MASTER_ADDR") or _host()
    address = found.broadcast(f"{host}:{_free_port()}")
    devices = [found.local_rank] if torch.cuda.is_available() else None
    distributed.initialize(address, found.count, found.rank, local_device_ids=devices)


def _host() -> str:
    return os.environ.get("MASTER_ADDR") or socket.gethostname()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]
