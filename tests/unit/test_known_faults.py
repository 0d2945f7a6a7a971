"""Faults that trainers are known for, and that this one must not have."""

import jax
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import digit_like_data, linear_data, linear_init, linear_loss, linear_task, mlp_task, quiet


def loader(examples=20, batch_size=4):
    return lj.ArrayLoader(linear_data(examples), batch_size)


def test_two_optimizers_do_not_double_the_step():
    def init(key, batch):
        return {"generator": linear_init(key, batch), "critic": linear_init(jax.random.split(key)[0], batch)}

    def train_step(state, batch):
        return {name: one.apply_gradients(lj.grad(linear_loss)(one, batch)[0]) for name, one in state.items()}, {}

    seen = []
    count = lj.LambdaCallback(on_train_batch_end=lambda run: seen.append(run.step))
    result = quiet(max_steps=7, callbacks=count).fit(lj.Task(init, train_step), loader())
    assert seen == list(range(1, 8))
    assert {int(one.step) for one in result.state.values()} == {7}


def test_early_stopping_is_resumed_at_its_own_look_and_not_one_before(tmp_path):
    scores = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]

    class Script(lj.Callback):
        every_n_steps = None

        def on_validation_end(self, run):
            run.log({"val/score": scores[run.epoch]})

    def fit(directory, max_epochs):
        callbacks = [Script(), lj.EarlyStopping("val/score", patience=3)]
        arguments = dict(enable_checkpointing=True, default_root_dir=directory, resume="auto")
        return quiet(max_epochs=max_epochs, callbacks=callbacks, **arguments).fit(linear_task(), loader(), loader(8))

    whole = fit(tmp_path / "whole", 6)
    for epochs in (1, 2, 3, 6):
        parts = fit(tmp_path / "parts", epochs)
    assert int(parts.state.step) == int(whole.state.step) == 20
    assert parts.stopped_by == whole.stopped_by


def test_a_checkpoint_is_named_and_ranked_by_the_metrics_of_its_own_step(tmp_path):
    keeper = lj.ModelCheckpoint("val/loss", save_top_k=2, every_n_train_steps=3, filename="{epoch}-{val/loss:.4f}")
    arguments = dict(enable_checkpointing=True, default_root_dir=tmp_path)
    trainer = quiet(max_epochs=4, callbacks=keeper, **arguments)
    result = trainer.fit(linear_task(), loader(), loader(8))
    by_step = {row["step"]: row["val/loss"] for row in result.history if "val/loss" in row}
    links = {path.name: path for path in (result.directory / "checkpoints").iterdir() if path.is_symlink()}
    paths = list((result.directory / "checkpoints").glob("step_*"))
    # A link goes with its checkpoint; there are the two best, of which one is the last.
    assert len(links) == len(paths) == 2
    for name, link in links.items():
        step = lj.Checkpoint.open(link).step
        assert name == f"epoch={step // 5 - 1}-val_loss={by_step[step]:.4f}"
    for path in paths:
        checkpoint = lj.Checkpoint.open(path)
        assert checkpoint.metrics["val/loss"] == by_step[checkpoint.step]
        found = trainer.validate(linear_task(), loader(8), state=checkpoint)
        assert found["val/loss"] == pytest.approx(checkpoint.metrics["val/loss"], rel=1e-6)


def test_the_metrics_of_an_epoch_are_never_those_of_an_evaluation_within_it():
    seen = []
    look = lj.LambdaCallback(
        every_n_steps=None, on_train_epoch_end=lambda run: seen.append((run.step, run.metrics["val/loss"]))
    )
    task, trainer = linear_task(), quiet(max_epochs=2, val_check_interval=3, callbacks=look)
    result = trainer.fit(task, loader(), loader(8))
    assert seen[-1] == (10, result.metrics["val/loss"])
    assert quiet().validate(task, loader(8), state=result.state)["val/loss"] == result.metrics["val/loss"]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_means_of_an_epoch_are_means_of_examples_whatever_the_batches_are(batch_size):
    data = {"x": np.arange(10, dtype=np.float32)[:, None].repeat(5, 1), "y": np.zeros(10, np.float32)}

    def init(key, batch):
        return lj.TrainState.create(params={"w": np.zeros(5, np.float32)}, optimizer=optax.sgd(0.0), key=key)

    def step(state, batch):
        return state.replace(step=state.step + 1), {"bare": batch["x"][:, 0].mean(), "mean": lj.Mean(batch["x"][:, 0])}

    task = lj.Task(init, step, lambda state, batch: step(state, batch)[1])
    ours = lj.ArrayLoader(data, batch_size)
    result = quiet(max_epochs=1).fit(task, ours, ours)
    for name in ("train/bare_epoch", "train/mean_epoch", "val/bare", "val/mean"):
        assert result.metrics[name] == pytest.approx(4.5), name


def test_accumulation_takes_the_short_group_at_the_end_of_an_epoch():
    data = lj.ArrayLoader(digit_like_data(5 * 16), 16)
    result = quiet(max_epochs=3, accumulate_grad_batches=2).fit(mlp_task(), data)
    assert int(result.state.step) == 3 * 3  # two groups of two and one of one


def test_a_checkpoint_between_evaluations_is_not_named_by_an_old_metric(tmp_path):
    keeper = lj.ModelCheckpoint(
        every_n_train_steps=3, save_top_k=-1, filename="{step}-{val/loss:.1f}", auto_insert_metric_name=False
    )
    result = quiet(max_epochs=1, callbacks=keeper, enable_checkpointing=True, default_root_dir=tmp_path).fit(
        linear_task(), loader(), loader(8)
    )
    names = {path.name for path in (result.directory / "checkpoints").iterdir() if path.is_symlink()}
    assert names == {"3-none", f"5-{result.metrics['val/loss']:.1f}"}
