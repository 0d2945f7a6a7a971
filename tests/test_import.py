"""What `import lightjax` loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# torch belongs to the bridge; the others cost import time and are loaded by the part that uses them.
NOT_LOADED = (
    "torch",
    "clearml",
    "comet_ml",
    "flax",
    "matplotlib",
    "mlflow",
    "neptune",
    "rich",
    "sklearn",
    "tensorboard",
    "tensorboardX",
    "tensorflow",
    "traceml",
    "wandb",
)


def loaded_by(statement: str) -> set[str]:
    """Returns the top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "bridges")])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_import_lightjax_loads_no_torch_no_logger_client_and_no_plotting():
    loaded = loaded_by("import lightjax")
    assert "jax" in loaded
    assert loaded.isdisjoint(NOT_LOADED), sorted(loaded.intersection(NOT_LOADED))


def test_import_lightjax_does_not_start_a_device():
    assert loaded_by(
        "import lightjax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized(), 'the import started a backend'"
    )
