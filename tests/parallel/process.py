"""One of several processes that train together; prints what it found as JSON.

python -m tests.parallel.process COORDINATOR COUNT INDEX CASE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

import lightjax as lj
import lightjax.clock
from tests.models import digit_like_data
from tests.parallel.tasks import TASKS, TENSOR_RULES, train

CASES = {
    "jit": {"strategy": "jit"},
    "fsdp": {"strategy": "fsdp"},
    "pmap": {"strategy": "pmap"},
    "tensor": {"strategy": lj.Sharded(mesh={"data": -1, "tensor": 2}, rules=TENSOR_RULES["transformer"], fsdp=True)},
}


def numbers(result: lj.FitResult) -> dict:
    """Returns what a run reported, and the sum of each parameter, which is a program over all processes."""
    sums = jax.jit(lambda tree: jax.tree.map(lambda leaf: (leaf**2).sum(), tree))(result.state.params)
    return {
        "history": result.history,
        "squares": [float(leaf) for leaf in jax.tree.leaves(sums)],
        "step": int(result.state.step),
    }


OFF = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)


def main(cases: str) -> None:
    """Runs each case, one after the other: a process takes longer to start than to train."""
    found = {}
    for case in cases.split(","):
        model, _, arrangement = case.partition("/")
        found[case] = numbers(train(model, **CASES[arrangement])) if arrangement else globals()[f"run_{case}"]()
    print("FOUND " + json.dumps(found | {"process": jax.process_index(), "devices": jax.device_count()}))


def run_files() -> dict:
    """Saves by all, written once by process 0, and resumes."""
    files = dict(logger=True, enable_checkpointing=True, default_root_dir=Path("runs"), strategy="fsdp")
    first = train("mlp", max_steps=11, **files)
    assert first.checkpoint.last is not None
    resumed = train("mlp", resume=first.checkpoint.last, **files)
    return numbers(resumed) | {"directory": str(resumed.directory)}


def run_elastic() -> dict:
    """Goes on with a run of another number of devices and processes, and evaluates its last checkpoint."""
    files = dict(enable_checkpointing=True, default_root_dir=Path("elastic"), strategy="fsdp")
    result = train("mlp", max_steps=14, resume="auto", **files)
    assert result.checkpoint.last is not None
    trainer, data = lj.Trainer(strategy="fsdp", **OFF), lj.ArrayLoader(digit_like_data(37, seed=1), 16)
    last, by_path = (
        trainer.validate(TASKS["mlp"](), data, state=state)
        for state in (result.checkpoint.last, result.checkpoint.last.path)
    )
    return numbers(result) | {"last": last, "by path": by_path}


def run_clock() -> dict:
    """Saves and ends by the clock, where that of process 1 runs twice as fast."""
    if jax.process_index() == 1:
        lightjax.clock.time = SimpleNamespace(monotonic=lambda: 2 * time.monotonic(), time=time.time)
    keeper = lj.ModelCheckpoint(train_time_interval=0.4, every_n_epochs=0)
    files = dict(enable_checkpointing=True, default_root_dir=Path("clock"), strategy="fsdp", callbacks=keeper)
    result = train("mlp", max_epochs=10_000, max_time=3.0, **files)
    return {"stopped_by": result.stopped_by, "step": int(result.state.step), "last": keeper.last and keeper.last.step}


def run_own() -> dict:
    """Reads a loader of its own, which gives this process's part of every batch."""
    arrays, share = digit_like_data(64), 16 // jax.process_count()
    starts = range(jax.process_index() * share, 64, 16)
    batches = [{name: leaf[start : start + share] for name, leaf in arrays.items()} for start in starts]
    return numbers(lj.Trainer(max_epochs=2, log_every_n_steps=1, steps_per_call=2, **OFF).fit(TASKS["mlp"](), batches))


def run_predict() -> bool:
    """Gets all predictions, those of a batch that processes do not divide included."""
    arrays, mlp = digit_like_data(64), TASKS["mlp"]()
    task = lj.Task(mlp.init, mlp.train_step, predict_step=lambda state, batch: 2 * batch["x"])
    state = jax.jit(task.init)(jax.random.key(0), digit_like_data(4))
    predicted = lj.Trainer(max_epochs=1, **OFF).predict(task, lj.ArrayLoader(arrays, 15), state=state)
    return bool(np.array_equal(predicted, 2 * arrays["x"]))


def run_unequal() -> None:
    """Gives batches of another size in each process."""
    rows = 8 - 2 * jax.process_index()
    batches = [{name: leaf[:rows] for name, leaf in digit_like_data(8).items()}] * 2
    lj.Trainer(max_epochs=1, **OFF).fit(TASKS["mlp"](), batches)


def run_fails() -> None:
    """Dies in one process while the others wait for it."""
    if jax.process_index() == 1:
        raise ValueError("this process has had enough")
    lj.distributed.barrier("that nobody else comes to")


if __name__ == "__main__":
    coordinator, count, index, chosen = sys.argv[1:]
    lj.distributed.initialize(coordinator, int(count), int(index), heartbeat_timeout_s=10, shutdown_timeout_s=10)
    main(chosen)
