"""One program, run twice in fresh processes, leaves the same checkpoints bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import hashlib, json, sys
import lightjax as lj
from tests.models import bits, digit_like_data, mlp_task

seed = lj.seed_everything(11)
trainer = lj.Trainer(
    max_epochs=3, deterministic=True, default_root_dir=sys.argv[1], logger=False, enable_progress_bar=False,
    callbacks=[lj.EMA(0.9), lj.ModelCheckpoint("val/loss", save_top_k=-1)], enable_model_summary=False,
)
data = lj.ArrayLoader(digit_like_data(100), 16, shuffle=True, seed=seed)
result = trainer.fit(mlp_task(), data, lj.ArrayLoader(digit_like_data(30, seed=1), 16))
found = {}
for path in sorted((result.directory / "checkpoints").glob("step_*")):
    checkpoint = lj.Checkpoint.open(path)
    state = hashlib.sha256(b"".join(bits(checkpoint.restore(result.state)))).hexdigest()
    about = checkpoint.about()
    about = {name: about[name] for name in ("step", "metrics", "callbacks", "position")}
    found[path.name] = [state, about]
print(json.dumps(found))
"""


def test_two_runs_of_one_program_leave_equal_checkpoints(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'bridges'}", "PYTHONHASHSEED": "random"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / str(i))],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
            timeout=150,
        )
        for i in range(2)
    ]
    first, second = (json.loads(run.stdout.splitlines()[-1]) for run in runs)
    assert sorted(first) == ["step_14", "step_21", "step_7"]
    assert first == second
