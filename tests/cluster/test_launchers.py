"""Two processes train as one does when nothing but srun or mpirun says that there are two: `make cluster-test`."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHERS = {
    "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"],
    "srun": ["srun", "-N2", "-n2", "--kill-on-bad-exit=1"],
}


def digits(command, directory):
    """Trains examples/digits.py for two epochs; returns what it printed and the rows it logged."""
    pytest.importorskip("sklearn")
    command = [*command, sys.executable, str(ROOT / "examples" / "digits.py"), "--max-epochs", "2"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    (run,) = directory.glob("lightjax_logs/version_*")
    with open(run / "metrics.csv") as file:
        return done.stdout, list(csv.DictReader(file))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return digits([], tmp_path_factory.mktemp("one"))[1]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_digits_example_trains_with_two_processes_by_nothing_but_a_launcher(launcher, tmp_path, request):
    if shutil.which(launcher) is None:
        pytest.skip(f"{launcher} is not installed: `make cluster-test` does it")
    if launcher == "srun" and subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no SLURM answers here: `make cluster-test` starts one")
    expected = request.getfixturevalue("expected")
    output, found = digits(LAUNCHERS[launcher], tmp_path)
    # One of them speaks, and one writes.
    assert output.count("stopped by max_epochs at step 40") == 1
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("train/loss", "val/loss", "val/accuracy"):
        values = [[float(row[name]) for row in rows if row[name]] for rows in (found, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-3), name
    assert len(values[0]) == 2
