"""What is printed before the first step and after the last one is right."""

import math
import re

import jax.numpy as jnp
import optax
import pytest

import lightjax as lj
from lightjax.closing import closing_summary
from lightjax.profiler import Action, Times
from tests.models import digit_like_data, linear_data, linear_task, mlp_task, quiet


def lines_of(out):
    """The lines of the screen by their names."""
    screen = out[out.index("Preflight") :].splitlines()[1:]
    found = [re.match(r"  (\w[\w ]*?)  +(\S.*)", line) for line in screen]
    return {match[1]: match[2] for match in found if match}


def test_the_screen_says_what_was_derived(tmp_path, capsys):
    trainer = quiet(
        max_epochs=3,
        steps_per_call=4,
        enable_model_summary=True,
        enable_checkpointing=True,
        precision="bf16-mixed",
        default_root_dir=tmp_path,
        devices=1,
    )
    trainer.fit(mlp_task(), lj.ArrayLoader(digit_like_data(100), 16), lj.ArrayLoader(digit_like_data(20), 10))
    out = capsys.readouterr().out
    lines = lines_of(out)
    assert lines["devices"].startswith("1 x cpu")
    assert lines["precision"] == "parameters float32, compute bfloat16 (precision='bf16-mixed')"
    assert lines["batch"] == "16 examples"
    assert lines["epoch"] == "7 steps, 21 steps in all; evaluated on 2 batches"
    assert lines["steps a call"] == "4 (as asked for)"
    # 2 x batch x (16 x 32 + 32 x 32 + 32 x 10) forward; the gradients of weights and of what is between take 2 more,
    # but for those of the first layer's inputs.
    forward = 2 * 16 * (16 * 32 + 32 * 32 + 32 * 10)
    assert lines["FLOPs a step"].startswith(f"{(3 * forward - 2 * 16 * 16 * 32) / 1e3:.3g} kFLOP")
    assert re.match(r"[\d.]+ kB on each device, in calls of up to 4 step\(s\)", lines["peak memory"])
    assert lines["checkpoints"] == f"23.2 kB each, every epoch, in {tmp_path / 'version_0'}"
    assert out.index("Preflight") < out.index("stopped by")


def test_batches_over_devices_and_accumulated_ones_are_counted(capsys):
    trainer = quiet(max_steps=2, steps_per_call=1, enable_model_summary=True, devices=4, accumulate_grad_batches=2)
    trainer.fit(linear_task(), lj.ArrayLoader(linear_data(64), 8))
    lines = lines_of(capsys.readouterr().out)
    assert lines["devices"].startswith("4 x cpu (data=4), strategy")
    assert lines["batch"] == "8 examples, 2 on each device, 2 of them a step: 16 examples"
    assert lines["checkpoints"] == "none"


def test_a_state_that_is_any_pytree_and_a_loader_without_length_are_said(capsys):
    def train_step(state, batch):
        return {"w": state["w"] + 1}, {"mean": batch["x"].mean()}

    def endless():
        while True:
            yield from lj.ArrayLoader(linear_data(16), 4).epoch(0)

    trainer = quiet(max_steps=3, steps_per_call=1, enable_model_summary=True, devices=1)
    trainer.fit(lj.Task(lambda key, batch: {"w": jnp.zeros(2)}, train_step), endless)
    lines = lines_of(capsys.readouterr().out)
    assert lines["precision"] == "the state's own"
    assert lines["epoch"] == "of unknown length, 3 steps in all"
    assert lines["FLOPs a step"].startswith("0 FLOP")


def test_the_end_says_what_came_out(capsys):
    trainer = quiet(max_epochs=2, enable_model_summary=True)
    result = trainer.fit(linear_task(), lj.ArrayLoader(linear_data(40), 4), lj.ArrayLoader(linear_data(8), 4))
    out = capsys.readouterr().out
    losses = {row["step"]: row["val/loss"] for row in result.history if "val/loss" in row}
    low = min(losses, key=losses.__getitem__)
    assert re.search(rf"val/loss +{losses[20]:.4g} +{losses[low]:.4g} \({low}\)", out)
    assert re.search(r"\d+ m?s: .* %", out)


def test_quiet_says_nothing_of_a_run_nor_of_its_resumption(tmp_path, capsys):
    for epochs, resume in ((1, None), (2, "auto")):
        trainer = lj.Trainer(max_epochs=epochs, quiet=True, default_root_dir=tmp_path, resume=resume)
        result = trainer.fit(linear_task(), lj.ArrayLoader(linear_data(8), 4))
    assert result.state.step == 4
    assert capsys.readouterr().out == ""


def test_values_that_are_not_finite_are_shown_as_they_are():
    rows = [{"step": 1, "epoch": 0, "val/a": 2.0, "val/b": math.nan}, {"step": 2, "epoch": 0, "val/a": math.inf}]
    text = closing_summary(rows, Times(1.0, (Action("rest", 1.0, 0),), (), 2, 2, 0))
    assert re.search(r"val/a +inf +2 \(1\) +2 \(1\)", text)
    assert re.search(r"val/b +nan +- +-", text)


@pytest.mark.parametrize("rate", [3e-3, optax.linear_schedule(1.0, 0.0, 40)])
def test_any_learning_rate_reaches_the_loggers(rate, monkeypatch, tmp_path):
    monkeypatch.setattr("lightjax.gauges.LEAST_S", 0.0)

    def init(key, batch):
        return lj.TrainState.create(params={"w": jnp.zeros(5), "b": jnp.zeros(())}, optimizer=optax.sgd(rate), key=key)

    task = lj.Task(init, linear_task().train_step)
    logger = lj.JSONLinesLogger(tmp_path)
    quiet(max_steps=20, log_every_n_steps=5, steps_per_call=5, logger=logger).fit(
        task, lj.ArrayLoader(linear_data(80), 4)
    )
    import json

    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}
    expected = {10: 3e-3, 15: 3e-3, 20: 3e-3} if isinstance(rate, float) else {10: 0.75, 15: 0.625, 20: 0.5}
    assert found == pytest.approx(expected)
