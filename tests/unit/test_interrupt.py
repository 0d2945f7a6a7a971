"""Ctrl-C: the first ends a run cleanly wherever it is, the second leaves at once."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
import lightjax as lj
from tests.models import linear_data, linear_task

def batches():
    yield from lj.ArrayLoader(linear_data(40), 4).epoch(0)
    if {stuck!r} == "loader":
        print("ready", flush=True)
        time.sleep(60)

class Stuck(lj.Callback):
    every_n_steps = 5
    def on_train_batch_end(self, run):
        if {stuck!r} == "callback" and run.step == 5:
            print("ready", flush=True)
            time.sleep(60)

trainer = lj.Trainer(max_epochs=9, steps_per_call=2, callbacks=[Stuck()], logger=False, enable_progress_bar=False,
                     enable_model_summary=False)
result = trainer.fit(linear_task(), batches)
print("ended", result.stopped_by, int(result.state.step), result.checkpoint.last.step)
"""


@pytest.fixture
def start(request, tmp_path):
    processes = []

    def started(stuck):
        script = PROGRAM.format(root=str(request.config.rootpath), stuck=stuck)
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        processes.append(process)
        while (line := process.stdout.readline()) != "ready\n":
            assert line, process.stderr.read()
        time.sleep(0.5)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def test_one_press_ends_a_run_that_waits_for_its_loader_with_a_checkpoint(start):
    process = start("loader")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out.splitlines()[-1:] == ["ended interrupt 10 10"], err
    assert process.returncode == 0


def test_a_second_press_leaves_at_once(start):
    process = start("callback")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # the first waits for the callback
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert "ended" not in out
    assert process.returncode != 0
