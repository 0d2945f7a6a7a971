"""Preemption: signals before the first step, exit codes, requeueing, several processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import lightjax as lj
from tests.models import digit_like_data, mlp_task, quiet

ROOT = Path(__file__).resolve().parents[2]


def preempted_while_compiling(directory, **arguments):
    """Fits a task whose tracing gets a SIGTERM, long before the first step."""
    task = mlp_task()

    def train_step(state, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return task.train_step(state, batch)

    trainer = quiet(max_epochs=2, enable_checkpointing=True, default_root_dir=directory, **arguments)
    return trainer.fit(lj.Task(task.init, train_step, task.eval_step), lj.ArrayLoader(digit_like_data(32), 16))


def test_a_signal_before_the_first_step_is_honoured(tmp_path):
    result = preempted_while_compiling(tmp_path)
    assert (result.stopped_by, result.exit_code, int(result.state.step)) == ("preempted", 75, 0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    trainer = quiet(max_epochs=2, enable_checkpointing=True, default_root_dir=tmp_path)
    resumed = trainer.fit(mlp_task(), lj.ArrayLoader(digit_like_data(32), 16), resume="auto")
    assert (resumed.stopped_by, resumed.exit_code, int(resumed.state.step)) == ("max_epochs", 0, 4)
    assert resumed.directory == result.directory


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A scontrol that writes down what it was asked, with the checkpoints there were."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" $(ls {tmp_path}/run/version_0/checkpoints) >> {tmp_path}/asked\n'
        'if [ "$2" = 13 ]; then echo "Requested operation is disabled" >&2; exit 1; fi\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return tmp_path / "asked"


def test_a_preempted_job_is_requeued_once_everything_is_on_disk(tmp_path, monkeypatch, scontrol, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    preempted_while_compiling(tmp_path / "run")
    assert not scontrol.exists()
    preempted_while_compiling(tmp_path / "run", requeue=True)
    assert scontrol.read_text() == "requeue 12 step_0\n"
    assert capsys.readouterr().out.endswith("requeued SLURM job 12\n")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    preempted_while_compiling(tmp_path / "run", requeue=True)
    assert scontrol.read_text().endswith("requeue 7_3 step_0\n")


def test_a_job_that_cannot_be_requeued_is_warned_about(tmp_path, monkeypatch, scontrol):
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    with pytest.warns(UserWarning, match="job 13 was preempted and could not be requeued: Requested operation"):
        assert preempted_while_compiling(tmp_path / "run", requeue=True).exit_code == 75
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="could not be requeued: .*scontrol"):
        preempted_while_compiling(tmp_path / "run", requeue=True)


PROCESS = """
import os, signal, sys, time, jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
from lightjax.interrupt import Interrupt
assert jax.process_count() == 2
with Interrupt() as interrupt:
    for polls in range(1000):
        if polls == 20 and sys.argv[2] == "1":
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))
        time.sleep(0.01 * (1 + int(sys.argv[2])))
        if interrupt.poll():
            break
print(interrupt.reason, polls)
jax.distributed.shutdown()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_processes_stop_together_when_one_of_them_is_preempted(name):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(rank), name],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    first, second = [out.splitlines()[-1] for out, _ in ended]
    assert first == second
    assert first.startswith("preempted ")
    assert 20 <= int(first.split()[1]) < 999
