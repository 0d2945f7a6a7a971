"""Two processes that torchrun started train one module, as Lightning's do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning.pytorch", reason="Lightning is the reference of these tests")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    directory = tmp_path_factory.mktemp("together")
    path = os.pathsep.join([str(ROOT), str(ROOT / "bridges"), os.environ.get("PYTHONPATH", "")])
    program = Path(__file__).with_name("together.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program, directory],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=directory,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in (0, 1)], done.stdout


@pytest.mark.parametrize("kind", ["automatic", "manual"])
def test_losses_weights_and_reduced_values_are_those_of_lightning(found, kind):
    processes, _ = found
    for process in processes:
        by_lightning, by_lightjax = process[kind]
        assert by_lightning == by_lightjax
    first, second = (process[kind][1] for process in processes)
    assert first[2] == second[2]
    assert kind == "manual" or first[0] != second[0]


def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(found):
    for process in found[0]:
        whole, resumed = process["resumed"]
        assert whole == resumed


def test_gradients_of_a_thawed_layer_are_averaged(found):
    first, second = (process["thawed"] for process in found[0])
    assert first[0] == second[0]
    np.testing.assert_allclose(first[0], first[1], rtol=1e-5, atol=1e-7)


def test_every_example_is_predicted_once(found):
    generator = torch.Generator().manual_seed(2)
    labels = (torch.randn(45, 12, generator=generator)[:, :3].sum(1) > 0).long().tolist()
    assert [process["predicted"] for process in found[0]] == [labels[0::2], labels[1::2]]


def test_how_the_data_is_shared_is_said_and_what_cannot_be_shared_is_refused(found):
    processes, output = found
    assert "train_data: each of 2 processes reads its share of 45 examples" in output
    for process in processes:
        assert "train_data is a list, and 2 processes train together" in process["refused"]
        assert "use_distributed_sampler=False" in process["refused"]
