"""How a run is cut into compiled calls never changes a number."""

import jax
import numpy as np
import pytest

import lightjax as lj
from tests.models import bits, digit_like_data, linear_data, linear_task, mlp_task, quiet


class LooksAt(lj.Callback):
    """Makes the cuts uneven."""

    def __init__(self, every_n_steps):
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, run):
        run.log({"seen": run.step})


def fit(steps_per_call, *, on_device=False, looks=(), **arguments):
    """Runs 3 epochs of 7 full batches and one of 6 examples, with dropout."""
    loader = lj.ArrayLoader(digit_like_data(118), 16, shuffle=True, seed=1, on_device=on_device)
    val = lj.ArrayLoader(digit_like_data(37, seed=2), 8)
    trainer = quiet(
        max_epochs=3,
        steps_per_call=steps_per_call,
        callbacks=[LooksAt(n) for n in looks],
        log_every_n_steps=3,
        **arguments,
    )
    return trainer.fit(mlp_task(), loader, val)


@pytest.fixture(scope="module")
def one_by_one():
    return fit(1)


@pytest.mark.parametrize("steps_per_call", [2, 3, 7, 64, "auto"])
def test_parameters_and_every_reported_number_are_bitwise_the_same_for_any_length(
    steps_per_call, one_by_one, monkeypatch
):
    # Even this short run shall be worth fusing to "auto".
    monkeypatch.setattr("lightjax.pace.CPU_SAVED_SHARE", 1e9)
    fused = fit(steps_per_call)
    assert bits(fused.state) == bits(one_by_one.state)
    assert fused.history == one_by_one.history


def test_looks_cut_stretches_without_changing_a_number(one_by_one):
    looked_at = fit(8, looks=(5, 2))
    assert bits(looked_at.state) == bits(one_by_one.state)
    numbers = {(row["step"], name): value for row in looked_at.history for name, value in row.items() if name != "seen"}
    for row in one_by_one.history:
        assert all(numbers[row["step"], name] == value for name, value in row.items())
    seen = [row["step"] for row in looked_at.history if "seen" in row]
    assert seen == [step for step in range(1, 25) if step % 2 == 0 or step % 5 == 0]


def test_data_on_the_device_gives_the_same_run_for_any_length(one_by_one):
    device = fit(1, on_device=True)
    for steps_per_call in (4, 64):
        assert bits(fit(steps_per_call, on_device=True).state) == bits(device.state)
    # Gathering inside the step may be fused into it, which moves last bits.
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
        device.state.params,
        one_by_one.state.params,
    )


def test_every_step_of_a_fused_call_is_logged_under_its_own_number():
    data = linear_data(40)
    result = quiet(max_epochs=1, steps_per_call=8, log_every_n_steps=1).fit(linear_task(), lj.ArrayLoader(data, 4))
    task = linear_task()
    step = jax.jit(task.train_step)
    state = jax.jit(task.init)(jax.random.key(0), {name: leaf[:4] for name, leaf in data.items()})
    for row, batch in zip(result.history, lj.ArrayLoader(data, 4), strict=True):
        state, metrics = step(state, batch)
        assert row["step"] == int(state.step)
        assert row["train/loss"] == pytest.approx(float(metrics["loss"].compute()), rel=1e-5)


def test_batches_of_any_size_inside_a_stretch_are_trained_on_exactly():
    """A list whose second and fifth batch are short: cut, compiled for each size, the same for every length."""
    data = linear_data(28)
    sizes = [6, 3, 6, 6, 3]
    ends = np.cumsum(sizes)
    batches = [
        {name: leaf[end - size : end] for name, leaf in data.items()} for size, end in zip(sizes, ends, strict=True)
    ]
    runs = [quiet(max_epochs=2, steps_per_call=k).fit(linear_task(), batches) for k in (1, 4)]
    assert bits(runs[0].state) == bits(runs[1].state)
    assert int(runs[0].state.step) == 10
    assert runs[0].history == runs[1].history


def test_evaluation_is_the_same_for_any_length():
    trainer = quiet(max_epochs=1)
    task = mlp_task()
    result = trainer.fit(task, lj.ArrayLoader(digit_like_data(64), 16))
    data = lj.ArrayLoader(digit_like_data(75, seed=4), 8)
    found = [quiet(steps_per_call=k).validate(task, data, state=result.state) for k in (1, 3, 8)]
    assert found[0] == found[1] == found[2]


def test_evaluating_within_an_epoch_changes_no_parameter_and_reports_at_its_step(one_by_one):
    within = fit(4, val_check_interval=3)
    assert bits(within.state) == bits(one_by_one.state)
    assert [row["step"] for row in within.history if "val/loss" in row] == [3, 6, 8, 11, 14, 16, 19, 22, 24]
    half = fit(4, val_check_interval=0.5)
    assert [row["step"] for row in half.history if "val/loss" in row] == [4, 8, 12, 16, 20, 24]
