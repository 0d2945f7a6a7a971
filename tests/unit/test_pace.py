"""The choice of steps_per_call and its reasons; limits by time."""

import threading
import time
from datetime import timedelta

import numpy as np
import pytest

import lightjax as lj
from lightjax.engine.compiler import Compiler
from lightjax.pace import CALL_S, MEASURED_STEPS, WARM_UP_STEPS, Pace
from lightjax.schedule import batches_between, seconds
from tests.models import bits, linear_data, linear_task, quiet

BATCH = {"x": np.zeros((64, 16), np.float32)}


class Every(lj.Callback):
    def __init__(self, n):
        self.every_n_steps = n

    def on_train_batch_end(self, run):
        float(run.state.step)


def chosen(step_s, monkeypatch, *, wanted="auto", compile_s=0.1, start_s=0.0, **changes):
    arguments = dict(loops=True, callbacks=[], batch=BATCH, epoch_steps=None, total_steps=None, on_cpu=False) | changes
    pace = Pace(wanted, **arguments)
    done = 0
    while pace.measuring:
        done += 1
        clock = iter([100.0 + start_s, 100.0 + step_s])
        monkeypatch.setattr(time, "perf_counter", clock.__next__)
        needed = MEASURED_STEPS * (1 if step_s >= CALL_S else 10)
        assert pace.observe(100.0, np.zeros(1), done, compile_s) == (done == WARM_UP_STEPS + needed)
    return pace


@pytest.mark.parametrize(
    ("step_s", "arguments", "steps", "reason"),
    [
        (1e-3, {}, 8, "1 ms a step, dispatch-bound"),
        (1e-5, {}, 256, "0.01 ms a step, dispatch-bound; longer calls gain nothing"),
        (1e-3, {"start_s": 0.8e-3}, 32, "1 ms a step, dispatch-bound"),  # 0.2 ms of work
        (1e-3, {"start_s": 1e-3}, 64, "1 ms a step, dispatch-bound"),
        (1e-3, {"start_s": 1e-3, "batch": {"x": np.zeros(2**14, np.float32)}}, 16, "1 ms a step, dispatch-bound"),
        (1e-3, {"start_s": 1e-3, "batch": {"x": np.zeros(2**18, np.float32)}}, 8, "1 ms a step, dispatch-bound"),
        (1e-2, {}, 1, "10 ms a step, dispatch is hidden"),
        (1e-2, {"on_cpu": True}, 8, "10 ms a step, longer calls allocate less often"),
        (0.3, {"on_cpu": True}, 2, "longer calls allocate less often"),
        (3.0, {"on_cpu": True}, 1, "longer calls allocate less often"),
        (1e-3, {"epoch_steps": 5}, 5, "an epoch has 5 steps"),
        (1e-3, {"callbacks": [Every(3)]}, 3, "Every looks every 3 steps"),
        (1e-3, {"batch": {"x": np.zeros((32, 2**18), np.float32)}}, 2, "a batch has 33.6 MB"),
        (
            1e-3,
            {"total_steps": 500, "compile_s": 2.0},
            1,
            "448 more steps are too few to win back a",
        ),
        (1e-3, {"total_steps": 500_000, "compile_s": 2.0}, 8, "dispatch-bound"),
    ],
)
def test_auto_chooses_from_the_measured_step_and_says_why(monkeypatch, step_s, arguments, steps, reason):
    pace = chosen(step_s, monkeypatch, **arguments)
    assert pace.steps == steps
    assert reason in str(pace)
    assert str(pace).startswith(f"steps_per_call={steps} (auto: ")


@pytest.mark.parametrize("wanted", ["auto", 16])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "Every looks at every step"),
        ({"loops": False}, "Every looks at every step"),
    ],
)
def test_a_callback_that_forces_single_steps_is_named(wanted, arguments, reason, monkeypatch):
    pace = chosen(1e-3, monkeypatch, wanted=wanted, callbacks=[Every(5), Every(1)], **arguments)
    assert (pace.steps, pace.capacity) == (1, 1)
    assert reason in str(pace)


@pytest.mark.parametrize(
    ("wanted", "step_s", "moved", "capacity"), [("auto", 1e-3, 8, 8), ("auto", 0.3, 2, 8), (3, 1e-3, 3, 3)]
)
def test_steps_that_cannot_loop_stay_single_and_their_batches_move_together(
    wanted, step_s, moved, capacity, monkeypatch
):
    pace = chosen(step_s, monkeypatch, wanted=wanted, loops=False, on_cpu=True)
    assert (pace.steps, pace.capacity) == (moved, capacity)
    assert "steps_per_call=1 (" in str(pace)
    assert f"outside of a loop on the CPU; batches are moved {moved} at a time" in str(pace)


def test_a_number_is_kept():
    assert str(Pace(16, loops=True, callbacks=[], batch=BATCH, epoch_steps=None, total_steps=9, on_cpu=True)) == (
        "steps_per_call=16 (as asked for)"
    )


def test_the_start_of_a_run_says_which_callback_forces_single_steps(capsys):
    quiet(max_epochs=1, callbacks=Every(1), enable_progress_bar=True).fit(
        linear_task(), lj.ArrayLoader(linear_data(8), 4)
    )
    assert "steps_per_call=1 (auto: Every looks at every step)" in capsys.readouterr().out


def test_single_steps_go_on_until_the_program_for_several_is_compiled(monkeypatch):
    went_on, begun = threading.Event(), []
    compile_now = Compiler._compile

    def slow(self, lowered, options, check):
        begun.append(lowered)
        if len(begun) == 2:  # the step for several; the one for single steps came first
            assert went_on.wait(60)
        return compile_now(self, lowered, options, check)

    class Watch(lj.Callback):
        every_n_steps = None

        def on_call_end(self, run):
            if len(begun) == 2:
                self.calls = getattr(self, "calls", 0) + 1
                if self.calls == 5:
                    went_on.set()
                    while run._engine.compiling():
                        time.sleep(0.01)

    def choose_eight(self, *_):
        self.measuring, self.steps, self.capacity = False, 8, 8
        return True

    monkeypatch.setattr(Compiler, "_compile", slow)
    monkeypatch.setattr(Pace, "observe", choose_eight)
    loader = lj.ArrayLoader(linear_data(4 * 100), 4)
    watch = Watch()
    result = quiet(max_epochs=1, callbacks=watch, log_every_n_steps=50).fit(linear_task(), loader)
    assert went_on.is_set()
    assert int(result.state.step) == 100
    assert watch.calls < 50  # and then several ran in a call
    monkeypatch.undo()
    alone = quiet(max_epochs=1, steps_per_call=1, log_every_n_steps=50).fit(linear_task(), loader)
    assert bits(result.state) == bits(alone.state)
    assert result.history == alone.history


@pytest.mark.parametrize(
    ("given", "expected"),
    [("01:02:03:04", 93784.0), (timedelta(minutes=3), 180.0), ({"hours": 1}, 3600.0), (0.5, 0.5), (None, None)],
)
def test_time_limits_are_read(given, expected):
    assert seconds(given) == expected


@pytest.mark.parametrize("given", ["10 minutes", "1:2", {"years": 1}, -1, []])
def test_a_time_limit_that_is_none_is_refused(given):
    with pytest.raises(lj.ConfigurationError, match="max_time="):
        lj.Trainer(max_time=given)


def test_max_time_ends_a_run_within_an_epoch_with_an_evaluation():
    def slow():
        while True:
            time.sleep(0.01)
            yield from lj.ArrayLoader(linear_data(8), 4).epoch(0)

    result = quiet(max_time=2.0).fit(linear_task(), slow, lj.ArrayLoader(linear_data(8), 4))
    assert result.stopped_by == "max_time"
    assert "val/loss" in result.history[-1]
    assert int(result.state.step) > 1


def test_validation_intervals_are_read():
    assert [batches_between(interval, 10) for interval in (None, 1.0, 0.25, 4)] == [None, None, 2, 4]
    assert batches_between(4, None) == 4
    with pytest.raises(lj.ConfigurationError, match=r"val_check_interval=0\.5 is a fraction.*no length"):
        batches_between(0.5, None)
    with pytest.raises(lj.ConfigurationError, match="val_check_interval=11 is more than the 10 batches"):
        batches_between(11, 10)
