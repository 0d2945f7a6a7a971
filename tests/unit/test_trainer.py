"""What a user does with a Trainer: fit, validate, test, predict, with every kind of state and data."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightjax as lj
from tests.models import bits, digit_like_data, linear_data, linear_init, linear_loss, linear_task, mlp_task, quiet


def loader(examples=20, batch_size=4, **arguments):
    return lj.ArrayLoader(linear_data(examples), batch_size, **arguments)


def test_a_run_leaves_everything_in_one_directory(capsys, tmp_path):
    trainer = lj.Trainer(max_epochs=3, log_every_n_steps=2, default_root_dir=tmp_path)
    result = trainer.fit(linear_task(), loader(), loader(8))
    assert result.directory == tmp_path / "version_0"
    assert f"run directory: {result.directory}" in capsys.readouterr().out
    with open(result.directory / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [row["step"] for row in result.history]
    for row, reported in zip(rows, result.history, strict=True):
        assert {name: float(value) for name, value in row.items() if value and "/" in name} == {
            name: value for name, value in reported.items() if "/" in name
        }
    assert list(result.directory.glob("events.out.tfevents*"))
    assert json.loads((result.directory / "hparams.json").read_text())["max_epochs"] == 3
    assert result.checkpoint.last is not None
    assert result.checkpoint.last.path.parent == result.directory / "checkpoints"
    second = trainer.fit(linear_task(), loader())
    assert second.directory == tmp_path / "version_1"


def test_an_evaluation_after_training_leaves_the_epoch_of_its_row_alone(tmp_path):
    trainer = lj.Trainer(max_epochs=3, default_root_dir=tmp_path, enable_progress_bar=False)
    result = trainer.fit(linear_task(), loader())
    tested = trainer.test(linear_task(), loader(8))
    with open(result.directory / "metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["step"], last["epoch"], float(last["test/loss"])) == ("15", "2", tested["test/loss"])


def test_a_run_without_files_writes_none(tmp_path, capsys):
    result = quiet(max_epochs=1).fit(linear_task(), loader(), loader())
    assert result.directory is None
    assert (result.checkpoint.best, result.checkpoint.last) == (None, None)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_the_summary_is_printed_before_training(capsys, tmp_path):
    quiet(max_epochs=1, enable_model_summary=True).fit(linear_task(), loader())
    out = capsys.readouterr().out
    for text in ("w ", "float32", "Parameters", "Optimizer state"):
        assert text in out


def test_metrics_are_floats_and_the_last_row_of_the_history():
    result = quiet(max_epochs=2).fit(linear_task(), loader(), loader(8))
    assert set(result.metrics) == {"train/loss", "train/loss_epoch", "val/loss"}
    assert all(isinstance(value, float) for value in result.metrics.values())
    assert result.history[-1] == {"step": 10, "epoch": 1, **result.metrics}
    assert result.stopped_by == "max_epochs"


def test_max_steps_ends_a_run_inside_an_epoch_with_an_evaluation():
    result = quiet(max_steps=7).fit(linear_task(), loader(), loader(8))
    assert (int(result.state.step), result.stopped_by) == (7, "max_steps")
    assert result.history[-1]["step"] == 7
    assert "val/loss" in result.history[-1]


def test_an_endless_generator_ends_at_max_steps():
    def endless():
        while True:
            yield from loader().epoch(0)

    for data in (endless, endless()):
        assert int(quiet(max_steps=12).fit(linear_task(), data).state.step) == 12


def test_a_given_state_is_continued_from_and_left_as_it_is():
    task = linear_task()
    first = quiet(max_epochs=1).fit(task, loader())
    before = bits(first.state)
    second = quiet(max_epochs=1).fit(task, loader(), state=first.state)
    assert int(second.state.step) == 10
    assert second.history[-1]["step"] == 10
    assert bits(first.state) == before
    # numpy leaves are taken as well, and so is a state whose leaves share one buffer
    shared = jnp.zeros(5)
    params = {"w": shared, "b": jnp.zeros(())}
    state = first.state.replace(params=params, opt_state=first.state.optimizer.init(params))
    quiet(max_epochs=1).fit(task, loader(), state=state)
    assert float(shared.sum()) == 0.0


def test_a_state_that_is_any_pytree_trains():
    def init(key, batch):
        return {"w": jnp.zeros(5), "count": 0, "key": key, "twin": (jnp.zeros(5),) * 2}

    def train_step(state, batch):
        grads = jax.grad(lambda w: ((batch["x"] @ w - batch["y"]) ** 2).mean())(state["w"])
        return state | {"w": state["w"] - 0.1 * grads, "count": state["count"] + 1}, {"norm": jnp.linalg.norm(grads)}

    result = quiet(max_epochs=2).fit(lj.Task(init, train_step), loader())
    assert int(result.state["count"]) == 10
    assert result.metrics["train/norm"] > 0


def test_an_object_with_the_methods_is_a_task():
    class Regression:
        def init(self, key, batch):
            return linear_init(key, batch)

        def train_step(self, state, batch):
            grads, metrics = lj.grad(linear_loss)(state, batch)
            return state.apply_gradients(grads), metrics

        def eval_step(self, state, batch):
            return linear_loss(state, batch)[1]

    result = quiet(max_epochs=1).fit(Regression(), loader(), loader(8))
    assert bits(result.state.params) == bits(quiet(max_epochs=1).fit(linear_task(), loader()).state.params)


def test_evaluation_counts_every_example_once_and_changes_nothing():
    task, trainer = linear_task(), quiet(max_epochs=1)
    result = trainer.fit(task, loader())
    before = bits(result.state)
    data = linear_data(11, seed=3)
    params = jax.device_get(result.state.params)
    expected = float(np.mean((data["x"] @ params["w"] + params["b"] - data["y"]) ** 2))
    for batch_size in (1, 4, 11):
        ours = lj.ArrayLoader(data, batch_size)
        assert trainer.validate(task, ours)["val/loss"] == pytest.approx(expected, rel=1e-5)
        assert trainer.test(task, ours, state=result.state)["test/loss"] == pytest.approx(expected, rel=1e-5)
    assert bits(result.state) == before


def test_predictions_keep_the_order_and_the_ragged_batch():
    task, trainer = linear_task(), quiet(max_epochs=1)
    result = trainer.fit(task, loader())
    data = linear_data(11, seed=3)
    outputs = trainer.predict(task, lj.ArrayLoader(data, 4))
    assert isinstance(outputs, np.ndarray)
    np.testing.assert_allclose(outputs, data["x"] @ np.asarray(result.state.params["w"]), rtol=1e-5)


def test_a_prediction_without_rows_is_refused():
    task = lj.Task.from_loss(linear_init, linear_loss, lambda state, batch: {"mean": batch["x"].mean()})
    trainer = quiet(max_epochs=1)
    trainer.fit(task, loader())
    with pytest.raises(lj.StepError, match="predict_step returned a scalar at 'mean'"):
        trainer.predict(task, loader())


def test_evaluation_takes_states_checkpoints_paths_and_names(tmp_path):
    task = linear_task()
    trainer = quiet(max_epochs=4, enable_checkpointing=True, default_root_dir=tmp_path)
    result = trainer.fit(task, loader(), loader(8))
    best, last = result.checkpoint.best, result.checkpoint.last
    expected = trainer.test(task, loader(12), state=best.restore())
    for state in (best, "best", best.path, str(best.path)):
        assert trainer.test(task, loader(12), state=state) == expected
    assert bits(last.restore()) == bits(result.state)
    assert bits(lj.Checkpoint.open(last.path).restore(like=result.state)) == bits(result.state)
    # a fresh trainer knows the structure from the task
    assert quiet().test(task, loader(12), state=best.path) == expected
    assert trainer.test(task, loader(12)) == trainer.test(task, loader(12), state="last")


def test_a_data_module_serves_every_stage():
    class Data:
        def __init__(self):
            self.calls = []

        def prepare_data(self):
            self.calls.append("prepare")

        def setup(self, stage):
            self.calls.append(stage)

        def train_dataloader(self):
            return loader()

        def val_dataloader(self):
            return loader(8)

        def test_dataloader(self):
            return loader(12)

    task, data, trainer = linear_task(), Data(), quiet(max_epochs=1)
    result = trainer.fit(task, datamodule=data)
    assert "val/loss" in result.metrics
    assert "test/loss" in trainer.test(task, datamodule=data)
    assert data.calls == ["prepare", "fit", "prepare", "test"]
    with pytest.raises(lj.ConfigurationError, match=r"Data has no predict_dataloader\(\)"):
        trainer.predict(task, datamodule=data)
    with pytest.raises(lj.ConfigurationError, match="both loaders and a datamodule"):
        trainer.fit(task, loader(), datamodule=data)


def test_limits_shorten_epochs_and_evaluations():
    seen = []

    class Count(lj.Callback):
        every_n_steps = None

        def on_train_epoch_end(self, run):
            seen.append(run.step)

    trainer = quiet(max_epochs=2, callbacks=Count(), limit_train_batches=3, limit_val_batches=0.5)
    trainer.fit(linear_task(), loader(), loader(16))
    assert seen == [3, 6]


def test_evaluation_every_other_epoch():
    result = quiet(max_epochs=4, check_val_every_n_epoch=2).fit(linear_task(), loader(), loader(8))
    assert [row["epoch"] for row in result.history if "val/loss" in row] == [1, 3]


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    def state(seed):
        return bits(quiet(max_epochs=2, seed=seed).fit(mlp_task(), lj.ArrayLoader(digit_like_data(64), 16)).state)

    assert state(1) == state(1)
    assert state(1) != state(2)


def test_repeated_evaluation_compiles_once():
    task, trainer = linear_task(), quiet(max_epochs=1)
    trainer.fit(task, loader(), loader(8))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        trainer.validate(task, loader(8))
        trainer.validate(task, loader(8))
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_ctrl_c_ends_a_run_between_two_steps_with_a_checkpoint(tmp_path):
    import os
    import signal

    before = signal.getsignal(signal.SIGINT)

    class PressAt(lj.Callback):
        every_n_steps = 3

        def on_train_batch_end(self, run):
            if run.step == 6:
                os.kill(os.getpid(), signal.SIGINT)

    trainer = quiet(max_epochs=100, callbacks=[PressAt()], enable_checkpointing=True, default_root_dir=tmp_path)
    result = trainer.fit(linear_task(), loader(40), loader(8))
    assert result.stopped_by == "interrupt"
    assert int(result.state.step) == 6
    assert result.checkpoint.last.step == 6
    assert bits(result.checkpoint.last.restore()) == bits(result.state)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("show", [True, False])
def test_metrics_that_are_arrays_are_reported_and_not_drawn(capsys, show):
    def eval_step(state, batch):
        labels = (batch["y"] > 0).astype(jnp.int32)
        return linear_task().eval_step(state, batch) | {"counts": lj.ConfusionMatrix(batch["x"][:, :2], labels, 2)}

    task = lj.Task(linear_task().init, linear_task().train_step, eval_step)
    trainer = quiet(max_epochs=1, enable_progress_bar=show)
    result = trainer.fit(task, lj.ArrayLoader(linear_data(8), 4), lj.ArrayLoader(linear_data(13), 4))
    found = trainer.validate(task, lj.ArrayLoader(linear_data(13), 4))
    assert {name: np.asarray(value).tolist() for name, value in found.items()} == {
        name: np.asarray(value).tolist() for name, value in result.metrics.items() if name.startswith("val/")
    }
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("val")]
    assert lines == ([f"val  val/loss {found['val/loss']:.4g}"] if show else [])


@pytest.mark.parametrize("callbacks", [(), lj.EMA(0.9)], ids=["plain", "averaged"])
def test_an_eval_step_is_told_the_batch_and_the_loader_it_asks_for(callbacks):
    task = linear_task()

    def eval_step(state, batch, batch_idx, dataloader_idx):
        return {"batches": lj.Sum(batch_idx), "last": lj.Last(batch_idx), "loader": lj.Max(jnp.asarray(dataloader_idx))}

    trainer = quiet(max_epochs=1, callbacks=callbacks)
    loaders = [lj.ArrayLoader(linear_data(22), size) for size in (2, 4)]
    result = trainer.fit(lj.Task(task.init, task.train_step, eval_step), loaders[1], loaders)
    found = {name: value for name, value in result.metrics.items() if name.startswith("val/")}
    expected = {"0/batches": 55, "0/last": 10, "0/loader": 0, "1/batches": 15, "1/last": 5, "1/loader": 1}
    assert found == {f"val/{name}": value for name, value in expected.items()}
