"""The prefetch thread, the compiler's thread and cache: errors surface, nothing is left behind."""

import os
import subprocess
import sys
import threading
import time
import traceback
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightjax as lj
from lightjax.data.prefetch import Prefetch
from lightjax.engine.jit import JitEngine
from tests.models import linear_data, linear_task, quiet


def loader(examples=40, batch_size=4):
    return lj.ArrayLoader(linear_data(examples), batch_size)


def own_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lightjax")]


def test_items_come_in_order_and_are_made_ahead():
    made = []

    def items():
        for i in range(6):
            made.append(i)
            yield i

    with Prefetch(items(), depth=2) as ahead:
        assert next(ahead) == 0
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert made == [0, 1, 2, 3]  # two wait, a third is in hand
        assert list(ahead) == [1, 2, 3, 4, 5]
    assert own_threads() == []


def test_the_thread_has_64_bits_where_its_caller_has():
    for wide in (True, False):
        with jax.enable_x64(wide), Prefetch(jnp.asarray(np.ones(2)) for _ in range(3)) as ahead:
            assert {array.dtype for array in ahead} == {np.dtype(np.float64 if wide else np.float32)}


def test_leaving_early_ends_the_thread():
    with Prefetch(iter(range(10**9))) as ahead:
        next(ahead)
    assert own_threads() == []


def test_an_error_in_the_loader_keeps_its_traceback_and_names_the_batch():
    def read_broken_file():
        raise OSError("the file is gone")

    def broken():
        for number, batch in enumerate(loader().epoch(0)):
            if number == 7:
                read_broken_file()
            yield batch

    recorded = []

    class Steps(lj.Callback):
        every_n_steps = None

        def on_exception(self, run, error):
            recorded.append(run.step)

    for steps_per_call in (1, 4, "auto"):
        with pytest.raises(OSError, match="the file is gone") as error:
            quiet(max_epochs=1, steps_per_call=steps_per_call, callbacks=Steps()).fit(linear_task(), broken)
        text = "".join(traceback.format_exception(error.value))
        assert "read_broken_file" in text
        assert "train_data raised this instead of batch 7 of epoch 0." in text
        assert own_threads() == []
    # All whole stretches before the broken batch were trained on.
    assert recorded == [7, 4, 7]


def test_an_error_in_the_validation_loader_surfaces_too():
    def broken():
        yield from loader(8).epoch(0)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more") as error:
        quiet(max_epochs=1).fit(linear_task(), loader(), broken)
    assert "val_data raised this instead of batch 2 of epoch 0." in error.value.__notes__
    assert own_threads() == []


def test_no_thread_is_left_after_a_run():
    quiet(max_epochs=2).fit(linear_task(), loader(), loader(8))
    assert own_threads() == []


def test_transfers_in_the_loop_are_explicit(monkeypatch):
    monkeypatch.setattr(JitEngine, "program", lambda *_: lambda *_: jax.numpy.asarray(np.ones(3)) + 1)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        quiet(max_epochs=1).fit(linear_task(), loader())


def test_a_second_odd_batch_size_warns_and_names_the_leaf_or_raises_when_strict():
    data = linear_data(24)
    batches = [{name: leaf[:size] for name, leaf in data.items()} for size in (6, 5, 6, 4, 6)]
    with pytest.warns(UserWarning, match=r"for the 3\. time.*'x' was float32\[6,5\] and became float32\[4,5\]"):
        quiet(max_epochs=1).fit(linear_task(), batches)
    with pytest.raises(lj.RecompileError, match=r"became float32\[4,5\].*drop_last=True.*strict=False"):
        quiet(max_epochs=1, strict=True).fit(linear_task(), batches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(max_epochs=2, strict=True).fit(linear_task(), [*batches[:3], batches[0], batches[1]])


def test_a_group_as_large_as_one_batch_is_named_where_it_has_to_be_compiled():
    data = linear_data(24)
    batches = [{name: leaf[:size] for name, leaf in data.items()} for size in (6, 6, 5, 6, 6)]
    with pytest.warns(UserWarning, match=r"for the 3\. time, for batches of another size: leaf 'x' is float32\[6,5\]"):
        quiet(max_steps=3, accumulate_grad_batches=2).fit(linear_task(), batches)


def test_nothing_is_compiled_after_the_first_epoch():
    compiled = []

    class Watch(lj.Callback):
        every_n_steps = 3

        def on_train_batch_end(self, run):
            compiled.append((run.epoch, len(events)))

    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: events.append(event) if "backend_compile" in event else None
    )
    try:
        trainer = quiet(max_epochs=4, steps_per_call=4, callbacks=Watch(), log_every_n_steps=2)
        trainer.fit(linear_task(), loader(42), loader(10))
    finally:
        jax.monitoring.clear_event_listeners()
    assert len({count for epoch, count in compiled if epoch > 0}) == 1


SECOND_START = """
import jax, sys
sys.path.insert(0, {root!r})
import lightjax as lj
from tests.models import linear_data, linear_task
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
import lightjax.compilation_cache as cache
cache.LEAST_COMPILE_S = 0.0
trainer = lj.Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
                     compilation_cache={cache})
trainer.fit(linear_task(), lj.ArrayLoader(linear_data(8), 4))
print(sum("cache_hits" in event for event in events), sum("cache_misses" in event for event in events),
      jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("kept", [True, False])
def test_a_second_start_finds_what_the_first_compiled(tmp_path, kept, request):
    script = SECOND_START.format(root=str(request.config.rootpath), cache=kept)
    # The tests have a cache of their own, which a user's would be.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    found = []
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        )
        found.append(ended.stdout.split()[-3:])
    (first_hits, first_misses, _), (hits, misses, setting) = found
    if kept:
        assert int(first_misses) > 0
        assert (int(hits), int(misses)) == (int(first_hits) + int(first_misses), 0)
        assert (tmp_path / "lightjax_logs" / "compilation_cache").is_dir()
    else:
        assert (int(hits), int(misses)) == (0, 0)
        assert not (tmp_path / "lightjax_logs" / "compilation_cache").exists()
    assert setting == "None"  # the user's setting is back
