"""What each of the callbacks that come with the trainer does."""

import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import bits, digit_like_data, linear_data, linear_init, linear_loss, linear_task, mlp_task, quiet


def loader(examples=20, batch_size=4):
    return lj.ArrayLoader(linear_data(examples), batch_size)


def digits():
    return lj.ArrayLoader(digit_like_data(64), 16)


def test_a_timer_counts_over_interruptions_and_ends_the_run(tmp_path):
    def fit(timer, **arguments):
        trainer = quiet(callbacks=[timer, lj.ModelCheckpoint()], enable_checkpointing=True, default_root_dir=tmp_path)
        trainer.max_epochs = arguments.pop("max_epochs")
        return trainer.fit(linear_task(), loader(), **arguments)

    fit(first := lj.Timer("00:01:00:00"), max_epochs=2)
    assert 0 < first.elapsed_s < 3600
    assert first.remaining_s == pytest.approx(3600 - first.elapsed_s)
    second = lj.Timer(first.elapsed_s / 2)  # less than it took already
    result = fit(second, max_epochs=9, resume="auto")
    assert re.fullmatch(r"timer: \d+ s of training", result.stopped_by)
    assert int(result.state.step) == 15
    assert lj.Timer().remaining_s is None
    with pytest.raises(lj.ConfigurationError, match="Timer's duration='soon' is no time"):
        lj.Timer("soon")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lj.Pruning(every_n_epochs=0), "every_n_epochs=0; give a number of epochs from 1 on"),
        (lambda: lj.Pruning(1.0), r"amount=1.0; give a share"),
        (lambda: lj.Finetuning({"^layer_0/": -1}), r"'\^layer_0/': -1; give an epoch, counted from 0, or None"),
        (lambda: lj.Finetuning({"(": 1}), "no regular expression"),
        (lambda: lj.SpikeDetection(window=0), "window=0"),
        (lambda: lj.WeightAveraging(update_every_n_steps=0), "update_every_n_steps=0"),
        (lambda: lj.Timer("12:00"), "Timer's duration='12:00' is no time: write 'DD:HH:MM:SS'"),
    ],
)
def test_arguments_out_of_range_are_refused(make, text):
    with pytest.raises(lj.ConfigurationError, match=text):
        make()


def test_a_share_to_prune_that_is_none_is_named():
    trainer = quiet(max_epochs=2, callbacks=lj.Pruning(lambda epoch: 0.6 * (epoch + 1)))
    with pytest.raises(lj.ConfigurationError, match=r"Pruning's amount\(1\) is 1.2; return a share"):
        trainer.fit(mlp_task(), lj.ArrayLoader(digit_like_data(32), 16))


def test_functions_are_hooks():
    seen = []
    callback = lj.LambdaCallback(
        every_n_steps=2,
        on_train_batch_end=lambda run: seen.append(run.step),
        on_exception=lambda run, error: seen.append(error),
    )
    quiet(max_epochs=1, callbacks=callback).fit(linear_task(), loader())
    assert seen == [2, 4]
    assert lj.LambdaCallback(on_fit_end=print).steps_between_looks() is None
    with pytest.raises(lj.ConfigurationError, match="LambdaCallback got on_batch; the hooks are setup"):
        lj.LambdaCallback(on_batch=print)


@pytest.mark.parametrize(
    ("arguments", "values", "spike_at"),
    [
        ({"warmup": 2}, [1.0, 1.0, 1.1, 9.0, 1.0], [3]),
        ({"warmup": 5}, [1.0, 1.0, 1.1, 9.0, 1.0], []),
        ({"warmup": 2, "rtol": None, "atol": 0.5}, [1.0, 1.0, 1.6, 1.4], [2]),
        ({"warmup": 2, "mode": "max"}, [1.0, 1.0, 9.0, -9.0], [3]),
        ({"warmup": 0}, [1.0, float("nan"), 1.0], [1]),
        ({"warmup": 0, "finite_only": False}, [1.0, float("inf"), 1.0], []),
        ({"warmup": 2, "window": 2}, [9.0, 9.0, 1.0, 1.0, 9.0], [4]),
    ],
)
def test_spikes_are_told_from_their_running_mean(arguments, values, spike_at):
    callback = lj.SpikeDetection("train/loss", **arguments)
    reasons = [callback.judge(value) for value in values]
    assert [i for i, reason in enumerate(reasons) if reason] == spike_at


@pytest.mark.parametrize("action", ["stop", "log"])
def test_a_spike_ends_the_run_or_is_reported(action):
    def spiky(state, batch):
        grads, _ = lj.grad(linear_loss)(state, batch)
        state = state.apply_gradients(grads)
        return state, {"loss": lj.Last(jnp.where(state.step == 30, 100.0, 1.0))}

    callback = lj.SpikeDetection(warmup=5, action=action)
    trainer = quiet(max_epochs=10, callbacks=callback, log_every_n_steps=1)
    result = trainer.fit(lj.Task(linear_init, spiky), loader())
    assert callback.spikes == [(30, 100.0)]
    if action == "stop":
        assert result.stopped_by.startswith(
            "spike_detection: train/loss = 100 is far from its running mean 1 at step 30"
        )
        assert int(result.state.step) in (30, 31)
    else:
        assert sum(row.get("spike", 0.0) for row in result.history) == 1.0


def test_throughput_is_reported_without_the_time_of_evaluations():
    tokens = lambda batch: batch["x"].size  # noqa: E731
    callback = lj.ThroughputMonitor(5, tokens=tokens, peak_flops=1e12)
    result = quiet(max_epochs=4, callbacks=callback).fit(linear_task(), loader(), loader())
    rows = [row for row in result.history if "throughput/steps_per_s" in row]
    assert [row["step"] for row in rows] == [10, 15, 20]
    for row in rows:
        rate = row["throughput/steps_per_s"]
        assert rate > 0
        assert row["throughput/examples_per_s"] == pytest.approx(4 * rate)
        assert row["throughput/tokens_per_s"] == pytest.approx(20 * rate)
        flops = row["throughput/flops_per_s"] / rate
        assert flops > 4 * 5 * 2 * 2  # two products of [4, 5] and [5] at least
        assert row["throughput/peak_share"] == pytest.approx(flops * rate / (1e12 * jax.device_count()))


def test_memory_is_reported():
    result = quiet(max_epochs=1, callbacks=lj.DeviceStatsMonitor(2)).fit(linear_task(), loader())
    rows = [row for row in result.history if "host/peak_bytes_in_use" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[0]["host/peak_bytes_in_use"] > 2**24


@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_predictions_are_written_in_their_order(tmp_path, interval):
    trainer = quiet(max_epochs=1)
    trainer.fit(linear_task(), loader())
    expected = trainer.predict(linear_task(), loader(10))
    trainer.callbacks.append(lj.PredictionWriter(tmp_path / "out", interval=interval))
    assert trainer.predict(linear_task(), loader(10), return_predictions=False) is None
    files = sorted((tmp_path / "out").iterdir())
    names = ["predictions_000000.npz", "predictions_000001.npz", "predictions_000002.npz"]
    assert [file.name for file in files] == (names if interval == "batch" else ["predictions.npz"])
    found = np.concatenate([np.load(file)["outputs"] for file in files])
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(lj.ConfigurationError, match="interval='step'"):
        lj.PredictionWriter(tmp_path, interval="step")


def test_frozen_parameters_keep_their_bits_until_their_epoch():
    seen = []

    class Look(lj.Callback):
        every_n_steps = None

        def on_train_epoch_end(self, run):
            seen.append(jax.device_get(run.state.params))

    callbacks = [lj.Finetuning({"^layer_0/": 2, "bias$": None}), Look()]
    result = quiet(max_epochs=3, callbacks=callbacks).fit(mlp_task(), digits())
    first = quiet(max_epochs=0).fit(mlp_task(), digits()).state.params
    for epoch, params in enumerate(seen):
        for layer, leaves in params.items():
            kernel_is_frozen = layer == "layer_0" and epoch < 2
            assert (bits(leaves["kernel"]) == bits(first[layer]["kernel"])) == kernel_is_frozen
            # The first expression that is found counts: the bias of layer_0 thaws with it.
            frozen = epoch < 2 if layer == "layer_0" else True
            assert (bits(leaves["bias"]) == bits(first[layer]["bias"])) == frozen
    assert int(result.state.step) == 12
    with pytest.raises(lj.ConfigurationError, match="Finetuning freezes 'backbone', which is found in no parameter's"):
        quiet(max_epochs=1, callbacks=lj.Finetuning({"backbone": 1})).fit(mlp_task(), digits())
    with pytest.raises(lj.ConfigurationError, match="no regular expression"):
        lj.Finetuning({"(": 1})


def test_a_thaw_is_resumed_bit_for_bit(tmp_path):
    def fit(directory, max_steps):
        callbacks = [lj.Finetuning({"^layer_0/": 1}), lj.ModelCheckpoint()]
        arguments = dict(enable_checkpointing=True, default_root_dir=directory, resume="auto")
        return quiet(max_steps=max_steps, callbacks=callbacks, **arguments).fit(mlp_task(), digits())

    whole = fit(tmp_path / "whole", 10)
    for steps in (3, 6, 10):
        parts = fit(tmp_path / "parts", steps)
    assert bits(parts.state) == bits(whole.state)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruned_entries_are_exactly_zero_and_stay_it(scope):
    amounts = [0.25, 0.5, 0.4]
    seen = []

    class Look(lj.Callback):
        every_n_steps = 1

        def on_train_batch_end(self, run):
            seen.append(jax.device_get(run.state.params))

    callbacks = [lj.Pruning(lambda epoch: amounts[epoch], scope=scope), Look()]
    result = quiet(max_epochs=3, callbacks=callbacks).fit(mlp_task(), digits())
    sparsity = [row["sparsity"] for row in result.history if "sparsity" in row]
    assert sparsity == pytest.approx([0.25, 0.5, 0.5], abs=0.01)  # what is pruned once stays pruned
    zero = {layer: leaves["kernel"] == 0 for layer, leaves in seen[4].items()}
    shares = [mask.mean() for mask in zero.values()]
    if scope == "layer":
        assert shares == pytest.approx([0.25] * 3, abs=0.01)
    else:
        assert sum(mask.sum() for mask in zero.values()) == round(0.25 * sum(mask.size for mask in zero.values()))
        magnitudes = {layer: np.abs(leaves["kernel"]) for layer, leaves in seen[3].items()}
        pruned = np.concatenate([magnitudes[layer][mask] for layer, mask in zero.items()])
        left = np.concatenate([magnitudes[layer][~mask] for layer, mask in zero.items()])
        assert pruned.max() <= left.min()
    for params in seen[4:]:
        assert all((params[layer]["kernel"][mask] == 0).all() for layer, mask in zero.items())
    assert all((leaves["bias"] != 0).any() for leaves in seen[-1].values())
    with pytest.raises(lj.ConfigurationError, match=r"amount=1\.5"):
        lj.Pruning(1.5)
    with pytest.raises(lj.ConfigurationError, match="finds nothing to prune"):
        quiet(max_epochs=1, callbacks=lj.Pruning(parameters="nowhere")).fit(mlp_task(), digits())


def test_stochastic_weight_averaging_is_that_of_a_loop_written_by_hand():
    def start(key, batch):
        params = linear_init(key, batch).params
        return lj.TrainState.create(params=params, optimizer=optax.sgd(0.05), key=key)

    task = lj.Task.from_loss(start, linear_loss)
    callback = lj.StochasticWeightAveraging(0.01, swa_epoch_start=2, annealing_epochs=2, annealing_strategy="linear")
    result = quiet(max_epochs=5, callbacks=callback).fit(task, loader(), loader(8))
    state = start(jax.random.key(0), next(loader().epoch(0)))
    params, ends = state.params, []
    for epoch, rate in enumerate([0.05, 0.05, 0.05, 0.03, 0.01]):
        for batch in loader().epoch(epoch):
            grads, _ = lj.grad(linear_loss)(state.replace(params=params), batch)
            params = jax.tree.map(lambda param, grad, rate=rate: param - rate * grad, params, grads)
        ends.append(params)
    average = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *ends[2:])
    found = lj.averaged(result.state).params
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), found, average)
    expected = quiet().validate(task, loader(8), state=lj.averaged(result.state))
    # The last evaluation comes before the last epoch is averaged.
    assert quiet(callbacks=callback).validate(task, loader(8), state=result.state) == expected


def test_a_run_before_its_first_average_is_evaluated_as_it_is():
    callback = lj.StochasticWeightAveraging(0.01, swa_epoch_start=0.9)
    task = linear_task()
    result = quiet(max_epochs=1, callbacks=callback).fit(task, loader(), loader(8))
    plain = quiet(max_epochs=1).fit(task, loader(), loader(8))
    assert result.metrics["val/loss"] == pytest.approx(plain.metrics["val/loss"], rel=1e-6)
    with pytest.raises(lj.ConfigurationError, match=r"swa_epoch_start=1\.5"):
        lj.StochasticWeightAveraging(0.1, swa_epoch_start=1.5)
    with pytest.raises(lj.ConfigurationError, match="share of max_epochs, which the trainer has not"):
        quiet(max_steps=3, callbacks=callback).fit(task, loader())


def test_accumulation_by_epoch_is_that_of_the_trainer():
    scheduling = {0: 1, 1: 2}
    trainer = quiet(max_epochs=2, callbacks=lj.GradientAccumulationScheduler(scheduling))
    ours = trainer.fit(linear_task(), loader())
    theirs = quiet(max_epochs=2, accumulate_grad_batches=scheduling).fit(linear_task(), loader())
    assert bits(ours.state) == bits(theirs.state)
    assert int(ours.state.step) == 5 + 3


def test_a_state_is_saved_when_an_error_ends_a_run_that_saves_nothing_else(tmp_path):
    def fail(run):
        if run.step == 6:
            raise RuntimeError("no disk")

    callbacks = [lj.LambdaCallback(on_train_batch_end=fail), lj.OnExceptionCheckpoint(tmp_path / "left")]
    with pytest.raises(RuntimeError, match="no disk"):
        quiet(max_epochs=2, callbacks=callbacks).fit(linear_task(), loader())
    assert [path.name for path in (tmp_path / "left").iterdir()] == ["step_6"]
    resumed = quiet(max_epochs=2).fit(linear_task(), loader(), resume=tmp_path / "left")
    assert bits(resumed.state) == bits(quiet(max_epochs=2).fit(linear_task(), loader()).state)


def test_early_stopping_says_what_it_found_and_looks_where_it_is_told(capsys):
    callback = lj.EarlyStopping("val/loss", patience=1, min_delta=99.0, verbose=True, check_on_train_epoch_end=True)
    quiet(max_epochs=9, callbacks=callback).fit(linear_task(), loader(), loader(8))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("EarlyStopping")]
    assert len(lines) == 2
    assert re.match(r"EarlyStopping: val/loss = [\d.]+ at step 5: the best so far", lines[0])
    assert "did not improve" in lines[1]


def test_one_seed_for_everything(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("LIGHTJAX_GLOBAL_SEED", "0")

    def numbers():
        return random.random(), np.random.rand(), torch.rand(1).item(), lj.Trainer(logger=False).seed

    assert lj.seed_everything(7) == 7
    first = numbers()
    lj.seed_everything(7)
    assert numbers() == first
    assert first[-1] == 7
    assert lj.Trainer(logger=False, seed=3).seed == 3
    lj.seed_everything(8)
    assert numbers() != first
    for wrong in (-1, 2**32, 1.5, True):
        with pytest.raises(lj.ConfigurationError, match="seed_everything got seed="):
            lj.seed_everything(wrong)
