"""Requeue: a preempted SLURM job asks to be started again."""

from __future__ import annotations

import os
import subprocess
import warnings

import jax


def requeue_slurm_job() -> str | None:
    """Runs `scontrol requeue` for this job, on the first process alone.

    SLURM ends the job at once: everything has to be on disk. A job that cannot be requeued is warned about.

    Returns:
      A line that says what was done; None where there is nothing to do: no SLURM job, or not the first process.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None or jax.process_index():
        return None
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        fault = done.stderr.strip() if done.returncode else None
    except OSError as error:
        fault = str(error)
    if fault is not None:
        warnings.warn(
            f"The job {job} was preempted and could not be requeued: {fault}. Start it again with resume='auto'.",
            stacklevel=2,
        )
        return None
    return f"requeued SLURM job {job}"
