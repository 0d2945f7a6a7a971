"""Profilers: programs with one overwhelming cost are told what it is, and times add up."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightjax as lj
from lightjax.profiler import (
    Action,
    AdvancedProfiler,
    JaxProfiler,
    MemoryProfiler,
    Profiler,
    SimpleProfiler,
    Times,
    make_profiler,
    verdict,
)
from lightjax.profiler.heaviest import Span, own_times
from tests.models import bits, linear_data, linear_task, quiet


def task_of(leaves, step):
    """A task whose state is plain arrays and whose step does only what a test asks for."""

    def train_step(state, batch):
        return step(state), {"x": batch["x"].mean()}

    return lj.Task(lambda key, batch: leaves(), train_step)


def resident(examples=64):
    return lj.ArrayLoader(linear_data(examples), 4, on_device=True)


def bound_of(task, data, **arguments):
    profiler = SimpleProfiler()
    quiet(steps_per_call=1, profiler=profiler, **arguments).fit(task, data)
    return verdict(profiler.times())


def test_a_program_that_waits_for_data_is_told_so():
    def slow():
        for batch in lj.ArrayLoader(linear_data(120), 4).epoch(0):
            time.sleep(0.02)
            yield batch

    found = bound_of(linear_task(), slow, max_epochs=1)
    assert found.bound == "data"
    assert found.text.startswith("data-bound: ")
    assert "raise num_workers" in found.text


def test_a_program_that_computes_is_told_so():
    def work(state):
        return {"w": jax.lax.fori_loop(0, 8, lambda _, w: w @ w / 600, state["w"])}

    found = bound_of(task_of(lambda: {"w": jnp.ones((600, 600))}, work), resident(), max_steps=30)
    assert found.bound == "device"
    assert "compute-bound" in found.text


def test_a_program_that_only_starts_calls_is_told_so():
    def leaves():
        return {str(i): jnp.zeros(()) for i in range(800)}

    found = bound_of(task_of(leaves, lambda state: state | {"0": state["0"] + 1}), resident(), max_steps=300)
    assert found.bound == "dispatch"
    assert "steps_per_call='auto'" in found.text


def test_a_program_that_saves_all_the_time_is_told_so(tmp_path):
    task = task_of(lambda: {"w": jnp.zeros(20_000_000)}, lambda state: {"w": state["w"] + 1})
    found = bound_of(
        task, resident(), max_steps=5, callbacks=lj.ModelCheckpoint(every_n_train_steps=1), enable_checkpointing=True
    )
    assert found.bound == "checkpoint"
    assert "every_n_train_steps" in found.text


def test_a_program_whose_callback_is_slow_is_told_which():
    class Sleeper(lj.Callback):
        def on_train_batch_end(self, run):
            time.sleep(0.02)

    found = bound_of(linear_task(), resident(), max_steps=30, callbacks=Sleeper())
    assert found.bound == "callback"
    assert "Sleeper" in found.text


def test_devices_found_at_work_are_the_bound_whatever_the_loop_does_meanwhile():
    actions = (Action("dispatch", 8.0, 100), Action("device", 2.0, 100))
    assert verdict(Times(10.0, actions, (), 100, 100, 10)).bound == "device"
    assert verdict(Times(10.0, actions, (), 100, 100, 90)).bound == "dispatch"


def test_compiling_does_not_count():
    actions = (Action("compilation", 90.0, 1), Action("data", 7.0, 10), Action("dispatch", 3.0, 10))
    found = verdict(Times(100.0, actions, (), 10, 10, 10))
    assert (found.bound, round(found.share, 2)) == ("data", 0.7)


def test_times_add_up_and_inner_actions_do_not_count_twice():
    profiler = Profiler()
    profiler.start(None)
    for _ in range(3):
        with profiler.profile("outer"):
            time.sleep(0.002)
            with profiler.profile("inner"), profiler.profile("outer"):
                time.sleep(0.002)
    thread = threading.Thread(target=lambda: list(profiler.each("reading", range(5))))
    thread.start()
    thread.join()
    profiler.finish()
    times = profiler.times()
    assert sum(one.seconds for one in times.actions) == pytest.approx(times.seconds)
    assert {one.name: one.calls for one in times.actions} == {"outer": 6, "inner": 3, "rest": 0}
    assert times.spent("outer") > 0.012
    assert times.spent("inner") < 0.006
    assert [(one.name, one.calls) for one in times.beside] == [("reading", 6)]
    assert Times.read(json.loads(json.dumps(times.described()))) == times


def test_each_passes_errors_on_and_closes_its_action():
    profiler = Profiler()
    profiler.start(None)

    def broken():
        yield 1
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        list(profiler.each("data", broken()))
    with profiler.profile("after"):
        pass
    assert {one.name for one in profiler.times().actions} == {"data", "after", "rest"}


def test_simple_prints_a_table_and_a_verdict(capsys):
    quiet(max_steps=20, steps_per_call=4, profiler="simple").fit(linear_task(), resident())
    out = capsys.readouterr().out
    for text in ("waiting for data", "starting calls", "waiting for the device", "20 steps in", "-bound: "):
        assert text in out


@pytest.mark.parametrize("name", [None, "simple", "advanced", "jax", "memory"])
def test_no_profiler_changes_a_bit(name):
    expected = quiet(max_steps=40).fit(linear_task(), resident())
    profiler = JaxProfiler(first_step=5, steps=3) if name == "jax" else name
    found = quiet(max_steps=40, profiler=profiler).fit(linear_task(), resident())
    assert bits(found.state) == bits(expected.state)
    assert found.history == expected.history


def test_advanced_names_the_functions_of_each_action(tmp_path, capsys):
    class Counter(lj.Callback):
        def on_train_batch_end(self, run):
            count_to_a_million()

    def count_to_a_million():
        return sum(i % 3 for i in range(100_000))

    trainer = quiet(
        max_steps=4, profiler="advanced", callbacks=Counter(), default_root_dir=tmp_path, logger=lj.CSVLogger()
    )
    trainer.fit(linear_task(), resident())
    out = capsys.readouterr().out
    part = out[out.index("callback Counter:") :]
    assert "<genexpr>" in part.split("\n\n")[0]
    assert (tmp_path / "version_0" / "profile_callback_Counter.pstats").exists()


def test_jax_traces_the_chosen_steps_and_names_the_heaviest_operation(tmp_path, capsys):
    def work(state):
        return {"w": jnp.sin(state["w"] @ state["w"])}

    task = task_of(lambda: {"w": jnp.ones((300, 300))}, work)
    profiler = JaxProfiler(first_step=10, steps=6)
    quiet(max_steps=40, steps_per_call=1, profiler=profiler, default_root_dir=tmp_path, logger=lj.CSVLogger()).fit(
        task, resident()
    )
    out = capsys.readouterr().out
    assert f"Trace of steps 10 to 16 (trace: {tmp_path / 'version_0' / 'plugins' / 'profile'}" in out
    assert "% busy over" in out
    trace = next(tmp_path.glob("version_0/plugins/profile/*/*.xplane.pb"))
    steps = [
        dict(event.stats)["step_num"]
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert steps == list(range(10, 16))
    assert next(trace.parent.glob("*.trace.json.gz"))


def test_jax_says_when_the_run_was_too_short(capsys):
    quiet(max_steps=3, profiler="jax").fit(linear_task(), resident())
    assert "the run ended before step 100" in capsys.readouterr().out


def test_jax_keeps_nothing_of_a_run_without_files(tmp_path, capsys):
    quiet(max_steps=12, profiler=JaxProfiler(first_step=2, steps=2)).fit(linear_task(), resident())
    assert "not kept" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_own_times_leave_out_what_was_inside():
    spans = [Span(0, 10, "loop"), Span(1, 4, "dot"), Span(2, 3, "add"), Span(5, 6, "add"), Span(12, 13, "dot")]
    found = {name: (round(seconds * 1e9), calls) for name, (seconds, calls) in own_times(spans).items()}
    assert found == {"loop": (6, 1), "dot": (3, 2), "add": (2, 2)}


def test_memory_lists_the_largest_arrays(tmp_path, capsys):
    task = task_of(lambda: {"w": jnp.zeros((1000, 777))}, lambda state: {"w": state["w"] + 1})
    trainer = quiet(max_steps=12, profiler="memory", default_root_dir=tmp_path, logger=lj.CSVLogger())
    trainer.fit(task, resident())
    out = capsys.readouterr().out
    assert "float32 1000x777" in out
    assert "Memory at step 10" in out
    assert (tmp_path / "version_0" / "memory.prof").stat().st_size > 0


def test_memory_looks_at_the_end_of_a_short_run(capsys):
    quiet(max_steps=2, profiler=MemoryProfiler()).fit(linear_task(), resident())
    assert "Memory at step 2" in capsys.readouterr().out


def test_a_callback_names_actions_of_its_own():
    class Drawer(lj.Callback):
        every_n_steps = 10

        def on_train_batch_end(self, run):
            with run.profiler.profile("drawing"):
                pass

    profiler = Profiler()
    quiet(max_steps=20, profiler=profiler, callbacks=Drawer()).fit(linear_task(), resident())
    assert {one.name: one.calls for one in profiler.times().actions}["drawing"] == 2


def test_an_unknown_profiler_is_refused_with_the_names():
    with pytest.raises(lj.ConfigurationError, match="profiler='fast' is no profiler: write one of 'simple', 'adv"):
        quiet(max_steps=1, profiler="fast")
    with pytest.raises(lj.ConfigurationError, match="is no profiler"):
        make_profiler(3)  # pyright: ignore[reportArgumentType]
    assert isinstance(make_profiler("advanced"), AdvancedProfiler)


def test_a_second_run_is_measured_anew():
    profiler = SimpleProfiler()
    for steps in (30, 20):
        quiet(max_steps=steps, profiler=profiler).fit(linear_task(), resident())
        assert profiler.times().steps == steps
    assert np.isfinite(profiler.times().seconds)
