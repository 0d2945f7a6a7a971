"""Callbacks: when hooks run, what they see, and what they decide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightjax as lj
from tests.models import bits, linear_data, linear_task, quiet


def loader(examples=20, batch_size=4):
    return lj.ArrayLoader(linear_data(examples), batch_size)


class Recorder(lj.Callback):
    """Notes every hook with the step it ran at."""

    every_n_steps = 2

    def __init__(self):
        self.calls = []


def _recording(hook):
    return lambda self, run, *_: self.calls.append((hook, run.step))


for _hook in (
    "on_fit_start",
    "on_train_epoch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_end",
    "on_train_epoch_end",
    "on_fit_end",
    "on_exception",
):
    setattr(Recorder, _hook, _recording(_hook))


def test_hooks_run_in_order_at_the_steps_they_declare():
    recorder = Recorder()
    quiet(max_epochs=2, callbacks=recorder, steps_per_call=8).fit(linear_task(), loader(), loader(8))
    epoch = lambda start, looks: [  # noqa: E731
        ("on_train_epoch_start", start),
        *(("on_train_batch_end", step) for step in looks),
        ("on_validation_start", start + 5),
        ("on_validation_end", start + 5),
        ("on_train_epoch_end", start + 5),
    ]
    assert recorder.calls == [
        ("on_fit_start", 0), *epoch(0, [2, 4]), *epoch(5, [6, 8, 10]), ("on_fit_end", 10)
    ]  # fmt: skip


def test_a_callback_sees_the_state_and_fresh_metrics_of_its_step():
    class Look(lj.Callback):
        every_n_steps = 3

        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, run):
            self.seen.append((run.step, int(run.state.step), run.metrics["train/loss"]))

    look = Look()
    result = quiet(max_epochs=1, callbacks=look, log_every_n_steps=1, steps_per_call=8).fit(linear_task(), loader(48))
    by_step = {row["step"]: row["train/loss"] for row in result.history}
    assert [step for step, _, _ in look.seen] == [3, 6, 9, 12]
    for step, state_step, loss in look.seen:
        assert state_step == step
        assert loss == by_step[step]


def test_a_callback_may_replace_the_state():
    class Reset(lj.Callback):
        every_n_steps = 5

        def on_train_batch_end(self, run):
            run.state = run.state.replace(params=jax.tree.map(jnp.zeros_like, run.state.params))

    result = quiet(max_epochs=1, callbacks=Reset()).fit(linear_task(), loader())
    assert float(jnp.abs(result.state.params["w"]).max()) == 0.0

    class Wrong(lj.Callback):
        every_n_steps = 5

        def on_train_batch_end(self, run):
            run.state = run.state.replace(params={"w": run.state.params["w"]})

    with pytest.raises(lj.StepError, match=r"run.state was assigned.*leaf 'params/b' was float32\[\] and is gone"):
        quiet(max_epochs=1, callbacks=Wrong()).fit(linear_task(), loader())


def test_a_callback_may_log_and_stop():
    class Act(lj.Callback):
        every_n_steps = 2

        def on_train_batch_end(self, run):
            run.log({"norm": jnp.linalg.norm(run.state.params["w"]), "two": 2})
            if run.step == 4:
                run.stop("seen enough")
                run.stop("a later reason")

    result = quiet(max_epochs=9, callbacks=Act()).fit(linear_task(), loader(40), loader(8))
    assert (result.stopped_by, int(result.state.step)) == ("seen enough", 4)
    assert result.metrics["two"] == 2.0
    assert [row["step"] for row in result.history if "norm" in row] == [2, 4]
    assert "val/loss" in result.history[-1]

    class Bad(lj.Callback):
        def on_train_batch_end(self, run):
            run.log({"w": run.state.params["w"]})

    with pytest.raises(lj.MetricError, match="run.log got 'w'"):
        quiet(max_epochs=1, callbacks=Bad()).fit(linear_task(), loader())


def test_an_exception_reaches_every_callback_and_then_the_user():
    recorder = Recorder()

    def broken():
        yield from loader().epoch(0)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        quiet(max_epochs=1, callbacks=recorder).fit(linear_task(), broken)
    assert recorder.calls[-1] == ("on_exception", 5)


@pytest.mark.parametrize(
    ("arguments", "values", "stops_at"),
    [
        ({"patience": 2}, [1.0, 0.5, 0.6, 0.5, 0.1], 4),
        ({"patience": 2, "min_delta": 0.2}, [1.0, 0.9, 0.85, 0.1], 3),
        ({"patience": 1, "mode": "max"}, [0.1, 0.2, 0.2], 3),
        ({"patience": 9}, [1.0, float("nan")], 2),
        ({"patience": 9, "check_finite": False}, [1.0, float("nan"), 0.5], None),
        ({"patience": 9, "stopping_threshold": 0.5}, [1.0, 0.6, 0.4], 3),
        ({"patience": 9, "divergence_threshold": 2.0}, [1.0, 1.9, 2.1], 3),
        ({"patience": 3}, [3.0, 2.0, 1.0], None),
    ],
)
def test_early_stopping_stops_at_the_right_look_and_says_why(arguments, values, stops_at):
    callback = lj.EarlyStopping("val/loss", **arguments)
    reasons = [callback.judge(value) for value in values[:stops_at]]
    assert [reason is not None for reason in reasons] == [look + 1 == stops_at for look in range(len(reasons))]
    assert reasons[-1] is None or reasons[-1].startswith("val/loss")


def test_early_stopping_ends_a_run_and_says_so():
    result = quiet(max_epochs=50, callbacks=lj.EarlyStopping("val/loss", patience=2, min_delta=10.0)).fit(
        linear_task(), loader(), loader(8)
    )
    assert result.stopped_by.startswith("early_stopping: val/loss did not improve on")
    assert result.history[-1]["epoch"] < 5
    state = lj.EarlyStopping("val/loss")
    state.judge(0.5)
    again = lj.EarlyStopping("val/loss")
    again.load_state_dict(state.state_dict())
    assert (again.best, again.wait) == (0.5, 0)


@pytest.mark.parametrize(
    ("monitor", "arguments", "looks"),
    [
        ("val/loss", {}, [2, 4, 5]),
        ("val/loss", {"check_on_train_epoch_end": True}, [5]),
        ("loss", {}, [2, 4, 5]),  # found as val/loss
        ("train/loss_epoch", {}, [5]),
        ("mine", {}, [2, 4, 5]),  # logged by a callback after evaluations
    ],
)
def test_early_stopping_looks_whenever_its_metric_is_new(monitor, arguments, looks):
    class Watching(lj.EarlyStopping):
        def judge(self, value):
            seen.append(run_steps[-1])
            return super().judge(value)

    def log(run):
        run_steps.append(run.step)
        run.log({"mine": run.step})

    seen, run_steps = [], []
    log_first = lj.LambdaCallback(
        every_n_steps=None, on_validation_end=log, on_train_epoch_end=lambda run: run_steps.append(run.step)
    )
    callbacks = [log_first, Watching(monitor, mode="max", patience=9, **arguments)]
    quiet(max_epochs=1, val_check_interval=2, callbacks=callbacks).fit(linear_task(), loader(), loader(8))
    assert seen == looks


def test_early_stopping_begins_anew_with_every_run():
    callback = lj.EarlyStopping("val/loss", patience=2, min_delta=10.0)
    trainer = quiet(max_epochs=50, callbacks=callback)
    steps = [int(trainer.fit(linear_task(), loader(), loader(8)).state.step) for _ in range(2)]
    assert steps[0] == steps[1]


class Script(lj.Callback):
    """Reports a scripted score at the end of each epoch, before ModelCheckpoint looks."""

    every_n_steps = None

    def __init__(self, values):
        self.values = values

    def on_validation_end(self, run):
        if (value := self.values[run.epoch]) is not None:
            run.log({"val/score": value})


@pytest.mark.parametrize(
    ("values", "arguments", "best_epoch", "kept_epochs"),
    [
        ([0.3, 0.9, 0.5], {"mode": "min"}, 0, [0, 2]),
        ([0.3, 0.9, 0.5], {"mode": "max"}, 1, [1, 2]),
        ([0.9, 0.3, float("nan")], {"mode": "min"}, 1, [1, 2]),  # NaN is never the best
        ([float("nan"), 0.7, 0.8], {"mode": "max"}, 2, [2]),
        ([0.3, 0.1, 0.2, 0.4], {"mode": "min", "save_top_k": 2}, 1, [1, 2, 3]),
        ([0.3, 0.1, 0.2], {"mode": "min", "save_top_k": -1}, 1, [0, 1, 2]),
        ([0.3, 0.1, 0.2], {"mode": "min", "save_top_k": 0}, 2, [2]),  # the last stands in for the best
        ([0.3, None, None], {"mode": "min"}, 0, [0, 2]),  # a stale score ranks nothing
    ],
)
def test_the_best_and_the_last_checkpoints_are_kept(tmp_path, values, arguments, best_epoch, kept_epochs):
    keeper = lj.ModelCheckpoint("val/score", **arguments)
    trainer = quiet(
        max_epochs=len(values), callbacks=[Script(values), keeper], enable_checkpointing=True, default_root_dir=tmp_path
    )
    result = trainer.fit(linear_task(), loader(), loader(8))
    steps = [5 * (epoch + 1) for epoch in kept_epochs]
    found = sorted(int(path.name.removeprefix("step_")) for path in (result.directory / "checkpoints").iterdir())
    assert found == steps
    assert result.checkpoint.best.step == 5 * (best_epoch + 1)
    assert result.checkpoint.last.step == 5 * len(values)
    for checkpoint in (result.checkpoint.best, result.checkpoint.last):
        assert int(checkpoint.restore().step) == checkpoint.step


def test_two_keepers_do_not_delete_what_the_other_keeps(tmp_path):
    smallest = lj.ModelCheckpoint("val/score", mode="min")
    largest = lj.ModelCheckpoint("val/score", mode="max")
    trainer = quiet(
        max_epochs=4,
        callbacks=[Script([0.5, 0.1, 0.9, 0.5]), smallest, largest],
        enable_checkpointing=True,
        default_root_dir=tmp_path,
    )
    result = trainer.fit(linear_task(), loader(), loader(8))
    found = sorted(path.name for path in (result.directory / "checkpoints").iterdir())
    assert found == ["step_10", "step_15", "step_20"]
    assert (smallest.best.step, largest.best.step) == (10, 15)


def test_without_a_monitor_val_loss_ranks_checkpoints(tmp_path):
    trainer = quiet(max_epochs=5, enable_checkpointing=True, default_root_dir=tmp_path)
    result = trainer.fit(linear_task(), loader(), loader(8))
    losses = {row["step"]: row["val/loss"] for row in result.history}
    assert result.checkpoint.best.step == min(losses, key=losses.get)
    assert result.checkpoint.best.metrics["val/loss"] == min(losses.values())


def test_checkpoints_between_epochs(tmp_path):
    steps = []

    class Seen(lj.Callback):
        every_n_steps = None

        def on_save_checkpoint(self, run):
            steps.append(run.step)

    keeper = lj.ModelCheckpoint(every_n_train_steps=3, every_n_epochs=2)
    trainer = quiet(max_epochs=2, callbacks=[Seen(), keeper], enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(linear_task(), loader())
    assert steps == [3, 6, 9, 10, 10]


@pytest.mark.parametrize(
    ("arguments", "saved"),
    [
        ({}, [2, 4, 5]),  # both: after the evaluations within the epoch, and at its end
        ({"save_on_train_epoch_end": True}, [5]),
        ({"save_on_train_epoch_end": False}, [2, 4, 5]),
        ({"every_n_epochs": 2}, [5]),  # not this epoch; the last step is always kept
    ],
)
def test_an_evaluation_within_an_epoch_may_be_the_best(tmp_path, capsys, arguments, saved):
    keeper = lj.ModelCheckpoint("val/loss", mode="max", save_top_k=-1, verbose=True, **arguments)
    trainer = quiet(
        max_epochs=1, val_check_interval=2, callbacks=keeper, enable_checkpointing=True, default_root_dir=tmp_path
    )
    result = trainer.fit(linear_task(), loader(), loader(8))
    assert sorted(keeper.kept_steps) == saved
    assert result.checkpoint.best.step == saved[0]  # the loss falls, and the largest is the best here
    by_step = {row["step"]: row["val/loss"] for row in result.history if "val/loss" in row}
    assert result.checkpoint.best.metrics["val/loss"] == by_step[saved[0]]
    assert "ModelCheckpoint: step 5 saved, " in capsys.readouterr().out


def test_a_run_goes_on_after_an_evaluation_within_an_epoch(tmp_path):
    def fit(name, resume=None):
        callbacks = [lj.EarlyStopping("val/loss", patience=9), lj.ModelCheckpoint("val/loss", save_top_k=-1)]
        arguments = dict(enable_checkpointing=True, default_root_dir=tmp_path / name)
        trainer = quiet(max_epochs=2, val_check_interval=2, callbacks=callbacks, **arguments)
        result = trainer.fit(linear_task(), loader(), loader(8), resume=resume)
        return result, [(row["step"], row["val/loss"]) for row in result.history if "val/loss" in row], callbacks[0]

    whole, evaluated, stopping = fit("whole")
    assert [step for step, _ in evaluated] == [2, 4, 5, 7, 9, 10]
    resumed, again, stopping_again = fit("resumed", whole.directory / "checkpoints" / "step_7")
    assert again == evaluated  # none twice, none left out
    assert bits(resumed.state) == bits(whole.state)
    assert stopping_again.state_dict() == stopping.state_dict()


def test_what_is_saved_between_evaluations_is_kept_where_all_is(tmp_path):
    keeper = lj.ModelCheckpoint(every_n_train_steps=2, every_n_epochs=0, save_top_k=-1)
    quiet(max_epochs=1, callbacks=keeper, enable_checkpointing=True, default_root_dir=tmp_path).fit(
        linear_task(), loader()
    )
    assert sorted(keeper.kept_steps) == [2, 4, 5]
    assert all(checkpoint.restore().step == step for step, checkpoint in keeper._saved.items())


def test_a_checkpoint_restores_every_kind_of_leaf(tmp_path):
    state = {
        "bf16": jnp.arange(3, dtype=jnp.bfloat16),
        "empty": jnp.zeros((0, 4)),
        "int": jnp.int32(7),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1), 4),
        "nested": [{"a/b": jnp.ones(2)}, (np.float32(2.5), np.arange(3, dtype=np.int32))],
    }
    checkpointer = lj.Checkpointer(tmp_path)
    checkpoint = checkpointer.save(1, state, metrics={"loss": float("nan")})
    checkpointer.close()
    restored = checkpoint.restore()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)
    assert restored["empty"].shape == (0, 4)
    assert np.isnan(lj.Checkpoint.open(checkpoint.path).metrics["loss"])


def test_a_checkpoint_that_does_not_fit_lists_every_leaf(tmp_path):
    checkpointer = lj.Checkpointer(tmp_path)
    checkpoint = checkpointer.save(1, {"w": jnp.ones(3), "b": jnp.ones(2), "old": jnp.ones(1)}, metrics={})
    checkpointer.close()
    like = {"w": jnp.ones(4), "b": jnp.ones(2, jnp.bfloat16), "new": jnp.ones(1)}
    with pytest.raises(lj.CheckpointError) as error:
        checkpoint.restore(like)
    for line in (
        "w: float32[3] in the checkpoint, float32[4] in the state",
        "b: float32[2] in the checkpoint, bfloat16[2] in the state",
        "new: missing in the checkpoint",
        "old: float32[1] in the checkpoint, not in the state",
    ):
        assert line in str(error.value)
    with pytest.raises(lj.CheckpointError, match="no complete checkpoint"):
        lj.Checkpoint.open(tmp_path)
    with pytest.raises(lj.CheckpointError, match=r"restore\(like=state\)"):
        lj.Checkpoint.open(checkpoint.path).restore()


@pytest.mark.parametrize(("interval_s", "kept"), [(1e-9, [2, 4, 5, 6, 8, 10]), (1e9, [10])])
def test_checkpoints_are_kept_for_good_by_time(tmp_path, interval_s, kept):
    def fit(max_epochs, resume=None):
        keeper = lj.ModelCheckpoint(every_n_train_steps=2, keep_time_interval=interval_s)
        trainer = quiet(
            max_epochs=max_epochs, enable_checkpointing=True, default_root_dir=tmp_path, callbacks=keeper, resume=resume
        )
        return trainer.fit(linear_task(), lj.ArrayLoader(linear_data(20), 4))

    fit(1)
    result = fit(2, "auto")
    steps = sorted(int(path.name.removeprefix("step_")) for path in (result.directory / "checkpoints").iterdir())
    assert steps == kept


def test_checkpoints_are_kept_for_good_every_so_many_steps(tmp_path):
    def fit(max_epochs, resume=None):
        keeper = lj.ModelCheckpoint(every_n_train_steps=2, keep_every_n_steps=6)
        trainer = quiet(
            max_epochs=max_epochs, enable_checkpointing=True, default_root_dir=tmp_path, callbacks=keeper, resume=resume
        )
        return trainer.fit(linear_task(), lj.ArrayLoader(linear_data(20), 4))

    fit(2)
    result = fit(3, "auto")
    steps = sorted(int(path.name.removeprefix("step_")) for path in (result.directory / "checkpoints").iterdir())
    assert steps == [6, 12, 15]
    with pytest.raises(lj.ConfigurationError, match="keep_every_n_steps=0; give a number of steps from 1 on"):
        lj.ModelCheckpoint(keep_every_n_steps=0)


def test_checkpoints_are_saved_by_the_clock_without_cutting_calls(tmp_path):
    keeper = lj.ModelCheckpoint(every_n_epochs=0, train_time_interval=0.0)
    trainer = quiet(
        max_steps=16, steps_per_call=8, enable_checkpointing=True, default_root_dir=tmp_path, callbacks=keeper
    )
    saved = []
    keeper.save, save = lambda run: (saved.append(run.step), save(run)), keeper.save
    trainer.fit(linear_task(), lj.ArrayLoader(linear_data(64), 4))
    assert saved == [8, 16, 16]
    assert lj.ModelCheckpoint(train_time_interval={"minutes": 2}).train_time_interval_s == 120


def test_checkpoints_go_to_dirpath_and_those_of_two_runs_are_never_mixed(tmp_path):
    def fit(resume=None, max_epochs=2):
        keeper = lj.ModelCheckpoint("val/loss", dirpath=tmp_path / "mine", save_top_k=-1)
        trainer = quiet(
            max_epochs=max_epochs, callbacks=keeper, enable_checkpointing=True, default_root_dir=tmp_path, resume=resume
        )
        return trainer.fit(linear_task(), loader(), loader(8))

    first, second = fit(), fit()
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["step_10", "step_5", "version_1"]
    assert sorted(path.name for path in (tmp_path / "mine" / "version_1").iterdir()) == ["step_10", "step_5"]
    again = fit("auto", max_epochs=3)
    assert again.directory == second.directory != first.directory
    assert (tmp_path / "mine" / "version_1" / "step_15").is_dir()
    assert bits(lj.restore(tmp_path / "mine" / "step_10", first.state)) == bits(first.state)


def test_keepers_that_want_different_places_are_refused(tmp_path):
    keepers = [lj.ModelCheckpoint(dirpath=tmp_path / name) for name in "ab"]
    with pytest.raises(lj.ConfigurationError, match=r"different dirpaths \(.*a, .*b\).*give one"):
        lj.Trainer(callbacks=keepers)


def test_the_last_checkpoint_goes_with_the_end_of_the_run_where_only_the_best_is_wanted(tmp_path):
    class Worse(lj.Callback):
        def on_validation_end(self, run):
            run.log({"val/score": run.epoch})

    keeper = lj.ModelCheckpoint("val/score", save_last=False)
    trainer = quiet(max_epochs=3, callbacks=[Worse(), keeper], enable_checkpointing=True, default_root_dir=tmp_path)
    result = trainer.fit(linear_task(), loader(), loader(8))
    assert result.checkpoint.best.step == 5
    assert [path.name for path in (result.directory / "checkpoints").iterdir()] == ["step_5"]


def test_a_name_without_its_stage_is_found_in_evaluation_first(tmp_path):
    def fit(monitor, *others):
        watching = [lj.EarlyStopping(monitor), lj.ModelCheckpoint(monitor), *others]
        trainer = quiet(max_epochs=2, callbacks=watching, enable_checkpointing=True, default_root_dir=tmp_path)
        return trainer, trainer.fit(linear_task(), loader(), loader(8))

    for others in ((), (Recorder(),)):
        trainer, result = fit("loss", *others)
        stopping = next(one for one in trainer.callbacks if isinstance(one, lj.EarlyStopping))
        assert stopping.best == result.metrics["val/loss"] != result.metrics["train/loss"]
        assert result.checkpoint.best.metrics["val/loss"] == result.metrics["val/loss"]
    assert fit("loss_epoch")[1].checkpoint.best is not None
    with pytest.raises(lj.MetricError, match="monitors 'losses', which nobody reports"):
        fit("losses")
