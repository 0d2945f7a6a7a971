"""Processes: several that train together, one for each host or each accelerator; thin over `jax.distributed`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lightjax.errors import ConfigurationError

# jax waits 100 s for a peer that stopped answering and 300 s for one to say goodbye; an hour has a price on a cluster.
HEARTBEAT_S = 30
SHUTDOWN_S = 15


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    local_device_ids: Sequence[int] | None = None,
    heartbeat_timeout_s: int = HEARTBEAT_S,
    shutdown_timeout_s: int = SHUTDOWN_S,
) -> None:
    """Joins this process with the others of its job; does nothing the second time.

    Started by `srun`, Open MPI's `mpirun`, on a TPU pod or on GKE, jax finds the others by itself, and a Trainer calls
    this itself where the environment says that there are others. It has to come before anything uses a device.

    When this process ends by an error, the traceback is printed and the process ends at once; jax ends the others then,
    which would otherwise wait for it for minutes.

    Args:
      coordinator_address: "host:port" of process 0; found by jax when None.
      num_processes: how many processes there are; found by jax when None.
      process_id: which of them this is, from 0; found by jax when None.
      local_device_ids: the accelerators of this host that belong to this process; all, or those the launcher means.
      heartbeat_timeout_s: a process silent for so long is taken for dead, which ends the others.
      shutdown_timeout_s: how long a process that is done waits for the others.

    Raises:
      ConfigurationError: the other processes cannot be found, or jax has started its devices already.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            local_device_ids=local_device_ids,
            heartbeat_timeout_seconds=heartbeat_timeout_s,
            shutdown_timeout_seconds=shutdown_timeout_s,
        )
    except ValueError as error:
        raise ConfigurationError(
            f"The other processes of this job cannot be found ({error}). Start the program with srun (in an sbatch "
            "script, too), with mpirun, or on a TPU pod; or say where they are: "
            'lj.distributed.initialize("host:port", num_processes, process_id).'
        ) from error
    except RuntimeError as error:
        raise ConfigurationError(
            f"This process was to join {launched() - 1} others, but jax has started its devices already ({error}). "
            "Make the Trainer, or call lj.distributed.initialize(), before anything else uses jax's devices."
        ) from error
    sys.excepthook = _end_at_once


def launched() -> int:
    """Returns how many processes the launcher says it started; 1 where nobody says."""
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return max(1, len(hosts.split(",")))


def join_launched() -> None:
    """Joins the others where the launcher started several processes; called by every Trainer.

    Raises:
      ConfigurationError: as for `initialize`.
    """
    if launched() > 1:
        initialize()


def is_main() -> bool:
    """Says whether this is process 0, which writes files and shows progress; True for a process alone.

    Starts no device.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_alone() -> bool:
    """Says whether there are no other processes; starts no device."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def barrier(name: str) -> None:
    """Waits until every process has come here; a process that died ends the others after the heartbeat timeout.

    Args:
      name: of the place, the same in every process.
    """
    if not is_alone():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def from_main(text: str) -> str:
    """Returns the text that process 0 gives, in every process; waits for it."""
    if is_alone():
        return text
    from jax.experimental import multihost_utils

    encoded = text.encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(encoded))))
    letters = np.zeros(length, np.uint8)
    if is_main():
        letters[:] = np.frombuffer(encoded, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(letters)).tobytes().decode()


def of_main(tree: Any) -> Any:
    """Returns the host arrays that process 0 has, in every process; waits for them."""
    if is_alone():
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def gathered(values: Sequence[int]) -> np.ndarray:
    """Returns numbers of every process, int32 [processes, values]; waits for all."""
    if is_alone():
        return np.asarray([values], np.int32)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(values, np.int32)))


def _end_at_once(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Prints the error and leaves without saying goodbye: the others would wait to hear it."""
    traceback.print_exception(kind, error, trace)
    number, count = jax.process_index(), jax.process_count()
    print(f"lightjax: process {number} of {count} ends with this error, and the others with it", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
