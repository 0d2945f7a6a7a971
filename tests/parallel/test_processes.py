"""Several processes train as one does, end together, and write once."""

import csv
import functools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import lightjax as lj
from tests.models import digit_like_data
from tests.parallel.process import OFF
from tests.parallel.tasks import TASKS, train

ROOT = Path(__file__).parents[2]
DEVICES = 4  # over all processes


def launch(count, cases, directory):
    """Starts processes and waits for them; returns for each the exit code, what it found, and what it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(DEVICES // count), "PYTHONPATH": str(ROOT)}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # half the time; numbers are compared within rounding
    command = [sys.executable, "-m", "tests.parallel.process", address, str(count)]
    processes = [
        subprocess.Popen(
            [*command, str(index), cases], cwd=directory, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for index in range(count)
    ]  # fmt: skip
    ended = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=500)
            found = [json.loads(line[6:]) for line in output.splitlines() if line.startswith("FOUND ")]
            ended.append((process.returncode, found[0] if found else None, output))
    finally:
        for process in processes:
            process.kill()
            process.stdout.close()
            process.wait()
    return ended


def assert_same(found, reference):
    for row, expected in zip(found["history"], reference.history, strict=True):
        assert row.keys() == expected.keys()
        for metric, value in expected.items():
            np.testing.assert_allclose(row[metric], value, rtol=2e-4, atol=1e-6, err_msg=f"{metric} {row['step']}")
    squares = [float((np.asarray(leaf) ** 2).sum()) for leaf in jax.tree.leaves(reference.state.params)]
    # A bias before a BatchNorm has no gradient but rounding, which Adam follows up to 2e-5: that squared.
    np.testing.assert_allclose(found["squares"], squares, rtol=2e-4, atol=4e-10)
    assert found["step"] == int(reference.state.step)


@pytest.fixture(scope="module")
def on_one_device():
    return functools.cache(lambda model: train(model, devices=1))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    # A run that two processes go on with: it began on eight devices and went on on one.
    for arguments in ({"strategy": "fsdp", "devices": 8, "max_steps": 5}, {"devices": 1, "max_steps": 8}):
        train("mlp", resume="auto", enable_checkpointing=True, default_root_dir=directory / "elastic", **arguments)
    return directory, launch(2, "cnn/jit,transformer/fsdp,mlp/pmap,files,elastic,clock,own,predict", directory)


@pytest.mark.parametrize("case", ["cnn/jit", "transformer/fsdp", "mlp/pmap"])
def test_two_processes_train_as_one_device_does(two, case, on_one_device):
    for code, found, output in two[1]:
        assert code == 0, output[-3000:]
        assert found["devices"] == DEVICES
        assert_same(found[case], on_one_device(case.partition("/")[0]))


def test_four_processes_train_as_one_device_does(tmp_path, on_one_device):
    for code, found, output in launch(4, "cnn/jit,transformer/tensor", tmp_path):
        assert code == 0, output[-3000:]
        assert_same(found["cnn/jit"], on_one_device("cnn"))
        assert_same(found["transformer/tensor"], on_one_device("transformer"))


def test_processes_save_together_write_once_and_resume(two, on_one_device):
    directory, ended = two
    runs = directory / "runs"
    assert [one.name for one in runs.iterdir() if one.name != "compilation_cache"] == ["version_0"]
    for _, found, _ in ended:
        assert found["files"]["step"] == 20
        np.testing.assert_allclose(found["files"]["squares"], found["mlp/pmap"]["squares"], rtol=2e-4)
    with open(runs / "version_0" / "metrics.csv") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(1, 21))
    for _, _, output in ended[1:]:
        assert "run directory" not in output
    # And one process restores what two have saved.
    last = lj.Checkpoint.open(max((runs / "version_0" / "checkpoints").glob("step_*"), key=lambda path: path.name))
    assert last.damage() is None
    restored = last.restore(on_one_device("mlp").state)
    np.testing.assert_allclose(
        np.asarray(restored.params["Dense_1"]["kernel"]),
        np.asarray(on_one_device("mlp").state.params["Dense_1"]["kernel"]),
        rtol=2e-4,
        atol=2e-5,
    )


def test_a_run_goes_from_eight_devices_to_one_to_two_processes_and_back(two, on_one_device):
    directory, ended = two
    for _, found, _ in ended:
        assert found["elastic"]["step"] == 14
        assert found["elastic"]["last"] == found["elastic"]["by path"]
    files = dict(enable_checkpointing=True, default_root_dir=directory / "elastic")
    back = train("mlp", strategy="fsdp", devices=8, resume="auto", **files)
    assert back.directory == directory / "elastic" / "version_0"
    # Where it ended in between it reported and evaluated, too: what it came to is compared.
    reference = on_one_device("mlp")
    assert int(back.state.step) == int(reference.state.step) == 20
    for name in ("train/loss_epoch", "train/accuracy_epoch", "val/loss", "val/accuracy"):
        np.testing.assert_allclose(back.metrics[name], reference.metrics[name], rtol=2e-4, err_msg=name)
    jax.tree.map(
        lambda leaf, expected: np.testing.assert_allclose(np.asarray(leaf), np.asarray(expected), rtol=2e-4, atol=2e-5),
        back.state.params,
        reference.state.params,
    )


def test_processes_go_by_one_clock(two):
    (_, first, _), (_, second, _) = two[1]
    assert first["clock"] == second["clock"]
    assert first["clock"]["stopped_by"] == "max_time"
    assert first["clock"]["last"] == first["clock"]["step"]


def test_loaders_that_give_each_process_its_part_make_the_batches_of_one(two):
    trainer = lj.Trainer(max_epochs=2, log_every_n_steps=1, devices=1, **OFF)
    reference = trainer.fit(TASKS["mlp"](), lj.ArrayLoader(digit_like_data(64), 16))
    for _, found, _ in two[1]:
        assert_same(found["own"], reference)
        assert found["predict"] is True


def test_batches_of_unequal_rows_are_refused_in_every_process(tmp_path):
    for code, _, output in launch(2, "unequal", tmp_path):
        assert code != 0
        assert "process 0: 2 batches of 8 rows; process 1: 2 batches of 6 rows" in output


def test_a_process_that_dies_ends_the_others_with_a_sentence(tmp_path):
    begun_s = time.monotonic()
    (first, _, others), (second, _, output) = launch(2, "fails", tmp_path)
    assert second == 1
    assert "this process has had enough" in output
    assert "lightjax: process 1 of 2 ends with this error, and the others with it" in output
    assert first != 0
    assert "error" in others
    # Without shorter timeouts of ours it takes jax 300 s.
    assert time.monotonic() - begun_s < 90


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "2"}, 2),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c"}, 3),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
    ],
)
def test_launchers_say_how_many_processes_they_started(environment, count, monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert lj.distributed.launched() == count


def test_a_process_alone_joins_nobody_and_waits_for_nobody():
    assert lj.distributed.is_main()
    assert lj.distributed.is_alone()
    lj.distributed.barrier("alone")
    assert lj.distributed.from_main("here") == "here"
