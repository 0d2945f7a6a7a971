"""Hooks run at the moments docs/callbacks.md says, in Lightning's order."""

import inspect
import re
from pathlib import Path

import pytest

import lightjax as lj
from tests.models import linear_data, linear_task, quiet

HOOKS = [name for name, _ in inspect.getmembers(lj.Callback, inspect.isfunction)]
HOOKS = [name for name in HOOKS if name.startswith("on_") or name in ("setup", "teardown")]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "callbacks.md"


def loader(examples=8, batch_size=4):
    return lj.ArrayLoader(linear_data(examples), batch_size)


class Recorder(lj.Callback):
    """Notes every hook, without its prefix."""

    def __init__(self, every_n_steps=1):
        self.every_n_steps = every_n_steps
        self.calls = []

    def load_state_dict(self, state):
        self.calls.append("load_state_dict")

    def state_dict(self):
        return {"something": 1}


for _hook in HOOKS:
    setattr(Recorder, _hook, lambda self, run, *_, name=_hook: self.calls.append(name.removeprefix("on_")))

EPOCH = ["train_epoch_start", *["train_batch_start", "train_batch_end", "call_end"] * 2]
VALIDATION = [
    "validation_start",
    "validation_epoch_start",
    *["validation_batch_start", "validation_batch_end"] * 2,
    "validation_epoch_end",
    "validation_end",
]
TEST = [name.replace("validation", "test") for name in VALIDATION]


def test_the_hooks_of_fit_run_in_order():
    recorder = Recorder()
    quiet(max_epochs=2, callbacks=recorder, num_sanity_val_steps=2).fit(linear_task(), loader(), loader())
    assert recorder.calls == [
        "setup", "fit_start",
        "sanity_check_start", *VALIDATION, "sanity_check_end",
        "train_start",
        *EPOCH, *VALIDATION, "train_epoch_end",
        *EPOCH, *VALIDATION, "train_epoch_end",
        "train_end", "fit_end", "teardown",
    ]  # fmt: skip


def test_batch_hooks_run_as_often_as_they_declare():
    recorder = Recorder(every_n_steps=2)
    recorder.on_validation_batch_start = recorder.on_validation_batch_end = None  # not those of an instance
    quiet(max_epochs=1, callbacks=Recorder(2)).fit(linear_task(), loader())
    seen = []

    class Steps(lj.Callback):
        every_n_steps = 3

        def on_train_batch_start(self, run):
            seen.append(("start", run.step))

        def on_train_batch_end(self, run):
            seen.append(("end", run.step))

    quiet(max_epochs=2, callbacks=Steps(), steps_per_call=8).fit(linear_task(), loader(16))
    assert seen == [("start", 0), ("end", 3), ("start", 3), ("end", 6), ("start", 6)]


def test_the_hooks_of_a_resumed_run_begin_with_what_was_kept(tmp_path):
    def fit(max_epochs, recorder):
        keeper = lj.ModelCheckpoint()
        arguments = dict(enable_checkpointing=True, default_root_dir=tmp_path, resume="auto", num_sanity_val_steps=2)
        arguments["steps_per_call"] = 1
        quiet(max_epochs=max_epochs, callbacks=[recorder, keeper], **arguments).fit(linear_task(), loader(), loader())

    fit(1, Recorder(None))
    fit(2, recorder := Recorder(None))
    without_batches = [name for name in VALIDATION]
    assert recorder.calls == [
        "setup", "load_checkpoint", "load_state_dict", "fit_start", "train_start",
        "train_epoch_start", *["call_end"] * 2, *without_batches, "train_epoch_end", "save_checkpoint",
        "train_end", "fit_end", "save_checkpoint", "teardown",
    ]  # fmt: skip


def test_the_hooks_of_validate_test_and_predict_run_in_order():
    trainer = quiet(max_epochs=1)
    trainer.fit(linear_task(), loader())
    trainer.callbacks.append(recorder := Recorder())
    trainer.validate(linear_task(), loader())
    assert recorder.calls == ["setup", *VALIDATION, "teardown"]
    recorder.calls.clear()
    trainer.test(linear_task(), loader())
    assert recorder.calls == ["setup", *TEST, "teardown"]
    recorder.calls.clear()
    trainer.predict(linear_task(), loader(12))
    assert recorder.calls == [
        "setup", "predict_start", "predict_epoch_start",
        "predict_batch_start", "predict_batch_start", "predict_batch_end",  # one batch late
        "predict_batch_start", "predict_batch_end", "predict_batch_end",
        "predict_epoch_end", "predict_end", "teardown",
    ]  # fmt: skip


def test_hooks_know_the_stage_the_loader_and_the_batch():
    seen = []

    class Look(lj.Callback):
        every_n_steps = None

        def setup(self, run, stage):
            seen.append((stage, run.stage))

        def on_test_batch_end(self, run):
            seen.append((run.loader, run.eval_batch))

        def on_test_epoch_end(self, run):
            seen.append(sorted(run.metrics))

        def on_predict_batch_end(self, run, outputs):
            seen.append((run.loader, run.eval_batch, outputs.shape))

    trainer = quiet(max_epochs=1, callbacks=Look())
    trainer.fit(linear_task(), loader())
    trainer.test(linear_task(), {"a": loader(), "b": loader(6)})
    trainer.predict(linear_task(), loader(6))
    assert seen == [
        ("fit", "fit"),
        ("test", "test"), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ["test/a/loss", "test/b/loss"],
        ("predict", "predict"), ("", 1, (4,)), ("", 2, (2,)),
    ]  # fmt: skip


def test_the_docs_list_every_hook_and_no_other():
    table = re.sub(r"`on_before_backward`.*do not exist", "", DOCS.read_text(), flags=re.DOTALL)
    named = set(re.findall(r"`((?:on_\w+)|setup|teardown)(?:\([^`]*\))?`", table))
    assert named == set(HOOKS)


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook not in ("on_exception", "teardown")])
def test_a_hook_that_raises_is_named_and_its_traceback_kept(hook, tmp_path):
    def broken(self, run, *_):
        raise RuntimeError("no disk")

    failing = type("Failing", (lj.Callback,), {hook: broken, "every_n_steps": 1})()
    recorder = Recorder(None)
    arguments = dict(enable_checkpointing=True, default_root_dir=tmp_path, num_sanity_val_steps=1)
    task = linear_task()
    if hook == "on_load_checkpoint":
        quiet(max_epochs=1, **arguments).fit(task, loader())
        arguments["resume"] = "auto"
    trainer = quiet(max_epochs=2, callbacks=[failing, recorder], **arguments)
    stage = next((stage for stage in ("test", "predict") if stage in hook), "fit")
    state = quiet(max_epochs=1).fit(task, loader()).state
    data = {"fit": (loader(), loader())}.get(stage, (loader(),))
    given = {} if stage == "fit" else {"state": state}
    with pytest.raises(RuntimeError, match="no disk") as error:
        getattr(trainer, stage)(task, *data, **given)
    assert any(note.startswith(f"This happened in Failing.{hook}, at step") for note in error.value.__notes__)
    assert error.traceback[-1].name == "broken"
    assert [call for call in recorder.calls if call != "save_checkpoint"][-2:] == ["exception", "teardown"]


def test_an_error_after_an_error_is_noted_with_the_first():
    class Failing(lj.Callback):
        every_n_steps = None

        def on_train_epoch_end(self, run):
            raise RuntimeError("first")

        def on_exception(self, run, error):
            raise RuntimeError("second")

        def teardown(self, run, stage):
            raise RuntimeError("third")

    with pytest.raises(RuntimeError, match="first") as error:
        quiet(max_epochs=1, callbacks=Failing()).fit(linear_task(), loader())
    assert "Then Failing.on_exception failed: RuntimeError('second')" in error.value.__notes__
    assert "Then Failing.teardown failed: RuntimeError('third')" in error.value.__notes__


@pytest.mark.parametrize("every_n_steps", [1, 2])
def test_a_hook_that_raises_leaves_the_state_of_its_step_saved(tmp_path, every_n_steps):
    class Failing(lj.Callback):
        def on_train_batch_end(self, run):
            if run.step == 6:
                raise RuntimeError("no disk")

    failing = Failing()
    failing.every_n_steps = every_n_steps
    arguments = dict(enable_checkpointing=True, default_root_dir=tmp_path)
    with pytest.raises(RuntimeError, match="no disk"):
        quiet(max_epochs=3, callbacks=failing, **arguments).fit(linear_task(), loader(16))
    resumed = quiet(max_epochs=3, resume="auto", **arguments).fit(linear_task(), loader(16))
    assert resumed.directory == tmp_path / "version_0"
    assert (resumed.directory / "checkpoints" / "step_12").is_dir()
    whole = quiet(max_epochs=3).fit(linear_task(), loader(16))
    assert resumed.metrics == whole.metrics
